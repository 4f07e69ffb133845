"""The scripts and the notebook of examples/ run on the embedded models and generated data."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = ("evaluate_predictions", "finetune_on_your_data", "segment_one_image")
NOTEBOOK = "segment_and_evaluate.ipynb"


def run(name: str, *arguments: str) -> None:
    assert runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](arguments) == 0


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, which the examples write their results to."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_example_is_tested_and_short() -> None:
    assert sorted(path.stem for path in EXAMPLES.glob("*.py")) == list(SCRIPTS)
    assert [path.name for path in EXAMPLES.glob("*.ipynb")] == [NOTEBOOK]
    assert all(len((EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()) < 80 for name in SCRIPTS)


def test_segment_one_image(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("segment_one_image", "--device", "cpu")
    assert "the model's answer: [" in capsys.readouterr().out
    assert max(Image.open(work / "segment_one_image.png").size) >= 512


def test_finetune_on_your_data(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("finetune_on_your_data", "--device", "cpu", "--steps", "2", "--groups", "2")
    printed = capsys.readouterr().out
    assert "points beat the box for" in printed and "protocol grefcoco" in printed
    folder = work / "runs/examples/finetune/run"
    assert (folder / "adapter_model.safetensors").is_file() and (folder / "inspect/index.html").is_file()


def test_evaluate_predictions(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("evaluate_predictions")
    first = capsys.readouterr().out
    assert ", 0 without a prediction, protocol refcoco" in first and "ciou" in first
    folder = work / "runs/examples"
    files = ["--predictions", str(folder / "predictions.jsonl"), "--root", str(folder / "shapes")]
    run("evaluate_predictions", *files)
    assert capsys.readouterr().out == first


def test_the_notebook(capsys: pytest.CaptureFixture[str]) -> None:
    notebook = json.loads((EXAMPLES / NOTEBOOK).read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    names: dict[str, object] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert not cell["outputs"] and cell["execution_count"] is None, "a committed notebook has no outputs"
            exec("".join(cell["source"]), names)
    assert "6 queries, cIoU " in capsys.readouterr().out
    assert isinstance(names["drawing"], Image.Image)
