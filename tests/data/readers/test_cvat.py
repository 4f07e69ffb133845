"""CVAT's XML: masks with holes, groups of parts, rotated boxes, ellipses, tags, and files that are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sam4mllm.cli.main import main
from sam4mllm.data.reading import read_dataset
from sam4mllm.data.sample import Sample
from sam4mllm.errors import DataError
from tests.data.tiny_datasets import write_image

WIDTH, HEIGHT = 40, 20
Read = Callable[..., list[Sample]]
# A ring of 5 x 4 pixels with a hole of 2, whose box begins at (3, 2).
RING = (
    '<mask label="ring" source="manual" occluded="0" rle="0, 6, 2, 12" left="3" top="2" width="5" height="4" '
    'z_order="0"></mask>'
)
TRIANGLE = '<polygon label="{}" occluded="0" points="{}" z_order="0"{}></polygon>'


@pytest.fixture
def read(tmp_path: Path) -> Read:
    write_image(tmp_path / "sub/a b.png", WIDTH, HEIGHT)

    def read(*shapes: str, name: str = "sub/a b.png", beginning: str = "", **arguments: Any) -> list[Sample]:
        image = f'<image id="4" name="{name}" width="{WIDTH}" height="{HEIGHT}">{"".join(shapes)}</image>'
        (tmp_path / "annotations.xml").write_text(
            f'<?xml version="1.0" encoding="utf-8"?>{beginning}<annotations><version>1.1</version>{image}</annotations>'
        )
        return read_dataset("cvat", path=tmp_path / "annotations.xml", **arguments)

    return read


def test_masks_keep_their_holes(read: Read) -> None:
    (sample,) = read(RING)
    expected = np.zeros((HEIGHT, WIDTH), dtype=bool)
    expected[2:6, 3:8] = True
    expected[3, 4:6] = False
    assert np.array_equal(sample.mask(), expected)
    assert (sample.id, sample.phrase, sample.image.name) == ("cvat/annotations/4/0", "ring", "a b.png")


def test_a_group_is_one_object_of_several_parts(read: Read) -> None:
    left, right = "1,1;9,1;9,9;1,9", "20,1;24,1;24,5;20,5"
    grouped = [TRIANGLE.format("cat", points, ' group_id="3"') for points in (left, right)]
    (sample,) = read(*grouped, TRIANGLE.format("cat", "30,1;32,1;32,3;30,3", ""))
    assert sorted(int(item.mask().sum()) for item in sample.objects) == [4, 64 + 16]
    samples = read(*(TRIANGLE.format("cat", points, ' group_id="0"') for points in (left, right)))
    assert len(samples[0].objects) == 2


def test_a_box_is_rotated_about_its_center(read: Read) -> None:
    box = '<box label="cat" occluded="0" xtl="10" ytl="4" xbr="22" ybr="10"{}></box>'
    (sample,) = read(box.format(""))
    assert list(sample.objects[0].box) == [10, 4, 22, 10] and not sample.has_masks
    (sample,) = read(box.format(' rotation="90.00"'))
    assert list(sample.objects[0].box) == pytest.approx([13, 1, 19, 13])


def test_an_ellipse_is_a_mask(read: Read) -> None:
    (sample,) = read('<ellipse label="sun" occluded="0" cx="20" cy="10" rx="8" ry="4" rotation="90"></ellipse>')
    rows, columns = np.nonzero(sample.mask())
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (16, 8)


def test_the_attribute_phrase_replaces_the_label_and_a_tag_states_that_there_is_no_object(read: Read) -> None:
    attribute = '<attribute name="phrase">the left ring</attribute>'
    tag = '<tag label="no object"><attribute name="phrase">the dragon</attribute></tag>'
    samples = read(RING.replace("</mask>", f"{attribute}</mask>"), tag, '<tag label="blurred"></tag>')
    assert [(each.phrase, len(each.objects)) for each in samples] == [("the left ring", 1), ("the dragon", 0)]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ('<points label="x" occluded="0" points="1,2"></points>', "the points of 'x': has no area"),
        (RING.replace("12", "11"), r"must fill its box of \(5, 4\).*found the sum 19"),
        (RING.replace('width="5"', 'width="41"'), "must fill its box"),
        (RING.replace('left="3"', 'left="36"'), "leaves the image"),
        (RING.replace('left="3"', 'left="x"'), "expected a number; found 'x'"),
        (RING.replace('left="3"', ""), "the element mask has no 'left'"),
        (TRIANGLE.format("x", "1,2;3,4", ""), "a polygon has three points"),
        (TRIANGLE.format("x", "1,2;3,4;nan,5", ""), "expected a finite number"),
    ],
)
def test_broken_shapes_are_refused(shape: str, message: str, read: Read) -> None:
    with pytest.raises(DataError, match=message):
        read(shape)


def test_files_of_other_content_are_refused(read: Read, tmp_path: Path) -> None:
    entity = '<!DOCTYPE a [<!ENTITY b "c">]>'
    with pytest.raises(DataError, match="defines a document type or entities"):
        read(RING, beginning=entity)
    # UTF-16 without its mark, which hides the document type from a search.
    (tmp_path / "wide.xml").write_bytes(f"{entity}<annotations/>".encode("utf-16-le"))
    with pytest.raises(DataError, match=r"wide\.xml: must be XML in UTF-8"):
        read_dataset("cvat", path=tmp_path / "wide.xml")
    with pytest.raises(DataError, match="leaves the folder of the images"):
        read(RING, name="../a.png")
    with pytest.raises(DataError, match=r"no shape in it"):
        read()
    for content, message in (
        ("<annotations><track/></annotations>", "tracks of a video"),
        ("<html></html>", "the element 'html'"),
        ("<annotations>", "must be XML"),
        ("PK\x03\x04", "zip archive; unpack it first"),
    ):
        (tmp_path / "x.xml").write_text(content)
        with pytest.raises(DataError, match=message):
            read_dataset("cvat", path=tmp_path / "x.xml")


def test_convert_writes_the_same_samples(read: Read, tmp_path: Path) -> None:
    samples = read(RING, TRIANGLE.format("cat", "1,1;9,1;9,9", ""))
    own = tmp_path / "own.jsonl"
    assert main(["convert", "--dataset", "cvat", "--path", str(tmp_path / "annotations.xml"), "-o", str(own)]) == 0
    assert read_dataset("jsonl", path=own) == samples
