"""docs/labeling.md: its commands run in order, with scripted answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from sam4mllm.cli.main import main
from sam4mllm.data.brush_rle import to_brush
from sam4mllm.data.masks import encode
from sam4mllm.data.reading import read_dataset
from sam4mllm.pipeline.pipeline import Pipeline
from tests.cli.scripted import scripted_pipeline
from tests.cli.serving import run_while_serving
from tests.data.tiny_datasets import write_image
from tests.labeling.servers import ask
from tests.test_readme import blocks, commands

PAGE = (Path(__file__).parent.parent / "docs" / "labeling.md").read_text(encoding="utf-8")


def write_labels(folder: Path) -> None:
    """What labelers export: one brush region, and one polygon in labelme."""
    mask = np.zeros((10, 20), dtype=bool)
    mask[1:5, 2:8] = True
    region = {"id": "r", "type": "brushlabels", "original_width": 20, "original_height": 10}
    region["value"] = {"format": "rle", "rle": to_brush(encode(mask)), "brushlabels": ["left"]}
    image = "/data/local-files/?d=photos/a.png"
    tasks = [{"id": 1, "data": {"image": image}, "annotations": [{"result": [region]}]}]
    (folder / "label-studio-export.json").write_text(json.dumps(tasks))
    write_image(folder / "labelme/a.png", 20, 10)
    shape = {"label": "left", "points": [[2, 1], [8, 1], [8, 5], [2, 5]], "shape_type": "polygon"}
    record = {"shapes": [shape], "imagePath": "a.png", "imageHeight": 10, "imageWidth": 20}
    (folder / "labelme/a.json").write_text(json.dumps(record))


def check_setup(port: int, body: object) -> None:
    """The page's configuration is accepted."""
    assert ask(port, "POST", "/setup", body) == (200, {"model_version": "demo"})


def test_from_answers_to_corrected_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Pipeline, "from_pretrained", scripted_pipeline)
    write_image(tmp_path / "photos/a.png", 20, 10)
    write_labels(tmp_path)
    run = [words for words in commands(PAGE) if words[0] == "sam4mllm"]
    subcommands = ["predict", *["export"] * 3, "label-studio", "check", *["convert"] * 4]
    assert [words[1] for words in run] == subcommands
    for words in run:
        if "annotations.xml" in words:
            shutil.copy("for-cvat/annotations.xml", "annotations.xml")
        if words[1] == "label-studio":
            (config,) = blocks(PAGE, "xml")
            body = {"schema": config, "project": "1.2"}
            assert run_while_serving(words[2:], lambda port, body=body: check_setup(port, body), monkeypatch) == 0
            continue
        assert main(words[1:]) == 0, words
    tasks = json.loads(Path("for-label-studio/tasks.json").read_text())
    assert [task["data"]["image"] for task in tasks] == ["/data/local-files/?d=photos/a.png"]
    names = ("corrected", "corrected-cvat", "corrected-labelme", "corrected-coco")
    corrected = [read_dataset("jsonl", path=Path(f"{name}.jsonl")) for name in names]
    assert [[(each.phrase, len(each.objects)) for each in samples] for samples in corrected] == [
        [("left", 1)],
        [("the left one", 1), ("the right one", 1), ("the dragon", 0)],
        [("left", 1)],
        [("the left one", 1), ("the right one", 1), ("the dragon", 0)],
    ]
    assert [int(samples[0].mask().sum()) for samples in corrected] == [24, 24, 24, 24]
