"""Images where they enter: what is read, how it is turned, what is refused and in which words."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sam4mllm.data.images import as_rgb, load_image
from sam4mllm.errors import DataError
from tests.data.tiny_datasets import write_broken_avif


def test_an_exif_turn_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (30, 20), "black")
    image.paste("white", (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    image.save(tmp_path / "turned.png", exif=exif)
    upright = load_image(tmp_path / "turned.png")
    assert upright.shape == (30, 20, 3)
    assert upright[0, -1].min() == 255 and upright[-1, 0].max() == 0


@pytest.mark.parametrize("ending", ["jpg", "webp"])
def test_a_turned_photo_with_a_tag_of_the_wrong_type_is_read(tmp_path: Path, ending: str) -> None:
    orientation, unit_as_text = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0), struct.pack(">HHI4s", 0x0128, 2, 2, b"2")
    exif = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 2) + orientation + unit_as_text + bytes(4)
    Image.new("RGB", (30, 20)).save(tmp_path / f"odd.{ending}", exif=exif)
    assert load_image(tmp_path / f"odd.{ending}").shape == (30, 20, 3)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb_uint8(mode: str) -> None:
    pixels = as_rgb(Image.new(mode, (7, 5)))
    assert pixels.shape == (5, 7, 3) and pixels.dtype == np.uint8


def test_what_is_transparent_is_white() -> None:
    assert as_rgb(Image.new("RGBA", (2, 2), (0, 0, 0, 0))).min() == 255


def test_sixteen_bits_are_brought_down_not_cut_off() -> None:
    image = Image.fromarray(np.full((2, 2), 0x8000, dtype=np.uint16))
    assert int(as_rgb(image)[0, 0, 0]) == 0x80


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jpg: no such file"):
        load_image(tmp_path / "nowhere.jpg")
    with pytest.raises(DataError, match="no such file"):
        load_image(tmp_path / ("iVBORw0KG" * 60))


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "note.jpg").write_text("not an image")
    with pytest.raises(DataError, match=r"note\.jpg: not an image"):
        load_image(tmp_path / "note.jpg")


def test_a_image_cut_short_is_damaged_not_half_black(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(DataError, match=r"cut\.jpg: the image is damaged"):
        load_image(path)


def test_what_a_decoder_trips_over_is_told_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"broken\.avif: the image is damaged: \w+"):
        load_image(write_broken_avif(tmp_path / "broken.avif"))


@pytest.mark.parametrize(
    "array",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)],
)
def test_an_array_of_another_kind_is_refused_with_its_shape(array: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"\(H, W, 3\) uint8"):
        as_rgb(array)
