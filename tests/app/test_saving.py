"""Corrected answers as lines of a data set, with their images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sam4mllm.app.saving import CorrectedData, default_name
from sam4mllm.data.reading import read_dataset
from sam4mllm.errors import DataError
from sam4mllm.utils.atomic_io import file_sha256
from tests.data.tiny_datasets import write_image

SIZE_WH = (20, 10)


def mask(column: int = 2) -> np.ndarray:
    drawn = np.zeros((10, 20), dtype=bool)
    drawn[1:5, column : column + 3] = True
    return drawn


def test_saved_answers_are_read_as_a_data_set(tmp_path: Path) -> None:
    image = write_image(tmp_path / "uploads/my photo.jpg")
    (tmp_path / "mine").mkdir()
    data = CorrectedData(tmp_path / "mine/data.jsonl")
    copy, count = data.save(image, SIZE_WH, "the cat", [mask(2), mask(9)])
    assert count == 1 and copy.read_bytes() == image.read_bytes()
    assert copy.relative_to(tmp_path).as_posix() == f"mine/images/my-photo-{file_sha256(image)[:8]}.jpg"
    assert data.save(image, SIZE_WH, "the dog", [])[1] == 2
    cat, dog = read_dataset("jsonl", path=data.file)
    assert [each.phrase for each in (cat, dog)] == ["the cat", "the dog"] and not dog.objects
    assert [np.array_equal(item.mask(), drawn) for item, drawn in zip(cat.objects, [mask(2), mask(9)], strict=True)]
    assert cat.objects[1].box == (9, 1, 12, 5) and cat.size_wh == SIZE_WH and cat.image == copy
    assert not list((tmp_path / "mine").rglob("*.tmp*"))


def test_an_answer_to_the_same_phrase_is_replaced_and_other_lines_keep_their_bytes(tmp_path: Path) -> None:
    image = write_image(tmp_path / "uploads/a.png")
    file = tmp_path / "data.jsonl"
    # The user's own lines: odd spaces, a line that is not JSON, no line end after the last one.
    own = b'{"image":  "images/b.png", "phrase": "the cat"}\nnot json\n[1]\n{"image": "x.png", "phrases": ["y"]}'
    file.write_bytes(own)
    data = CorrectedData(file)
    data.save(image, SIZE_WH, "the cat", [mask(2)], "a")
    data.save(image, SIZE_WH, "the dog", [mask(2)], "a")
    assert data.save(image, SIZE_WH, "the cat", [mask(9)], "a")[1] == 6
    lines = file.read_bytes().splitlines()
    assert lines[:4] == own.splitlines()
    assert [json.loads(line)["phrase"] for line in lines[4:]] == ["the dog", "the cat"]
    assert json.loads(lines[5])["boxes"] == [[9, 1, 12, 5]]


def test_the_name_of_the_image_is_checked(tmp_path: Path) -> None:
    data = CorrectedData(tmp_path / "data.jsonl")
    image, other = write_image(tmp_path / "a.png"), write_image(tmp_path / "b.png", 30, 10)
    for name in ("../a", "a/b", "", ".a"):
        with pytest.raises(DataError, match="not a valid name"):
            data.save(image, SIZE_WH, "x", [], name)
    assert data.save(image, SIZE_WH, "x", [], "street")[0] == tmp_path / "images/street.png"
    with pytest.raises(DataError, match=r"another image 'street\.png'; give another name"):
        data.save(other, (30, 10), "x", [], "street")
    # A link could lead to any file.
    (tmp_path / "images/link.png").symlink_to(tmp_path / "a.png")
    with pytest.raises(DataError, match="another image"):
        data.save(image, SIZE_WH, "x", [], "link")
    assert len(data.file.read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.jpg", "a"), ("../../etc/passwd", "passwd"), ("é ü.png", "image"), ("-.png", "image"), ("x" * 300, "x" * 80)],
)
def test_the_default_name_is_valid_for_any_upload(name: str, expected: str) -> None:
    assert default_name(name, "0123456789") == f"{expected}-01234567"
