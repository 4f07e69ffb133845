"""Images decoded ahead: in order and bounded in number, whatever the timing; and replaced files are recognized."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sam4mllm.pipeline import image_files
from sam4mllm.pipeline.image_files import DecodedImage, ImageVersion, ReadAhead


def write_images(folder: Path, count: int) -> list[Path]:
    files = [folder / f"{number}.png" for number in range(count)]
    for number, file in enumerate(files):
        Image.fromarray(np.full((4, 4, 3), number, dtype=np.uint8)).save(file)
    return files


def values(images: list[DecodedImage]) -> list[int]:
    return [int(image.pixels[0, 0, 0]) for image in images if image.pixels is not None]


def test_images_come_in_order_though_threads_finish_in_reverse(tmp_path, monkeypatch) -> None:
    files = write_images(tmp_path, 8)
    finished = {file: threading.Event() for file in files}
    order: list[Path] = []
    load = image_files.load_image

    def after_the_next(path: Path):  # type: ignore[no-untyped-def]
        number = files.index(path)
        if number % 2 == 0:
            assert finished[files[number + 1]].wait(60)
        pixels = load(path)
        order.append(path)
        finished[path].set()
        return pixels

    monkeypatch.setattr(image_files, "load_image", after_the_next)
    with ReadAhead(ahead=8) as ahead:
        ahead.add(files)
        assert values(ahead.first(3)) == [0, 1, 2]
        assert values(ahead.first(2)) == [0, 1], "images stay until they are dropped"
        ahead.drop(3)
        assert values(ahead.first(5)) == [3, 4, 5, 6, 7]
    assert order.index(files[1]) < order.index(files[0])


def test_no_more_than_the_asked_images_and_those_ahead_are_decoded(tmp_path, monkeypatch) -> None:
    files = write_images(tmp_path, 12)
    begun: list[Path] = []
    load = image_files.load_image
    monkeypatch.setattr(image_files, "load_image", lambda path: begun.append(path) or load(path))
    with ReadAhead(ahead=3) as ahead:
        ahead.add(files[:7])
        ahead.add(files[7:])
        for step in range(5):
            assert values(ahead.first(2)) == [2 * step, 2 * step + 1]
            assert len(begun) <= 2 * step + 5
            ahead.drop(2)
    # At the end, images that no thread has begun are given up.
    assert len(begun) <= 2 * 4 + 5


def test_an_image_that_cannot_be_read_has_a_reason(tmp_path: Path) -> None:
    (file,) = write_images(tmp_path, 1)
    (tmp_path / "text.png").write_text("not an image")
    with ReadAhead(ahead=1) as ahead:
        ahead.add([tmp_path / "none.png", tmp_path / "text.png", file])
        missing, text, good = ahead.first(3)
    assert missing.pixels is None and missing.version is None and "no such file" in (missing.error or "")
    assert text.pixels is None and text.version is not None and "not an image" in (text.error or "")
    assert good.error is None and good.version == ImageVersion.of(file)


def test_an_image_that_cannot_be_opened_has_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (file,) = write_images(tmp_path, 1)

    def refuse(self: Path, *arguments: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr("sam4mllm.data.images.open_image", refuse)
    image = DecodedImage.load(file)
    assert image.pixels is None and image.version is None and "Permission denied" in (image.error or "")


@pytest.mark.parametrize("name", ["n" * 300, "a\0b"])
def test_a_name_that_the_system_rejects_has_a_reason(tmp_path: Path, name: str) -> None:
    image = DecodedImage.load(tmp_path / name)
    assert image.version is None and "no such file" in (image.error or "")


def other_bytes(file: Path) -> None:
    file.write_bytes(b"others")


def same_size_and_time(file: Path) -> None:
    status = file.stat()
    file.write_bytes(b"B" * status.st_size)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def another_file(file: Path) -> None:
    status = file.stat()
    new = file.with_suffix(".new")
    new.write_bytes(b"B" * status.st_size)
    os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(new, file)


def touched(file: Path) -> None:
    os.utime(file, ns=(1, 1))


def copied(file: Path) -> None:
    new = file.with_suffix(".new")
    new.write_bytes(file.read_bytes())
    os.replace(new, file)


@pytest.mark.parametrize(
    ("change", "replaced"),
    [
        (other_bytes, True),
        (same_size_and_time, True),
        (another_file, True),
        (touched, False),
        (copied, False),
        (Path.unlink, False),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_the_bytes_decide_where_the_record_differs(tmp_path: Path, change, replaced: bool) -> None:
    file = tmp_path / "image"
    file.write_bytes(b"A" * 100)
    version = ImageVersion.from_json(ImageVersion.of(file).to_json())
    change(file)
    assert version.was_replaced(file) is replaced


def test_bytes_are_read_only_where_the_record_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (file,) = write_images(tmp_path, 1)
    version = ImageVersion.of(file)
    # Earlier versions recorded the digest alone, so the bytes are read.
    assert not ImageVersion.from_json(version.sha256).was_replaced(file)
    monkeypatch.setattr(image_files, "file_sha256", lambda path: pytest.fail("the bytes were read"))
    assert not version.was_replaced(file)
