"""`segment` and `predict` with scripted answers: what they print, what they write, and their exit statuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sam4mllm.cli.main import main
from tests.cli.scripted import ANSWERS
from tests.data.tiny_datasets import write_image


@pytest.mark.usefixtures("scripted")
def test_segment_writes_the_image_the_mask_and_the_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = write_image(tmp_path / "a.png")
    files = ["-o", str(tmp_path / "o.png"), "--mask", str(tmp_path / "m.png"), "--json", str(tmp_path / "l.json")]
    assert main(["segment", "run", str(image), "the left one", *files]) == 0
    assert capsys.readouterr().out == f"1 object\n{ANSWERS['left']}\n"
    mask = np.asarray(Image.open(tmp_path / "m.png"))
    assert mask.shape == (10, 20) and mask[3, 5] == 255 and mask[3, 15] == 0
    assert Image.open(tmp_path / "o.png").size == (400, 200)
    assert json.loads((tmp_path / "l.json").read_text())["status"] == "ok"


@pytest.mark.usefixtures("scripted")
@pytest.mark.parametrize(
    ("phrase", "status", "printed"), [("a dragon", 0, "no object\nNo object found.\n"), ("a riddle", 1, "malformed")]
)
def test_segment_distinguishes_no_object_and_malformed(
    phrase: str, status: int, printed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["segment", "run", str(write_image(tmp_path / "a.png")), phrase]) == status
    assert printed in capsys.readouterr().out


@pytest.mark.usefixtures("scripted")
def test_standard_output_holds_json_alone_where_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["segment", "run", str(write_image(tmp_path / "a.png")), "left", "--json", "-"])
    assert json.loads(capsys.readouterr().out)["objects"][0]["segmentation"]["size"] == [10, 20]


@pytest.mark.usefixtures("scripted")
def test_a_mask_is_not_written_in_a_lossy_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = write_image(tmp_path / "a.png")
    assert main(["segment", "run", str(image), "left", "--mask", str(tmp_path / "m.jpg")]) == 2
    assert "would not keep a mask's 0 and 255; use .png" in capsys.readouterr().err


def test_segment_does_not_overwrite_its_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = write_image(tmp_path / "a.png")
    before = image.read_bytes()
    assert main(["segment", "run", str(image), "left", "-o", str(image)]) == 2
    assert "a.png: is read by this command" in capsys.readouterr().err
    assert image.read_bytes() == before


@pytest.mark.usefixtures("scripted")
def test_predict_ends_with_1_when_a_query_has_status_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = write_image(tmp_path / "a.png"), tmp_path / "b.png"
    queries = tmp_path / "q.jsonl"
    queries_of_file = [("1", good, "left"), ("2", bad, "left"), ("3", good, "a dragon")]
    lines = [
        json.dumps({"id": identity, "image": str(image), "phrase": phrase})
        for identity, image, phrase in queries_of_file
    ]
    queries.write_text("\n".join(lines))
    arguments = ["predict", "run", str(queries), "--output", str(tmp_path / "out"), "--json", str(tmp_path / "s.json")]
    assert main(arguments) == 1
    assert "3 predictions" in (summary := capsys.readouterr().err) and "1 errors" in summary
    assert json.loads((tmp_path / "s.json").read_text())["error"] == 1
    write_image(bad)
    assert main(arguments) == 0


@pytest.mark.usefixtures("scripted")
def test_predict_answers_the_queries_of_a_data_set(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--dataset", "refcoco", "--root", str(root), "--split", "val"]
    assert main(["predict", "run", *data, "--output", str(tmp_path / "out")]) == 0
    assert "3 predictions" in capsys.readouterr().err
    for wrong in ([], ["q.jsonl", *data]):
        assert main(["predict", "run", *wrong, "--output", str(tmp_path / "out")]) == 2
        assert "give one of them" in capsys.readouterr().err


@pytest.mark.usefixtures("scripted")
def test_options_of_a_data_set_are_refused_beside_queries(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["predict", "run", str(tmp_path / "q.jsonl"), "--output", str(tmp_path / "out")]
    assert main([*arguments, "--split", "val", "--root", "data"]) == 2
    assert "--root, --split: belongs to a data set" in capsys.readouterr().err
    assert main([*arguments, "--column", "phrase=answer"]) == 2
    assert "--column: belongs to a data set" in capsys.readouterr().err


@pytest.mark.usefixtures("scripted")
def test_predict_answers_phrases_about_a_folder_of_images(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "below/c.png"):
        write_image(tmp_path / "photos" / name)
    (tmp_path / "photos/notes.txt").write_text("no image")
    arguments = ["predict", "run", str(tmp_path / "photos"), "--phrase", "left", "--phrase", "a dragon"]
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines()]
    assert [(line["id"], line["phrase"], line["status"]) for line in lines] == [
        ("a.JPG/1", "left", "ok"),
        ("a.JPG/2", "a dragon", "no_object"),
        ("b.png/1", "left", "ok"),
        ("b.png/2", "a dragon", "no_object"),
    ]
    assert lines[0]["image"] == str(tmp_path / "photos/a.JPG")


@pytest.mark.usefixtures("scripted")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photos"], "photos: is a folder; give a phrase about its images: --phrase TEXT"),
        (["photos", "--phrase", " "], "--phrase: the phrase is empty"),
        (["photos", "--phrase", "left", "--split", "val"], "--split: belongs to a data set, but photos is not one"),
        (["empty", "--phrase", "left"], "empty: no image in it (suffixes: .jpg"),
        (["q.jsonl", "--phrase", "left"], "--phrase: is about a folder of images, but q.jsonl has phrases of its own"),
        (["--dataset", "jsonl", "--path", "q.jsonl", "--phrase", "left"], "but --dataset has phrases of its own"),
    ],
)
def test_phrases_belong_to_a_folder_that_has_images(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "photos/a.png")
    (tmp_path / "empty").mkdir()
    assert main(["predict", "run", *arguments, "--output", "out"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (["--ray", "{queries}"], "is a file, and the address of a cluster was expected"),
        (["--ray-workers", "2"], "--ray-workers: is for a Ray cluster; give --ray as well"),
        (["--ray", "ray://head:10001"], "--ray ray://head:10001: Ray Data does not run through Ray's client"),
        (["--ray"], "--ray needs Ray: pip install 'sam4mllm[ray]'"),
    ],
)
def test_options_of_a_cluster_are_checked_first(
    given: list[str],
    problem: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    (queries := tmp_path / "q.jsonl").write_text(json.dumps({"id": "1", "image": "a.png", "phrase": "left"}))
    given = [each.format(queries=queries) for each in given]
    assert main(["predict", "run", str(queries), "--output", str(tmp_path / "out"), *given]) == 2
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
