"""Files that are no usual image or mask: each has one meaning, or one error that names the file."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sam4mllm.data.images import check_image, known_size_wh, load_image
from sam4mllm.data.masks import area, mask_of_image
from sam4mllm.data.reading import read_dataset
from sam4mllm.errors import DataError
from tests.data.tiny_datasets import write_image

NOISE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def content(ending: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(NOISE).save(file, format=Image.registered_extensions()[f".{ending}"])
    return file.getvalue()


@pytest.mark.parametrize("ending", ["jpg", "png", "gif", "webp", "bmp", "tiff", "jp2", "avif", "ppm"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.9])
def test_a_truncated_image_of_any_format_is_one_error_with_its_name(tmp_path: Path, ending: str, share: float) -> None:
    whole = content(ending)
    file = tmp_path / f"cut.{ending}"
    file.write_bytes(whole[: int(share * len(whole))])
    lossy = ending in ("jpg", "jp2", "avif", "webp")
    for read in (load_image, check_image, *(() if lossy else (mask_of_image,))):
        with pytest.raises(DataError, match=rf"cut\.{ending}: (not an image|the image is damaged)"):
            read(file)


@pytest.mark.parametrize("ending", ["png", "gif", "webp", "tiff"])
def test_an_image_under_the_suffix_of_another_format_is_read_by_its_content(tmp_path: Path, ending: str) -> None:
    (tmp_path / "a.jpg").write_bytes(content(ending))
    pixels = load_image(tmp_path / "a.jpg")
    assert pixels.shape == (40, 60, 3) and abs(int(pixels.mean()) - int(NOISE.mean())) < 4


def frames(ending: str) -> Callable[[Path], None]:
    colors = [Image.new("RGB", (6, 4), color) for color in ("red", "blue")]
    options = {"quality": 100} if ending == "avif" else {"lossless": True} if ending == "webp" else {}
    return lambda path: colors[0].save(path, save_all=True, append_images=colors[1:], **options)


@pytest.mark.parametrize("ending", ["gif", "png", "webp", "tiff", "avif"])
def test_the_first_frame_of_an_animation_or_a_file_of_pages_is_the_image(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"a.{ending}"
    frames(ending)(file)
    pixels = load_image(file).astype(int)
    assert known_size_wh(file) == (6, 4) and pixels.shape == (4, 6, 3)
    assert np.abs(pixels - [255, 0, 0]).max() < 12


@pytest.mark.parametrize(
    ("mode", "ending", "color"),
    [
        ("CMYK", "jpg", (0, 255, 255, 0)),
        ("CMYK", "tiff", (0, 255, 255, 0)),
        ("YCbCr", "jpg", (76, 85, 255)),
        ("LAB", "tiff", (136, 208, 195)),
        ("P", "png", 0),
        ("P", "gif", 0),
        ("RGBA", "png", (255, 0, 0, 255)),
    ],
)
def test_images_of_other_color_models_are_converted(tmp_path: Path, mode: str, ending: str, color: object) -> None:
    image = Image.new(mode, (6, 4), color)  # type: ignore[arg-type]
    if mode == "P":
        image.putpalette([255, 0, 0])
    image.save(tmp_path / f"a.{ending}")
    pixels = load_image(tmp_path / f"a.{ending}").astype(int)
    assert np.abs(pixels - [255, 0, 0]).max() < 25


def test_images_of_one_pixel_and_one_row(tmp_path: Path) -> None:
    for size_wh in ((1, 1), (1, 500), (500, 1)):
        write_image(tmp_path / "a.png", *size_wh)
        assert (
            known_size_wh(tmp_path / "a.png") == size_wh and load_image(tmp_path / "a.png").shape[:2] == size_wh[::-1]
        )


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IEND", b"")]
    made = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(made)


def test_decompression_bombs_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    pixels = (b"IDAT", zlib.compress(bytes(10**6)))
    (tmp_path / "wide.png").write_bytes(png(100_000, 100_000, pixels))
    for read in (load_image, check_image, known_size_wh, mask_of_image):
        with pytest.raises(DataError, match=r"wide\.png: .*(too large|decompression bomb)"):
            read(tmp_path / "wide.png")
    text = (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(10**8)))
    (tmp_path / "text.png").write_bytes(png(10, 10, text, (b"IDAT", zlib.compress(bytes(110)))))
    with pytest.raises(DataError, match=r"text\.png: the image is damaged: Decompressed data too large"):
        load_image(tmp_path / "text.png")


def test_an_annotated_size_that_no_image_can_have_is_refused(tmp_path: Path) -> None:
    record = {"image": "gone.png", "phrase": "it", "size_wh": [50_000, 50_000], "masks": [[0, 0, 9, 0, 9, 9]]}
    (tmp_path / "mine.jsonl").write_text(json.dumps(record))
    with pytest.raises(DataError, match="line 1: sample jsonl/mine/1: the image has 50000 x 50000 pixels"):
        read_dataset("jsonl", path=tmp_path / "mine.jsonl")


def test_postscript_under_the_suffix_of_an_image_is_not_run(tmp_path: Path) -> None:
    Image.fromarray(NOISE).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.jpg")
    for read in (load_image, check_image, mask_of_image):
        with pytest.raises(DataError, match=r"a\.jpg: not an image"):
            read(tmp_path / "a.jpg")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.jpg", {}),
        ("a.jp2", {}),
        ("a.avif", {}),
        ("a.webp", {"quality": 80}),
        ("a.webp", {"save_all": True, "append_images": [Image.new("RGB", (60, 40))]}),
    ],
)
def test_a_mask_in_a_lossy_format_is_refused(tmp_path: Path, name: str, options: dict[str, object]) -> None:
    Image.fromarray(NOISE).save(tmp_path / name, **options)
    with pytest.raises(DataError, match=r"a\.\w+: the compression noise of \w+ adds pixels to the mask"):
        mask_of_image(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "mode", "options"),
    [
        ("a.png", "1", {}),
        ("a.png", "L", {}),
        ("a.png", "P", {}),
        ("a.png", "RGBA", {}),
        ("a.png", "I;16", {}),
        ("a.bmp", "L", {}),
        ("a.tiff", "I;16", {}),
        ("a.gif", "P", {}),
        ("a.webp", "RGB", {"lossless": True}),
        ("a.webp", "RGB", {"lossless": True, "icc_profile": bytes(301)}),
        ("a.webp", "RGBA", {"lossless": True}),
    ],
)
def test_a_mask_in_a_lossless_format_has_its_pixels(
    tmp_path: Path, name: str, mode: str, options: dict[str, object]
) -> None:
    mask = np.zeros((40, 60), dtype=np.uint8)
    mask[3:8, 2:12] = 1
    image = Image.fromarray(mask * 255).convert("L")
    if mode == "I;16":
        image = Image.fromarray(mask.astype(np.uint16) * 3)
    elif mode == "P":
        image = Image.fromarray(mask)
        image.putpalette([0, 0, 0, 0, 0, 0])
    elif mode == "RGBA":
        image.putalpha(Image.fromarray(mask * 255))
        image = image.convert("RGBA")
    else:
        image = image.convert(mode)
    image.save(tmp_path / name, **options)
    rle = mask_of_image(tmp_path / name)
    assert (rle["size"], area(rle)) == ([40, 60], 50)
    assert mask_of_image(io.BytesIO((tmp_path / name).read_bytes())) == rle
