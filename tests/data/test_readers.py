from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sam4mllm.data.readers import DATASETS, read_dataset
from sam4mllm.errors import DataError


def test_the_names_are_the_contracts() -> None:
    assert list(DATASETS) == ["refcoco", "refcoco+", "refcocog", "grefcoco", "reasonseg", "shapes"]


@pytest.mark.parametrize("name", DATASETS)
def test_a_missing_root_is_told(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder; root must be the folder that holds the folder"):
        read_dataset(name, tmp_path / "nowhere", "val")


@pytest.mark.parametrize("name", DATASETS)
def test_an_empty_root_is_told_by_what_is_missing(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"refs\(\w+\)\.(p|json): no such file|ReasonSeg/val: no such split"):
        read_dataset(name, tmp_path, "val")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("coco", {}, "unknown data set 'coco'; the known ones are: refcoco, refcoco"),
        ("refcoco", {"limit": 0}, "a limit is at least one sample; got 0"),
        ("refcoco", {"images": Path("/nowhere")}, "/nowhere: no such folder; images must be the folder that holds"),
        ("reasonseg", {"split_by": "unc"}, "reasonseg has one way to be split"),
    ],
)
def test_bad_arguments_are_told(tmp_path: Path, name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_dataset(name, tmp_path, "val", **options)
