"""The table of data sets: its names, the checks of a new row, and a data set that is added through the table alone."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sam4mllm.cli.main import main
from sam4mllm.data.entry import DataEntry, DataSection
from sam4mllm.data.json_lines import dump_line
from sam4mllm.data.masks import encode
from sam4mllm.data.mixture import read_mixture
from sam4mllm.data.predictions import PredictedObject, PredictionLine
from sam4mllm.data.reading import benchmarks_in, held_out_splits, read_dataset
from sam4mllm.data.registry import DATASETS, DatasetRow, dataset_names, register_dataset, scored_dataset_names
from sam4mllm.data.sample import MaskObject, Sample
from sam4mllm.evaluation.protocols import protocol_for
from sam4mllm.evaluation.score import score
from sam4mllm.geometry import Box

PUBLISHED = ("refcoco", "refcoco+", "refcocog", "grefcoco", "reasonseg")
CUSTOM = ("jsonl", "coco", "hub")


def test_the_names_are_those_that_recipes_and_the_command_line_use() -> None:
    assert set(PUBLISHED) <= set(dataset_names("benchmark")) and set(CUSTOM) <= set(dataset_names("custom"))
    assert dataset_names("generated") == ("shapes",)
    assert {"chat", "pope", "reasonseg-explanations"} <= set(dataset_names("chat"))
    assert dataset_names("boxes") == ("flickr30k", "visual-genome")
    in_order = (*PUBLISHED, "shapes", *CUSTOM, "chat", "reasonseg-explanations")
    assert tuple(name for name in dataset_names() if name in in_order) == in_order
    assert set(scored_dataset_names()) == set(dataset_names()) - set(dataset_names("chat"))


# A toy data set: {root}/toy/{split}/PHRASE.png, each with a mask of its left half.
TOY = DatasetRow(
    "toy",
    "benchmark",
    reader="toy_reader:read",
    splits="toy_reader:splits",
    needs=("root", "split"),
    protocol="refcoco",
)


def read_toy(row: DatasetRow, *, root: Path, split: str, limit: int | None) -> list[Sample]:
    mask = np.zeros((10, 20), dtype=bool)
    mask[:, :10] = True
    return [
        Sample(f"toy/{path.stem}", path, (20, 10), path.stem, (MaskObject(path.stem, encode(mask), Box(0, 0, 10, 10)),))
        for path in sorted((row.folder_in(root) / split).glob("*.png"))[:limit]
    ]


def list_toy_splits(row: DatasetRow, *, root: Path) -> list[str]:
    return sorted(path.name for path in row.folder_in(root).iterdir())


@pytest.fixture
def toy_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A root with the toy data set, which is registered."""
    module = ModuleType("toy_reader")
    module.read, module.splits = read_toy, list_toy_splits  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "toy_reader", module)
    for split, phrase, color in (("train", "cat", "red"), ("train", "dog", "green"), ("val", "cow", "blue")):
        (tmp_path / "toy" / split).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 10), color).save(tmp_path / "toy" / split / f"{phrase}.png")
    register_dataset(TOY)
    yield tmp_path
    del DATASETS["toy"]


def test_a_registered_data_set_is_read_by_name_and_in_a_recipe(toy_root: Path) -> None:
    assert [sample.phrase for sample in read_dataset("toy", toy_root, "train")] == ["cat", "dog"]
    assert len(read_dataset("toy", toy_root, "train", limit=1)) == 1
    assert benchmarks_in(toy_root) == ["toy"] and held_out_splits("toy", toy_root) == ["val"]
    entry = DataEntry(dataset="toy", root=toy_root, split="train")
    mixture = read_mixture(DataSection(train=[entry]), seed=0)
    assert len(mixture.samples) == 2 and mixture.guarded == {"toy val": 1}


def test_a_registered_data_set_is_scored_by_its_protocol_from_python_and_the_command_line(
    toy_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (sample,) = read_dataset("toy", toy_root, "val")
    rle = sample.objects[0].rle
    assert rle is not None
    (toy_root / "predictions.jsonl").write_text(dump_line(PredictionLine(sample.id, "ok", (PredictedObject(rle),))))
    arguments = ["score", str(toy_root / "predictions.jsonl"), "--dataset", "toy", "--root", str(toy_root)]
    assert main([*arguments, "--split", "val"]) == 0
    assert "100.0" in capsys.readouterr().out
    assert protocol_for("toy").name == "refcoco"
    assert score(toy_root / "predictions.jsonl", dataset="toy", root=toy_root, split="val").ciou == 1


@pytest.mark.parametrize(
    ("name", "usual", "others"),
    [
        ("refcocog", "segment", {"region-caption"}),
        ("flickr30k", "grounded-caption", {"segment", "region-caption"}),
        ("visual-genome", "region-caption", {"segment"}),
        ("pope", "chat", set()),
    ],
)
def test_a_data_set_has_a_usual_task_and_others(name: str, usual: str, others: set[str]) -> None:
    row = DATASETS[name]
    assert row.usual_task == usual and set(row.tasks) == {usual, *others}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "data set 'toy' is registered already"),
        ({"name": "toy2", "needs": ("root", "spilt")}, "unknown key 'spilt'"),
        ({"name": "toy2", "needs": ("split",)}, "must need either root or path"),
        ({"name": "toy2", "splits": None}, "name a function that lists its splits"),
        ({"name": "toy2", "protocol": None}, "name an evaluation protocol"),
        ({"name": "toy2", "kind": "boxes"}, "name an evaluation protocol, unless its kind is boxes"),
        ({"name": "toy2", "task": "grounded-caption"}, "its task is one of segment, region-caption; found grounded"),
    ],
)
def test_a_row_that_contradicts_itself_is_refused(toy_root: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        register_dataset(replace(TOY, **changes))
