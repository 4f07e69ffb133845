from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sam4mllm.data.reading import read_dataset
from sam4mllm.errors import DataError
from tests.data.tiny_datasets import annotation, image_record, ref, write_instances


def _write(root: Path, refs: list[dict[str, Any]]) -> None:
    folder = root / "grefcoco"
    write_instances(folder, [image_record(5)], [annotation(50, 5), annotation(51, 5, x=6)])
    (folder / "grefs(unc).json").write_text(json.dumps(refs))


@pytest.mark.parametrize(
    ("ann_id", "extra", "names", "pixels"),
    [
        ([50, 51], {}, ["grefcoco/ann/50", "grefcoco/ann/51"], 40),
        ([51, 50, 51], {}, ["grefcoco/ann/51", "grefcoco/ann/50"], 40),
        ([50], {}, ["grefcoco/ann/50"], 24),
        (50, {}, ["grefcoco/ann/50"], 24),
        (50, {"no_target": False}, ["grefcoco/ann/50"], 24),
        ([-1], {}, [], 0),
        (-1, {}, [], 0),
        ([-1], {"no_target": True}, [], 0),
    ],
)
def test_one_object_several_or_none(
    tmp_path: Path, ann_id: object, extra: dict[str, Any], names: list[str], pixels: int
) -> None:
    _write(tmp_path, [{**ref(7, ann_id, 5, "val", "these"), "category_id": [1], **extra}])
    (sample,) = read_dataset("grefcoco", tmp_path, "val")
    assert sample.id == "grefcoco/val/7/70"
    assert [item.id for item in sample.objects] == names
    assert int(sample.mask().sum()) == pixels


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ann_id": []}, "ref 7: ann_id is an id"),
        ({"ann_id": "50"}, "ref 7: ann_id is an id"),
        ({"ann_id": None}, "ref 7: ann_id is an id"),
        ({"ann_id": [50, -1]}, "ref 7: ann_id holds -1"),
        ({"no_target": True}, "ref 7: no_target is true, but"),
        ({"ann_id": [52]}, "ref 7: .* has no annotation 52"),
    ],
)
def test_a_bad_target_is_reported(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    _write(tmp_path, [{**ref(7, [50], 5, "val", "these"), **change}])
    with pytest.raises(DataError, match=message):
        read_dataset("grefcoco", tmp_path, "val")
