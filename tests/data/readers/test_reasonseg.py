from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sam4mllm.data.entry import DataEntry
from sam4mllm.data.masks import decode
from sam4mllm.data.readers.reasonseg import draw_labels
from sam4mllm.data.reading import images_of_splits, read_dataset
from sam4mllm.errors import DataError
from sam4mllm.geometry import Box
from tests.data.tiny_datasets import rectangle, write_image, write_reasonseg


def test_validation_uses_the_first_text_and_training_every_one(tmp_path: Path) -> None:
    shapes = [rectangle("target", 2, 1, 5, 3)]
    for split in ("train", "val", "test"):
        write_reasonseg(tmp_path, split, "b", ["what rolls", "the round one"], shapes)
        write_reasonseg(tmp_path, split, "a", ["what flies"], shapes)
    assert [(s.id, s.phrase) for s in read_dataset("reasonseg", tmp_path, "train")] == [
        ("reasonseg/train/a/0", "what flies"),
        ("reasonseg/train/b/0", "what rolls"),
        ("reasonseg/train/b/1", "the round one"),
    ]
    for split in ("val", "test"):
        expected = [f"reasonseg/{split}/a/0", f"reasonseg/{split}/b/0"]
        assert [sample.id for sample in read_dataset("reasonseg", tmp_path, split)] == expected
    assert len(read_dataset("reasonseg", tmp_path, "train", limit=2)) == 2


def test_a_target_is_one_object_with_its_tight_box(tmp_path: Path) -> None:
    write_reasonseg(tmp_path, "val", "a", ["x"], [rectangle("target", 2, 1, 5, 3), rectangle("target", 10, 4, 12, 6)])
    (sample,) = read_dataset("reasonseg", tmp_path, "val")
    (item,) = sample.objects
    # The outline belongs to a polygon, so columns 2 to 5 are four.
    assert (item.id, item.box) == ("reasonseg/val/a", Box(2, 1, 13, 7))
    assert int(sample.mask().sum()) == 4 * 3 + 3 * 3
    assert sample.size_wh == (20, 10)
    assert sample.image == tmp_path / "ReasonSeg" / "val" / "a.jpg"
    assert sample.ignore is None


@pytest.mark.parametrize("suffix", [".png", ".jpeg", ".JPG", ".webp"])
def test_an_image_may_have_another_suffix(tmp_path: Path, suffix: str) -> None:
    path = write_reasonseg(tmp_path, "val", "a[1]*", ["x"], [rectangle("target", 2, 1, 5, 3)])
    path.with_suffix(".jpg").unlink()
    image = write_image(path.with_suffix(suffix))
    (path.parent / "a[1]*.txt").write_text("")
    (sample,) = read_dataset("reasonseg", tmp_path, "val")
    assert sample.image == image and sample.size_wh == (20, 10)
    entry = DataEntry(dataset="reasonseg", root=tmp_path, split="val")
    assert images_of_splits(entry) == {"val": [image]}


def test_several_images_of_one_annotation_are_an_error_unless_one_is_jpg(tmp_path: Path) -> None:
    path = write_reasonseg(tmp_path, "val", "a", ["x"], [])
    write_image(path.with_suffix(".png"))
    (sample,) = read_dataset("reasonseg", tmp_path, "val")
    assert sample.image == path.with_suffix(".jpg")
    sample.image.rename(path.with_suffix(".bmp"))
    with pytest.raises(DataError, match=r"a\.json: several files can be its image: a\.bmp, a\.png in .*; keep one"):
        read_dataset("reasonseg", tmp_path, "val")


@pytest.mark.parametrize("shapes", [[], [rectangle("flag", 0, 0, 5, 5)], [rectangle("Flag", 0, 0, 5, 5)]])
def test_a_file_without_target_has_no_object(tmp_path: Path, shapes: list[dict[str, Any]]) -> None:
    write_reasonseg(tmp_path, "test", "a", ["x"], shapes)
    (sample,) = read_dataset("reasonseg", tmp_path, "test")
    assert sample.objects == ()
    assert not sample.mask().any()


def test_ignored_pixels_are_not_part_of_the_target(tmp_path: Path) -> None:
    shapes = [rectangle("Ignored area", 4, 1, 5, 3), rectangle("target", 2, 1, 5, 3)]
    write_reasonseg(tmp_path, "val", "a", ["x"], shapes)
    (sample,) = read_dataset("reasonseg", tmp_path, "val")
    assert sample.ignore is not None
    ignored = decode(sample.ignore)
    assert ignored[1:4, 4:6].all()
    assert int(ignored.sum()) == 6
    assert int(sample.mask().sum()) == 6
    assert not (sample.mask() & ignored).any()


BIG, SMALL = (0, 0, 5, 5), (2, 2, 3, 3)


@pytest.mark.parametrize(
    ("shapes", "at_2_2", "at_0_0"),
    [
        # The larger is drawn first, whatever the order in the file.
        ([rectangle("target", *BIG), rectangle("ignore", *SMALL)], 255, 1),
        ([rectangle("ignore", *SMALL), rectangle("target", *BIG)], 255, 1),
        ([rectangle("target", *SMALL), rectangle("ignore", *BIG)], 1, 255),
        # Of two with equal area the first one of the file is drawn last.
        ([rectangle("target", *BIG), rectangle("ignore", *BIG)], 1, 1),
        ([rectangle("ignore", *BIG), rectangle("target", *BIG)], 255, 255),
    ],
)
def test_smaller_shapes_are_drawn_on_top(shapes: list[dict[str, Any]], at_2_2: int, at_0_0: int) -> None:
    marks = draw_labels(shapes, (20, 10), "here")
    assert (marks[2, 2], marks[0, 0], marks[9, 19]) == (at_2_2, at_0_0, 0)


def test_points_are_truncated_towards_zero() -> None:
    marks = draw_labels([rectangle("target", -0.9, 0.99, 3.99, 2.5)], (20, 10), "here")
    expected = np.zeros((10, 20), dtype=np.uint8)
    expected[0:3, 0:4] = 1
    assert np.array_equal(marks, expected)


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "utf-8-sig"])
def test_text_is_utf_8_or_else_cp1252(tmp_path: Path, encoding: str) -> None:
    path = write_reasonseg(tmp_path, "val", "a", ["x"], [])
    content = {"text": ["the caf\u00e9\u2019s door"], "is_sentence": True, "shapes": []}
    path.write_bytes(json.dumps(content, ensure_ascii=False).encode(encoding))
    assert read_dataset("reasonseg", tmp_path, "val")[0].phrase == "the caf\u00e9\u2019s door"


def test_the_size_of_an_image_with_exif_orientation_is_its_upright_size(tmp_path: Path) -> None:
    path = write_reasonseg(tmp_path, "val", "a", ["x"], [rectangle("target", 0, 15, 3, 19)])
    exif = Image.Exif()
    exif[0x0112] = 6
    write_image(path.with_suffix(".jpg"), 20, 10, exif=exif)
    (sample,) = read_dataset("reasonseg", tmp_path, "val")
    assert sample.size_wh == (10, 20)
    assert int(sample.mask().sum()) == 4 * 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", r"a\.json: a ReasonSeg annotation must be JSON"),
        (json.dumps([]), r"a\.json: expected an object"),
        (json.dumps({"text": [], "shapes": []}), r"a\.json: the field 'text' must be a list of at least one value"),
        (json.dumps({"text": "x", "shapes": []}), r"a\.json: the field 'text' must be a list; found 'x'"),
        (json.dumps({"text": [1], "shapes": []}), r"a\.json: the field 'text\[0\]' must be text; found 1"),
        (json.dumps({"text": ["x"]}), r"a\.json: the field 'shapes' is missing"),
        (json.dumps({"text": ["x"], "shapes": [{"points": []}]}), "shape 0: the field 'label' is missing"),
        (
            json.dumps({"text": ["x"], "shapes": [{"label": "a", "points": []}]}),
            "shape 0: a shape has a list",
        ),
        (json.dumps({"text": ["x"], "shapes": [{"label": "a", "points": [[1]]}]}), "shape 0: a point is"),
        (json.dumps({"text": ["x"], "shapes": [{"label": "a", "points": [[1, 1e99]]}]}), "shape 0: a point is"),
        (
            json.dumps({"text": ["x"], "shapes": [{"label": "a", "points": [[0.1, 0], [0.5, 0.2], [1, 1]]}]}),
            "shape 0: the points are normalized to the image's size",
        ),
        (json.dumps({"text": ["x"], "shapes": [{"label": "a", "points": [[1, float("nan")]]}]}), "shape 0: a point"),
    ],
)
def test_a_bad_file_is_reported(tmp_path: Path, content: str, message: str) -> None:
    write_reasonseg(tmp_path, "val", "a", ["x"], []).write_text(content)
    with pytest.raises(DataError, match=message):
        read_dataset("reasonseg", tmp_path, "val")


def test_a_missing_or_broken_image_is_reported(tmp_path: Path) -> None:
    path = write_reasonseg(tmp_path, "val", "a", ["x"], []).with_suffix(".jpg")
    path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"a\.jpg: no such image, or none that can be read"):
        read_dataset("reasonseg", tmp_path, "val")
    path.unlink()
    with pytest.raises(DataError, match=r"a\.jpg: no such image"):
        read_dataset("reasonseg", tmp_path, "val")


def test_an_unknown_split_is_reported_with_the_known_ones(tmp_path: Path) -> None:
    write_reasonseg(tmp_path, "val", "a", ["x"], [])
    with pytest.raises(DataError, match="has: val"):
        read_dataset("reasonseg", tmp_path, "testA")
