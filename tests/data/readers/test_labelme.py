"""labelme's JSON: polygons, masks with holes, groups of parts, circles, rectangles, and files that are refused."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sam4mllm.cli.main import main
from sam4mllm.data.reading import read_dataset
from sam4mllm.data.sample import Sample
from sam4mllm.errors import DataError
from tests.data.tiny_datasets import write_image

WIDTH, HEIGHT = 40, 20
Write = Callable[..., Path]


def shape(label: str, kind: str, *points: tuple[float, float], **fields: Any) -> dict[str, Any]:
    return {"label": label, "shape_type": kind, "points": [list(point) for point in points], "flags": {}, **fields}


def png(pixels: np.ndarray[Any, Any]) -> str:
    """A mask as labelme stores it: a PNG of one bit in base64."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(*shapes: Any, name: str = "a", **fields: Any) -> Path:
        write_image(tmp_path / f"{name}.png", WIDTH, HEIGHT)
        content = {"version": "5.5.0", "flags": {}, "imageData": None, "imageHeight": HEIGHT, "imageWidth": WIDTH}
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps({**content, "imagePath": f"{name}.png", "shapes": list(shapes), **fields}))
        return file

    return write


def read(path: Path, **arguments: Any) -> list[Sample]:
    return read_dataset("labelme", path=path, **arguments)


def test_a_folder_of_files_is_read(write: Write, tmp_path: Path) -> None:
    write(shape("cat", "polygon", (1, 1), (9, 1), (9, 9), (1, 9)), shape("dog", "rectangle", (20, 8), (10, 4)))
    write(shape("sun", "circle", (20, 10), (20, 15)), name="b")
    samples = read(tmp_path)
    assert [(each.id, each.phrase, each.image.name) for each in samples] == [
        ("labelme/a/0", "cat", "a.png"),
        ("labelme/a/1", "dog", "a.png"),
        ("labelme/b/0", "sun", "b.png"),
    ]
    assert samples[0].mask().sum() == 64 and list(samples[1].objects[0].box) == [10, 4, 20, 8]
    assert samples[2].mask().sum() == pytest.approx(np.pi * 25, rel=0.04)


def test_masks_keep_their_holes_and_groups_are_one_object(write: Write) -> None:
    ring = np.ones((5, 6), dtype=bool)
    ring[1:3, 2:4] = False
    mask = shape("ring", "mask", (3, 2), (8, 6), mask=png(ring), group_id=2)
    part = shape("ring", "polygon", (20, 1), (24, 1), (24, 5), (20, 5), group_id=2)
    (sample,) = read(write(mask, part))
    expected = np.zeros((HEIGHT, WIDTH), dtype=bool)
    expected[2:7, 3:9] = ring
    expected[1:5, 20:24] = True
    assert len(sample.objects) == 1 and np.array_equal(sample.mask(), expected)
    (sample,) = read(write({**mask, "group_id": None}, {**part, "group_id": None}))
    assert len(sample.objects) == 2


def test_images_are_found_beside_the_file_or_in_a_folder(write: Write, tmp_path: Path) -> None:
    square = shape("cat", "polygon", (1, 1), (9, 1), (9, 9))
    (sample,) = read(write(square))
    assert sample.image == tmp_path / "a.png"
    outside = write(square, imagePath="..\\imgs\\a.png")
    with pytest.raises(DataError, match="leaves the folder of the images"):
        read(outside)
    write_image(tmp_path / "imgs/a.png", WIDTH, HEIGHT)
    (sample,) = read(outside, images=tmp_path / "imgs")
    assert sample.image == tmp_path / "imgs/a.png"


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (shape("x", "point", (1, 2)), "the shape 'point' has no area"),
        (shape("x", "polygon", (1, 2), (3, 4)), "a polygon has three points"),
        (shape("x", "circle", (1, 2)), "a circle has two points"),
        (shape("x", "mask", (1, 2), (3, 4)), "a PNG in base64; found None"),
        (shape("x", "mask", (1, 2), (3, 4), mask="!!"), "a PNG in base64"),
        (shape("x", "mask", (38, 2), (43, 4), mask=png(np.ones((3, 6), dtype=bool))), "leaves the image"),
        (shape(" ", "rectangle", (1, 2), (3, 4)), "the phrase is empty"),
        ({"label": "x"}, "the field 'points' is missing"),
    ],
)
def test_broken_shapes_are_refused(broken: dict[str, Any], message: str, write: Write) -> None:
    with pytest.raises(DataError, match=rf"a\.json: shapes\[0\]: .*{message}"):
        read(write(broken))


def test_files_of_other_content_are_refused(write: Write, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no shape in it"):
        read(write())
    with pytest.raises(DataError, match="no such file or folder"):
        read(tmp_path / "none")
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(DataError, match="the field 'shapes' is missing"):
        read(tmp_path / "a.json")


def test_convert_writes_the_same_samples(write: Write, tmp_path: Path) -> None:
    file = write(shape("cat", "polygon", (1, 1), (9, 1), (9, 9)), shape("dog", "rectangle", (20, 8), (10, 4)))
    own = tmp_path / "own.jsonl"
    assert main(["convert", "--dataset", "labelme", "--path", str(file), "-o", str(own)]) == 0
    assert read_dataset("jsonl", path=own) == read(file)
