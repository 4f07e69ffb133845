"""Image input: which files and arrays are accepted, how EXIF orientation is applied, and what errors say."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sam4mllm.data.images import as_rgb, check_image, known_size_wh, load_image, size_wh_of
from sam4mllm.errors import DataError
from tests.data.tiny_datasets import write_broken_avif, write_image


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (30, 20), "black")
    image.paste("white", (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # upright after a rotation by 90 degrees clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    upright = load_image(tmp_path / "turned.png")
    assert upright.shape == (30, 20, 3)
    assert upright[0, -1].min() == 255 and upright[-1, 0].max() == 0


@pytest.mark.parametrize("ending", ["jpg", "webp"])
def test_the_orientation_is_read_from_exif_data_with_a_tag_of_the_wrong_type(tmp_path: Path, ending: str) -> None:
    orientation, unit_as_text = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0), struct.pack(">HHI4s", 0x0128, 2, 2, b"2")
    exif = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 2) + orientation + unit_as_text + bytes(4)
    Image.new("RGB", (30, 20)).save(tmp_path / f"odd.{ending}", exif=exif)
    assert load_image(tmp_path / f"odd.{ending}").shape == (30, 20, 3)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb_uint8(mode: str) -> None:
    pixels = as_rgb(Image.new(mode, (7, 5)))
    assert pixels.shape == (5, 7, 3) and pixels.dtype == np.uint8


def test_transparent_pixels_become_white() -> None:
    assert as_rgb(Image.new("RGBA", (2, 2), (0, 0, 0, 0))).min() == 255


def test_sixteen_bits_are_scaled_to_eight() -> None:
    image = Image.fromarray(np.full((2, 2), 0x8000, dtype=np.uint16))
    assert int(as_rgb(image)[0, 0, 0]) == 0x80


RAMP = np.tile(np.arange(256, dtype=np.uint16), (4, 1))


@pytest.mark.parametrize("name", ["a.pgm", "a.png", "a.tif"])
def test_a_file_with_sixteen_bits_has_the_brightness_of_one_with_eight(tmp_path: Path, name: str) -> None:
    sixteen = RAMP * 257
    if name == "a.pgm":
        (tmp_path / name).write_bytes(b"P5 256 4 65535\n" + sixteen.astype(">u2").tobytes())
    else:
        Image.fromarray(sixteen).save(tmp_path / name)
    assert (load_image(tmp_path / name)[:, :, 0] == RAMP).all()


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_an_image_with_pixels_of_32_bits_is_refused_by_its_name(tmp_path: Path, dtype: type) -> None:
    Image.fromarray(RAMP.astype(dtype)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif: the image has pixels of 32 bits .* convert it to 8 bits"):
        load_image(tmp_path / "a.tif")


def test_an_image_of_too_many_pixels_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path / "a.png", 30, 20)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 250)
    for read in (load_image, known_size_wh):
        with pytest.raises(DataError, match=r"a\.png: the image is too large: 600 pixels, and at most 500 are supp"):
            read(tmp_path / "a.png")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jpg: no such file"):
        load_image(tmp_path / "nowhere.jpg")
    with pytest.raises(DataError, match="no such file"):
        load_image(tmp_path / ("iVBORw0KG" * 60))


def test_a_file_that_is_not_an_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "note.jpg").write_text("not an image")
    with pytest.raises(DataError, match=r"note\.jpg: not an image"):
        load_image(tmp_path / "note.jpg")


def test_a_truncated_jpeg_is_reported_as_damaged(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(DataError, match=r"cut\.jpg: the image is damaged"):
        load_image(path)


def test_a_decoding_error_is_reported_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"broken\.avif: the image is damaged: \w+"):
        load_image(write_broken_avif(tmp_path / "broken.avif"))


@pytest.mark.parametrize(
    "array",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)],
)
def test_an_array_of_another_shape_or_dtype_is_refused(array: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"\(H, W, 3\) uint8"):
        as_rgb(array)


# Pillow applies the orientation of a TIFF itself; for the other formats, images.py does.
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


def test_exif_data_behind_the_pixels_of_a_png_are_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = write_image(tmp_path / "a.png", 30, 20, exif=exif)
    content = path.read_bytes()
    start = content.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(content[start : start + 4], "big")
    path.write_bytes(content[:start] + content[end:-12] + content[start:end] + content[-12:])
    assert known_size_wh(path) == (20, 30) and load_image(path).shape == (30, 20, 3)


def test_the_size_of_a_truncated_png_is_known(tmp_path: Path) -> None:
    path = write_image(tmp_path / "cut.png", 30, 20)
    path.write_bytes(path.read_bytes()[:50])
    assert known_size_wh(path) == (30, 20)
    with pytest.raises(DataError, match=r"cut\.png: the image is damaged"):
        load_image(path)


def test_the_size_of_a_file_that_is_not_an_image_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "note.jpg").write_text("not an image")
    assert known_size_wh(tmp_path / "note.jpg") is known_size_wh(tmp_path / "nowhere.jpg") is None
    assert known_size_wh(write_broken_avif(tmp_path / "broken.avif")) is None


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "gif", "bmp", "tif"])
def test_the_check_refuses_the_files_that_loading_refuses(tmp_path: Path, ending: str, orientation: int) -> None:
    path = tmp_path / f"a.{ending}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    noise = np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, exif=exif)
    assert check_image(path) == load_image(path).shape[1::-1] == known_size_wh(path)
    content = path.read_bytes()
    verdicts = set()
    for length in range(0, len(content), 1 + len(content) // 25):
        path.write_bytes(content[:length])
        verdicts.add((error_of(check_image, path), error_of(load_image, path)))
    assert {checked for checked, _ in verdicts} == {loaded for _, loaded in verdicts}
    assert all((checked is None) == (loaded is None) for checked, loaded in verdicts)


def error_of(function: Callable[[Path], object], path: Path) -> str | None:
    try:
        function(path)
    except DataError as error:
        return str(error)
    return None


def test_the_check_refuses_pixels_of_32_bits(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 5), dtype=np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif: the image has pixels of 32 bits"):
        check_image(tmp_path / "a.tif")


def test_the_size_of_an_image_in_memory_or_of_a_file(tmp_path: Path) -> None:
    array = np.zeros((3, 5, 3), np.uint8)
    Image.fromarray(array).save(tmp_path / "a.png")
    for image in (array, Image.fromarray(array), tmp_path / "a.png", str(tmp_path / "a.png")):
        assert size_wh_of(image) == (5, 3)
    assert size_wh_of(tmp_path / "missing.png") is None
    with pytest.raises(DataError, match="an image array is"):
        size_wh_of(array[..., 0])
