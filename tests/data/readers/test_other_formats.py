"""Files of another format or encoding than a reader expects: one error that says what the file is and what to do."""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sam4mllm.data.reading import read_dataset
from sam4mllm.data.records import check_phrase
from sam4mllm.errors import DataError
from tests.data.tiny_datasets import (
    annotation,
    image_record,
    rectangle,
    ref,
    write_image,
    write_instances,
    write_reasonseg,
    write_refs,
)

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12345\n"
PAGE = b"\n<!DOCTYPE html>\n<html><body>404 Not Found</body></html>"
RECORD = b'{"image": "a.png", "phrase": "it"}'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (POINTER, "is a Git LFS pointer in place of the content; run `git lfs pull`"),
        (PAGE, "is an HTML or XML page, as failed downloads are; download the file again"),
        (b"[" + RECORD + b"]", r"is JSON; convert it with pickle.dump, or give the file refs\(...\).p"),
        (gzip.compress(b"anything", mtime=0), "is compressed with gzip; decompress it first"),
        (b"PK\x03\x04rest", "is a zip archive; unpack it first"),
        (b"", "is empty; download the file again"),
        (pickle.dumps([{"ref_id": 1}] * 9, protocol=2)[:-9], "is truncated; download it again"),
        (pickle.dumps([{"ref_id": 1}] * 9, protocol=4)[:20], "is truncated; download it again"),
    ],
)
def test_refs_of_another_format(tmp_path: Path, content: bytes, message: str) -> None:
    write_refs(tmp_path / "refcoco", [ref(1, 50, 5, "val", "it")])
    write_instances(tmp_path / "refcoco", [image_record(5)], [annotation(50, 5)])
    (tmp_path / "refcoco/refs(unc).p").write_bytes(content)
    with pytest.raises(DataError, match=rf"refs\(unc\)\.p: .* was not read: the file {message}"):
        read_dataset("refcoco", tmp_path, "val")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (POINTER, "is a Git LFS pointer"),
        (PAGE, "is an HTML or XML page"),
        (gzip.compress(b"[]", mtime=0), "is compressed with gzip"),
        (pickle.dumps([], protocol=2), "is a pickle"),
        ("[]".encode("utf-16"), "is text in UTF-16"),
    ],
)
def test_json_of_another_format(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "grefcoco").mkdir()
    (tmp_path / "grefcoco/grefs(unc).json").write_bytes(content)
    with pytest.raises(DataError, match=rf"grefs\(unc\)\.json: {message}"):
        read_dataset("grefcoco", tmp_path, "val")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n [" + RECORD + b",\n" + RECORD + b"]", "is a JSON list; write one record per line, without brackets"),
        (gzip.compress(RECORD, mtime=0), "is compressed with gzip; decompress it first"),
        (RECORD.decode().encode("utf-16"), "is text in UTF-16; save it as UTF-8"),
        (b"\x89PNG\r\n\x1a\n\x00", r"is a PNG image \(lines of JSON were expected\)"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", "is a JPEG image"),
        (POINTER, "is a Git LFS pointer"),
        (PAGE, "is an HTML or XML page"),
        (
            b'{"image": "a.png", "phrase": "it", "phrase": "that"}',
            "1 bad line: line 1: the field 'phrase' occurs twice; remove one",
        ),
        (
            b'{"image": "a.png", "phrase": "it", "masks": [{"size": [1, 1], "counts": [1], "counts": []}]}',
            "1 bad line: line 1: the field 'counts' occurs twice",
        ),
    ],
)
def test_json_lines_of_another_format(tmp_path: Path, content: bytes, message: str) -> None:
    write_image(tmp_path / "a.png")
    (tmp_path / "mine.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=rf"mine\.jsonl: {message}"):
        read_dataset("jsonl", path=tmp_path / "mine.jsonl")


def write_text(root: Path, text: str, encoding: str) -> None:
    write_reasonseg(root, "val", "s", ["x"], [rectangle("target", 2, 1, 5, 3)])
    file = root / "ReasonSeg/val/s.json"
    file.write_bytes(json.dumps(json.loads(file.read_text()) | {"text": [text]}, ensure_ascii=False).encode(encoding))


@pytest.mark.parametrize(
    ("text", "encoding"),
    [("图中的杯子", "gbk"), ("図の中のコップ", "shift-jis"), ("чашка", "cp1251"), ("図のカップ", "euc-jp")],
)
def test_a_text_in_another_encoding_is_not_read_as_cp1252(tmp_path: Path, text: str, encoding: str) -> None:
    write_text(tmp_path, text, encoding)
    with pytest.raises(DataError, match=r"s\.json: .* is neither UTF-8 nor English .* convert the file to UTF-8"):
        read_dataset("reasonseg", tmp_path, "val")
    write_text(tmp_path, text, "utf-8")
    assert read_dataset("reasonseg", tmp_path, "val")[0].phrase == text


@pytest.mark.parametrize("text", ["the café\u2019s sign", "what reads “it\u2019s…” here", "“a” \u2013 “b”"])
def test_english_in_cp1252_is_read(tmp_path: Path, text: str) -> None:
    write_text(tmp_path, text, "cp1252")
    assert read_dataset("reasonseg", tmp_path, "val")[0].phrase == text


def shape(kind: Any, *points: tuple[float, float]) -> dict[str, Any]:
    return {"label": "target", "shape_type": kind, "points": [list(point) for point in points]}


@pytest.mark.parametrize(
    ("target", "area"),
    [
        (shape("rectangle", (2, 1), (12, 7)), 11 * 7),
        (shape("rectangle", (12, 7), (2, 1)), 11 * 7),
        (shape("rectangle", (2, 1), (12, 1), (12, 7), (2, 7)), 11 * 7),
        (shape("polygon", (2, 1), (12, 1), (12, 7), (2, 7)), 11 * 7),
        (shape(None, (2, 1), (12, 1), (12, 7), (2, 7)), 11 * 7),
    ],
)
def test_polygons_and_rectangles_of_labelme_have_their_area(tmp_path: Path, target: dict[str, Any], area: int) -> None:
    write_reasonseg(tmp_path, "val", "s", ["x"], [target])
    assert int(read_dataset("reasonseg", tmp_path, "val")[0].mask().sum()) == area


@pytest.mark.parametrize("kind", ["circle", "line", "linestrip", "point", "points", "mask", "ellipse", 3])
def test_other_shapes_of_labelme_are_refused_with_file_and_shape(tmp_path: Path, kind: Any) -> None:
    flag = {**shape("point", (1, 1)), "label": "flag"}
    write_reasonseg(tmp_path, "val", "s", ["x"], [flag, shape(kind, (2, 1), (12, 7))])
    with pytest.raises(
        DataError, match=rf"s\.json, shape 1: the shape_type '?{kind}'? with 2 point\(s\) is not supported"
    ):
        read_dataset("reasonseg", tmp_path, "val")


def test_a_size_before_the_exif_rotation_is_explained(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    name = image_record(5)["file_name"]
    write_image(tmp_path / name, 20, 10, exif=exif)
    write_instances(tmp_path, [image_record(5)], [annotation(50, 5)])
    (tmp_path / "phrases.jsonl").write_text('{"phrase": "it", "annotation_id": 50}')
    (tmp_path / "mine.jsonl").write_text(json.dumps({"image": name, "phrase": "it", "size_wh": [20, 10]}))
    message = r"\(20, 10\), but .* is \(10, 20\) \(width, height\) after its EXIF orientation"
    with pytest.raises(DataError, match=f"annotated at {message}"):
        read_dataset("coco", path=tmp_path / "instances.json", phrases=tmp_path / "phrases.jsonl")
    with pytest.raises(DataError, match=f"line 1: size_wh is {message}"):
        read_dataset("jsonl", path=tmp_path / "mine.jsonl")


def test_an_image_that_is_too_large_is_not_called_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path / "a.png", 30, 20)
    (tmp_path / "mine.jsonl").write_bytes(RECORD)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 250)
    with pytest.raises(DataError, match=r"line 1: .*a\.png: the image is too large: 600 pixels, and at most 500 are"):
        read_dataset("jsonl", path=tmp_path / "mine.jsonl")


def test_a_phrase_of_other_bytes_than_utf_8_is_refused() -> None:
    phrase = b"the caf\xe9".decode("utf-8", "surrogateescape")
    with pytest.raises(DataError, match=r"PHRASE: the phrase is not UTF-8 \(character 8 is '\\udce9'\)"):
        check_phrase(phrase, "PHRASE")
    check_phrase("the café 图 🙂", "PHRASE")
