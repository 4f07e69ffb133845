"""COCO's instances with a file of phrases beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sam4mllm.data.reading import read_dataset
from sam4mllm.errors import DataError
from sam4mllm.geometry import Box
from tests.data.tiny_datasets import annotation, image_record, write_image, write_instances


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_instances(
        tmp_path, [image_record(5), image_record(6)], [annotation(50, 5), annotation(51, 5, x=10), annotation(60, 6)]
    )
    for number in (5, 6):
        write_image(tmp_path / image_record(number)["file_name"])
    return tmp_path


def read(folder: Path, *records: Any) -> Any:
    phrases = folder / "phrases.jsonl"
    phrases.write_text("".join(json.dumps(each) + "\n" for each in records))
    return read_dataset("coco", path=folder / "instances.json", phrases=phrases)


def test_one_object_several_and_none(folder: Path) -> None:
    samples = read(
        folder,
        {"phrases": ["left", "the left one"], "annotation_id": 50},
        {"phrase": "both", "annotation_ids": [50, 51, 50], "id": "pair"},
        {"phrase": "a dragon", "image_id": 6},
        {"phrase": "that", "annotation_id": 60, "image_id": 6},
    )
    assert [(each.id, each.phrase, [item.id for item in each.objects]) for each in samples] == [
        ("coco/phrases/1/0", "left", ["coco/instances/ann/50"]),
        ("coco/phrases/1/1", "the left one", ["coco/instances/ann/50"]),
        ("pair", "both", ["coco/instances/ann/50", "coco/instances/ann/51"]),
        ("coco/phrases/3", "a dragon", []),
        ("coco/phrases/4", "that", ["coco/instances/ann/60"]),
    ]
    assert samples[0].objects[0].box == Box(2, 1, 8, 5) and samples[3].image == folder / image_record(6)["file_name"]
    assert (
        read_dataset("coco", path=folder / "instances.json", phrases=folder / "phrases.jsonl", limit=2) == samples[:2]
    )


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"phrase": "it", "annotation_id": 99}, "instances.json has no annotation 99"),
        ({"phrase": "it", "image_id": 99}, "instances.json has no image 99"),
        ({"phrase": "it"}, "give annotation_id, annotation_ids or image_id; no image is given"),
        ({"phrase": "it", "annotation_ids": [50, 60]}, r"the annotations belong to the images \[5, 6\]"),
        ({"phrase": "it", "annotation_ids": ["50"]}, r"the field 'annotation_ids\[0\]' must be an integer; found '50'"),
        ({"phrase": "it", "annotation_id": 50, "annotation_ids": [51]}, "both given; keep one of them"),
        ({"phrase": "it", "annotation": 50}, "unknown field 'annotation'"),
        ({"annotation_id": 50}, "give either phrase, a text, or phrases"),
        ({"phrase": "it", "annotation_id": 50, "id": "first"}, "the id 'first' is also in line 1"),
    ],
)
def test_a_bad_line_is_reported_with_its_number(folder: Path, record: Any, message: str) -> None:
    with pytest.raises(DataError, match=rf"phrases.jsonl: 1 bad line: line 2: .*{message}"):
        read(folder, {"phrase": "it", "annotation_id": 50, "id": "first"}, record)


def test_files_that_are_missing_or_empty(folder: Path) -> None:
    with pytest.raises(DataError, match="no phrase in it"):
        read(folder)
    with pytest.raises(DataError, match=r"nothing.jsonl: cannot be read"):
        read_dataset("coco", path=folder / "instances.json", phrases=folder / "nothing.jsonl")
    with pytest.raises(DataError, match=r"nothing.json: no such file; COCO's instances"):
        read_dataset("coco", path=folder / "nothing.json", phrases=folder / "phrases.jsonl")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": [60, 40, 100, 70]}, r"the box \[60.0, 40.0, 160.0, 110.0\] does not fit .* are x1, y1, x2, y2"),
        ({"bbox": [0, 0, 0, 0]}, "has no area in the image"),
        ({"bbox": [0.5, 0.5, 0.3333, 0.375]}, "numbers are shares of the image's sides"),
        ({"segmentation": {"size": [80, 120], "counts": [9600]}}, "the mask has no pixel"),
    ],
)
def test_a_box_is_compared_with_its_mask_and_its_image(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write_instances(tmp_path, [image_record(5, 120, 80)], [annotation(50, 5, 60, 40, 40, 30) | change])
    with pytest.raises(DataError, match=rf"instances.json, annotation 50: .*{message}"):
        read(tmp_path, {"phrase": "it", "annotation_id": 50})


def test_a_mask_without_a_pixel_and_without_a_box_is_no_object(tmp_path: Path) -> None:
    empty = annotation(50, 5) | {"segmentation": {"size": [10, 20], "counts": [200]}}
    del empty["bbox"]
    write_instances(tmp_path, [image_record(5)], [empty])
    with pytest.raises(DataError, match="annotation 50: the mask has no pixel"):
        read(tmp_path, {"phrase": "it", "annotation_id": 50})


@pytest.mark.parametrize("segmentation", [[], None, ...])
def test_an_annotation_may_be_a_box_alone(tmp_path: Path, segmentation: Any) -> None:
    alone = annotation(50, 5, 60, 40, 40, 30) | {"segmentation": segmentation}
    if segmentation is ...:
        del alone["segmentation"]
    write_instances(tmp_path, [image_record(5, 120, 80)], [alone, alone | {"id": 51, "bbox": [0.5, 0.5, 0.3, 0.3]}])
    (sample,) = read(tmp_path, {"phrase": "it", "annotation_id": 50})
    assert (sample.objects[0].rle, sample.objects[0].box) == (None, Box(60, 40, 100, 70)) and not sample.has_masks
    with pytest.raises(DataError, match=r"annotation 51: the box .* is normalized to the image's size"):
        read(tmp_path, {"phrase": "it", "annotation_id": 51})
    del alone["bbox"]
    write_instances(tmp_path, [image_record(5, 120, 80)], [alone])
    with pytest.raises(DataError, match="annotation 50: a segmentation is a list of polygons or an RLE"):
        read(tmp_path, {"phrase": "it", "annotation_id": 50})


def test_a_polygon_that_is_no_area_is_named(tmp_path: Path) -> None:
    record = annotation(50, 5)
    record["segmentation"].append([2, 1, 3, 2])
    write_instances(tmp_path, [image_record(5)], [record])
    with pytest.raises(DataError, match=r"annotation 50: .* got 4 numbers in polygon 2 of 2; remove that polygon"):
        read(tmp_path, {"phrase": "it", "annotation_id": 50})
