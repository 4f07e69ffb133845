"""What an image's file says before its pixels: its size as it is seen, whatever the format and the EXIF."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from sam4mllm.data.image_header import known_size_wh
from sam4mllm.data.images import load_image
from sam4mllm.errors import DataError
from tests.data.tiny_datasets import write_broken_avif, write_image

# TIFF, which Pillow turns itself, beside those that are turned here.
FORMATS = ("jpg", "png", "webp", "tif")


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_is_that_of_the_image_as_it_is_loaded(tmp_path: Path, ending: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{ending}"
    Image.new("RGB", (30, 20)).save(path, exif=exif)
    height, width = load_image(path).shape[:2]
    assert known_size_wh(path) == (width, height) == ((20, 30) if orientation > 4 else (30, 20))


def test_exif_behind_the_pixels_of_a_png_turns_it_too(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = write_image(tmp_path / "a.png", 30, 20, exif=exif)
    content = path.read_bytes()
    start = content.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(content[start : start + 4], "big")
    path.write_bytes(content[:start] + content[end:-12] + content[start:end] + content[-12:])
    assert known_size_wh(path) == (20, 30) and load_image(path).shape == (30, 20, 3)


def test_a_png_cut_short_has_its_size_for_no_pixel_is_decoded(tmp_path: Path) -> None:
    path = write_image(tmp_path / "cut.png", 30, 20)
    path.write_bytes(path.read_bytes()[:50])
    assert known_size_wh(path) == (30, 20)
    with pytest.raises(DataError, match=r"cut\.png: the image is damaged"):
        load_image(path)


def test_what_is_no_image_has_no_size(tmp_path: Path) -> None:
    (tmp_path / "note.jpg").write_text("not an image")
    assert known_size_wh(tmp_path / "note.jpg") is known_size_wh(tmp_path / "nowhere.jpg") is None
    assert known_size_wh(write_broken_avif(tmp_path / "broken.avif")) is None
