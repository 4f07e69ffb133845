"""No output replaces a file that the same command reads, or a file that is no such output."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sam4mllm.cli.main import main
from tests.data.tiny_datasets import annotation, image_record, write_image, write_instances

RECIPE = """
output: made
model: {base: some/model}
segmenter: {checkpoint: sam.pth}
data: {train: [{dataset: jsonl, path: own.jsonl}], guard: off}
targets: {groups: 2, store: targets}
"""

DATA = {
    "refcoco": ["--dataset", "refcoco", "--root", "data", "--split", "val"],
    "all": ["--dataset", "all", "--root", "data"],
    "jsonl": ["--dataset", "jsonl", "--path", "own.jsonl"],
    "coco": ["--dataset", "coco", "--path", "i.json", "--phrases", "phrases.jsonl"],
    "hub": ["--dataset", "hub", "--path", "set"],
}


@pytest.fixture
def home(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a file of each kind; `data` in it is RefCOCO."""
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "a.png")
    write_instances(tmp_path, [image_record(5)], [annotation(50, 5)])
    # One line of one brace is how a file of --json begins, so that only its being read keeps it.
    indented = json.dumps(json.loads(Path("instances.json").read_text()), indent=1)
    for name in ("i.json", "calibration.json", "data/refcoco/instances.json", "m/config.json", "set/state.json"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(indented)
    for name in ("p.jsonl", "q.jsonl", "own.jsonl", "phrases.jsonl", "out/predictions.jsonl", "run/recipe.yaml"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text('{"id": "1"}\n')
    Path("run/method.json").write_text("{\n}\n")
    Path("chat.json").write_text("{\n}\n")
    Path("recipe.yaml").write_text(RECIPE)
    Path("results.json").write_text("{\n}\n")
    Path("sam.pth").write_bytes(b"{\n not weights")
    os.link("i.json", "hard.json")
    os.symlink("i.json", "soft.json")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        (["score", "p.jsonl", *DATA["jsonl"], "--json"], "p.jsonl"),
        (["score", "p.jsonl", *DATA["jsonl"], "--json"], "own.jsonl"),
        (["score", "p.jsonl", *DATA["coco"], "--json"], "i.json"),
        (["score", "p.jsonl", *DATA["coco"], "--json"], "hard.json"),
        (["score", "p.jsonl", *DATA["coco"], "--json"], "soft.json"),
        (["score", "p.jsonl", *DATA["coco"], "--json"], "phrases.jsonl"),
        (["score", "p.jsonl", *DATA["refcoco"], "--json"], "data/refcoco/instances.json"),
        (["score", "p.jsonl", *DATA["refcoco"], "--json"], "data/refcoco/refs(unc).p"),
        (["score", "p.jsonl", *DATA["refcoco"], "--json"], "a.png"),
        (["score", "p.jsonl", *DATA["hub"], "--json"], "set/state.json"),
        (["evaluate", "m", *DATA["all"], "--json"], "data/refcoco/instances.json"),
        (["evaluate", "m", *DATA["jsonl"], "--json"], "m/config.json"),
        (["evaluate", "m", *DATA["jsonl"], "--chat", "chat.json", "--json"], "chat.json"),
        (["evaluate", "m", *DATA["jsonl"], "--segmenter", "sam.pth", "--json"], "sam.pth"),
        (["calibrate", "run", *DATA["coco"], "--json"], "i.json"),
        (["calibrate", "run", *DATA["jsonl"], "--json"], "run/method.json"),
        (["predict", "m", "q.jsonl", "--output", "new", "--json"], "q.jsonl"),
        (["predict", "m", "--output", "new", *DATA["coco"], "--json"], "i.json"),
        (["segment", "m", "a.png", "x", "--json"], "a.png"),
        (["segment", "m", "a.png", "x", "-o"], "a.png"),
        (["segment", "m", "a.png", "x", "--mask"], "a.png"),
        (["prepare", "recipe.yaml", "--json"], "recipe.yaml"),
        (["prepare", "recipe.yaml", "--json"], "own.jsonl"),
        (["train", "recipe.yaml", "--dry-run", "--json"], "recipe.yaml"),
        (["doctor", "--json"], "a.png"),
        (["convert", *DATA["coco"], "-o"], "i.json"),
        (["convert", *DATA["refcoco"], "-o"], "data/refcoco/new.jsonl"),
        (["convert", *DATA["jsonl"], "-o"], "a.png"),
    ],
)
def test_an_output_does_not_replace_what_is_read(
    arguments: list[str], output: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file: file.read_bytes() for file in home.rglob("*") if file.is_file()}
    assert main([*arguments, output]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"sam4mllm: error: {output}: ") and error.count("\n") == 1
    assert {file: file.read_bytes() for file in home.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("command", [["prepare", "r.yaml"], ["train", "r.yaml", "--dry-run"]])
def test_the_data_of_a_recipe_are_not_replaced(
    command: list[str], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = "{dataset: coco, path: i.json, phrases: phrases.jsonl}"
    (home / "r.yaml").write_text(RECIPE.replace("{dataset: jsonl, path: own.jsonl}", source))
    before = (home / "i.json").read_bytes()
    assert main([*command, "--json", "i.json"]) == 2
    assert "i.json: is read by this command; give another file with --json" in capsys.readouterr().err
    assert (home / "i.json").read_bytes() == before


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["predict", "m", "out/predictions.jsonl", "--output", "out"],
            "out/predictions.jsonl: is read by this command",
        ),
        (["predict", "m", *DATA["refcoco"], "--output", "data/refcoco"], "data/refcoco: is the folder of a data set"),
        (["evaluate", "m", *DATA["hub"], "--output", "set/new"], "set/new: is the folder of a data set"),
        (["predict", "m", "q.jsonl", "--output", "new", "--json", "new/job.json"], "job.json: is a file of a run"),
        (["evaluate", "run", *DATA["jsonl"], "--json", "run/evaluate/results.json"], "its folder run/evaluate does"),
        (
            ["score", "out/predictions.jsonl", *DATA["jsonl"], "--json", "out/results.json"],
            "out/results.json: is a file",
        ),
        (["segment", "m", "a.png", "x", "-o", "o.png", "--mask", "o.png"], "o.png: is given for two outputs"),
        (["score", "p.jsonl", *DATA["jsonl"], "--json", "data"], "data: is a folder; give a file"),
        (["evaluate", "m", *DATA["jsonl"], "--output", "a.png"], "a.png: is a file, and a folder is to be written"),
        (["predict", "m", "q.jsonl", "--output", "a.png/new"], "a.png: is a file, and a folder is to be written"),
        (["predict", "m", "q.jsonl", "--output", "loop"], "loop: is a symbolic link that leads nowhere, and a folder"),
        (["segment", "m", "a.png", "x", "-o", "loop"], "loop: is a loop of symbolic links; remove it, or give another"),
        (["convert", *DATA["jsonl"], "-o", "loop"], "loop: is a loop of symbolic links"),
    ],
)
def test_outputs_that_collide_get_one_line(
    arguments: list[str], message: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "new").mkdir()
    (home / "loop").symlink_to("loop")
    (home / "out/results.json").write_text("{\n}\n")
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_file_of_json_is_written_anew_and_through_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"id": "refcoco/val/1/10", "status": "no_object"}\n')
    (tmp_path / "link.json").symlink_to("scores.json")
    command = ["score", str(tmp_path / "p.jsonl"), "--dataset", "refcoco", "--root", str(root), "--split", "val"]
    for _ in range(2):
        assert main([*command, "--json", str(tmp_path / "link.json")]) == 0
        assert (tmp_path / "link.json").is_symlink()
        assert json.loads((tmp_path / "scores.json").read_text())["n"] == 3


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_convert_does_not_replace_a_link_or_a_pipe(
    kind: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "kept.jsonl"
    target.write_text('{"id": "1"}\n')
    output = tmp_path / "out.jsonl"
    if kind == "link":
        output.symlink_to(target)
    else:
        os.mkfifo(output)
    assert main(["convert", "--dataset", "refcoco", "--root", str(root), "--split", "val", "-o", str(output)]) == 2
    assert "out.jsonl: is a" in capsys.readouterr().err
    assert (output.is_symlink() if kind == "link" else output.is_fifo()) and target.read_text() == '{"id": "1"}\n'
