"""Label Studio's JSON export: brushes, polygons, ellipses and rectangles in percent, phrases, and broken regions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sam4mllm.cli.main import main
from sam4mllm.data.brush_rle import to_brush
from sam4mllm.data.masks import encode
from sam4mllm.data.reading import read_dataset
from sam4mllm.data.sample import Sample
from sam4mllm.errors import DataError
from tests.data.tiny_datasets import write_image

WIDTH, HEIGHT = 40, 20
HOLED = np.zeros((HEIGHT, WIDTH), dtype=bool)
HOLED[2:12, 4:24] = True
HOLED[5:8, 8:14] = False
HOLED[15:18, 30:38] = True
Read = Callable[..., list[Sample]]


def region(kind: str, labels: list[str], number: int = 1, **value: Any) -> dict[str, Any]:
    """A region of the annotation, with the size that its percent refer to."""
    return {
        "id": f"r{number}",
        "type": kind,
        "from_name": "label",
        "to_name": "image",
        "original_width": WIDTH,
        "original_height": HEIGHT,
        "image_rotation": 0,
        "value": {**value, kind: labels} if labels else value,
    }


def task(*result: dict[str, Any], image: str = "/data/upload/1/0123abcd-a.png", **data: Any) -> dict[str, Any]:
    """An annotated task; uploaded images have names with eight digits before them."""
    annotation = {"result": list(result), "was_cancelled": False}
    return {"id": 7, "data": {"image": image, **data}, "annotations": [annotation]}


RECTANGLE = region("rectanglelabels", ["cat"], x=25, y=10, width=50, height=40, rotation=0)
POLYGON = region("polygonlabels", ["dog"], points=[[10, 20], [60, 20], [60, 80], [10, 80]], closed=True)
BRUSH = region("brushlabels", ["cup"], format="rle", rle=to_brush(encode(HOLED)))


@pytest.fixture
def read(tmp_path: Path) -> Read:
    write_image(tmp_path / "a.png", WIDTH, HEIGHT)

    def read(*tasks: Any, **arguments: Any) -> list[Sample]:
        (tmp_path / "export.json").write_text(json.dumps(list(tasks)))
        return read_dataset("labelstudio", path=tmp_path / "export.json", **arguments)

    return read


def test_each_kind_of_region_is_read(read: Read) -> None:
    ellipse = region("ellipselabels", ["sun"], x=50, y=50, radiusX=25, radiusY=25, rotation=0)
    samples = read(task(BRUSH, POLYGON | {"id": "r2"}, RECTANGLE | {"id": "r3"}, ellipse | {"id": "r4"}))
    assert [(each.id, each.phrase) for each in samples] == [
        (f"labelstudio/export/7/{n}", name) for n, name in enumerate(("cup", "dog", "cat", "sun"))
    ]
    cup, dog, cat, sun = samples
    assert np.array_equal(cup.mask(), HOLED) and cup.image.name == "a.png" and cup.size_wh == (WIDTH, HEIGHT)
    assert np.argwhere(dog.mask()).min(axis=0).tolist() == [4, 4] and dog.mask().sum() == 20 * 12
    assert list(cat.objects[0].box) == [10, 2, 30, 10] and not cat.has_masks
    assert sun.mask().sum() == pytest.approx(np.pi * 10 * 5, rel=0.04)


def test_a_rectangle_is_rotated_about_its_upper_left_corner(read: Read) -> None:
    """By 90 degrees clockwise: the side to the right points downwards, and the side downwards to the left."""
    (sample,) = read(task(region("rectanglelabels", ["cat"], x=50, y=10, width=30, height=20, rotation=90)))
    assert list(sample.objects[0].box) == pytest.approx([20 - 4, 2, 20, 2 + 12])


def test_phrases_are_texts_then_labels_then_the_tasks_only_phrase(read: Read) -> None:
    text = region("textarea", [], text=["the big cup"], format="rle", rle=[])
    generic = region("brushlabels", ["object"], format="rle", rle=to_brush(encode(HOLED)))
    assert [each.phrase for each in read(task(generic, text))] == ["the big cup"]
    assert [each.phrase for each in read(task(generic, phrase="the only one"))] == ["the only one"]
    assert [each.phrase for each in read(task(generic))] == ["object"]
    with pytest.raises(DataError, match="has no phrase: no text, no label, and 2 phrases"):
        read(task(generic, phrases=["a", "b"]))
    # Text about the image, without a region.
    comment = {"id": "c", "type": "textarea", "value": {"text": ["a note"]}, "from_name": "note", "to_name": "image"}
    assert [each.phrase for each in read(task(BRUSH, comment))] == ["cup"]


def test_a_phrase_without_a_region_has_no_object(read: Read) -> None:
    samples = read(task(BRUSH, phrases=["the dragon", "cup"]))
    assert [(each.phrase, len(each.objects)) for each in samples] == [("the dragon", 0), ("cup", 1)]
    assert [(each.phrase, len(each.objects)) for each in read(task(phrase="the dragon"))] == [("the dragon", 0)]


def test_of_several_annotations_the_ground_truth_or_the_last_is_read(read: Read) -> None:
    first, last = task(BRUSH), task(POLYGON)
    cancelled = {"result": [RECTANGLE], "was_cancelled": True}
    both = {**first, "annotations": [*first["annotations"], *last["annotations"], cancelled]}
    assert [each.phrase for each in read(both)] == ["dog"]
    both["annotations"][0]["ground_truth"] = True
    assert [each.phrase for each in read(both)] == ["cup"]
    with pytest.raises(DataError, match="no annotated task in it; export the project as JSON"):
        read({**first, "annotations": [cancelled]})


@pytest.mark.parametrize(
    "url", ["a.png", "/data/local-files/?d=sub/a.png", "https://host/x/a.png?token=1", "s3://bucket/k/a.png"]
)
def test_images_are_found_by_path_or_name(url: str, tmp_path: Path) -> None:
    write_image(tmp_path / "photos/a.png", WIDTH, HEIGHT)
    write_image(tmp_path / "photos/sub/a.png", WIDTH, HEIGHT)
    (tmp_path / "x.json").write_text(json.dumps([task(BRUSH, image=url)]))
    (sample,) = read_dataset("labelstudio", path=tmp_path / "x.json", images=tmp_path / "photos")
    assert sample.image == tmp_path / ("photos/sub/a.png" if "d=" in url else "photos/a.png")


@pytest.mark.parametrize("url", ["/data/local-files/?d=../secret.png", "/data/local-files/?d=/etc/passwd", "../a.png"])
def test_names_do_not_leave_the_folder(url: str, read: Read) -> None:
    with pytest.raises(DataError, match="leaves the folder of the images"):
        read(task(BRUSH, image=url))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"original_width": 41}, "the rle of a brush has 3200 values"),
        ({"original_width": None}, "has no original_width and original_height"),
        ({"image_rotation": 90}, "is drawn on a rotated image"),
        (
            {"value": {"x": 1, "y": 2, "width": 3, "keypointlabels": ["cat"]}},
            "has no area: x, y, width, height must be",
        ),
        ({"value": {"points": [[1, 2], [3, 4]], "polygonlabels": ["cat"]}}, "a polygon has three points"),
        ({"value": {"points": [["1", 2]], "polygonlabels": ["cat"]}}, "points are numbers in percent"),
        ({"value": {"rle": "AAA", "brushlabels": ["cat"]}}, "is a list of bytes"),
    ],
)
def test_broken_regions_are_refused_and_can_be_left_out(changes: dict[str, Any], message: str, read: Read) -> None:
    broken = task({**BRUSH, **changes})
    with pytest.raises(DataError, match=f"task 1: region r1: .*{message}"):
        read(broken)
    assert [each.phrase for each in read(broken, task(POLYGON), skip_bad=True)] == ["dog"]


def test_a_phrase_with_a_mask_and_a_rectangle_is_refused(read: Read) -> None:
    with pytest.raises(DataError, match="the phrase 'cup' has masks and rectangles"):
        read(task(BRUSH, region("rectanglelabels", ["cup"], 2, x=25, y=10, width=50, height=40)))


@pytest.mark.parametrize("content", ['{"a": 1}', '[{"image": "a.png", "label": []}]'])
def test_other_json_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(DataError, match=r"is a list of tasks|the field 'data' is missing"):
        read_dataset("labelstudio", path=tmp_path / "x.json")


def test_convert_writes_the_same_samples(read: Read, tmp_path: Path) -> None:
    samples = read(task(BRUSH, POLYGON | {"id": "r2"}, phrases=["the dragon"]))
    own = tmp_path / "own.jsonl"
    assert main(["convert", "--dataset", "labelstudio", "--path", str(tmp_path / "export.json"), "-o", str(own)]) == 0
    assert read_dataset("jsonl", path=own) == samples
