"""Queries in Parquet and images that are not local files: what is read, and what is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from sam4mllm.data.image_sources import ImageCell, ImageUrl, image_source
from sam4mllm.data.images import load_image
from sam4mllm.data.predictions import PredictionLine, Query, prediction_from_json
from sam4mllm.data.query_files import read_queries
from sam4mllm.errors import DataError
from sam4mllm.pipeline.image_files import DecodedImage


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 6, 3), value, dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, images: list[Any], **columns: list[Any]) -> Path:
    ids = [str(index) for index in range(len(images))]
    content = {"id": ids, "image": images, "phrase": ["thing"] * len(images)} | columns
    parquet.write_table(pyarrow.table(content), path, row_group_size=2)
    return path


def test_rows_with_paths_and_urls_are_those_of_json_lines(tmp_path: Path) -> None:
    images = ["a.png", "s3://bucket/b.png", "b//c.png"]
    lines = [{"id": str(index), "image": image, "phrase": "thing"} for index, image in enumerate(images)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    queries = read_queries(write(tmp_path / "q.parquet", images))
    assert queries == read_queries(tmp_path / "q.jsonl")
    assert queries[0].image == Path("a.png") and queries[1].image == ImageUrl("s3://bucket/b.png")
    assert queries[1].to_json()["image"] == "s3://bucket/b.png"


@pytest.mark.parametrize("as_struct", [False, True])
def test_bytes_in_a_column_are_read_when_they_are_needed(as_struct: bool, tmp_path: Path) -> None:
    contents: list[Any] = [png(value) for value in range(5)]
    if as_struct:
        (tmp_path / "4.png").write_bytes(contents[4])
        contents = [{"bytes": each, "path": None} for each in contents[:4]]
        contents.append({"bytes": None, "path": str(tmp_path / "4.png")})
    file = write(tmp_path / "q.parquet", contents)
    queries = read_queries(file)
    assert queries[3] == Query("3", ImageCell(file, 3), "thing") and str(queries[3].image) == f"{file}#3"
    for value, query in enumerate(queries):
        decoded = DecodedImage.load(query.image)
        assert decoded.pixels is not None and (decoded.pixels == value).all() and decoded.pixels.shape == (4, 6, 3)
        assert decoded.version is not None and decoded.version.size == len(png(value))


@pytest.mark.parametrize("folder", ["file://{folder}", "memory://test_query_files"])
def test_an_image_at_a_url_is_loaded_by_fsspec(folder: str, tmp_path: Path) -> None:
    url = f"{folder.format(folder=tmp_path)}/a.png"
    with fsspec.open(url, "wb") as file:
        file.write(png(7))
    assert (load_image(image_source(url)) == 7).all()


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        (ImageUrl("file:///nowhere/a.png"), "file:///nowhere/a.png: cannot be read: FileNotFoundError"),
        (ImageUrl("memory://nothing"), "memory://nothing: cannot be read: FileNotFoundError"),
        (ImageCell(Path("nowhere.parquet"), 0), "nowhere.parquet#0: cannot be read"),
        (ImageCell(Path("{folder}/q.parquet"), 1), "q.parquet#1: the row has no image"),
        (ImageCell(Path("{folder}/q.parquet"), 2), "q.parquet#2: not an image that can be read"),
        (ImageCell(Path("{folder}/q.parquet"), 3), "q.parquet#3: the file has 3 rows"),
    ],
)
def test_an_image_that_cannot_be_read_has_an_error(image: Any, problem: str, tmp_path: Path) -> None:
    write(tmp_path / "q.parquet", [png(1), None, b"no image"])
    if isinstance(image, ImageCell):
        image = ImageCell(Path(str(image.file).format(folder=tmp_path)), image.row)
    decoded = DecodedImage.load(image)
    assert decoded.pixels is None and problem in (decoded.error or "")


@pytest.mark.parametrize(
    ("images", "columns", "problem"),
    [
        ([1, 2], {}, "the column image holds paths, URLs or bytes; found int64"),
        (["a", "b"], {"phrase": ["thing", " "]}, "1 bad entry: entry 2: query '1': the phrase is empty"),
        (["a", "b"], {"id": ["1", "1"]}, "1 bad entry: entry 2: the id '1' is also in entry 1"),
        (["a", None], {}, "entry 2: the field 'image' must be text; found None"),
        (["nosuch://a", "b"], {}, "entry 1: the URL 'nosuch://a' has a protocol that fsspec does not know"),
        ([], {}, "no query in it"),
    ],
)
def test_rows_that_are_no_queries_are_refused(
    images: list[Any], columns: dict[str, list[Any]], problem: str, tmp_path: Path
) -> None:
    file = tmp_path / "q.parquet"
    if images:
        write(file, images, **columns)
    else:
        schema = pyarrow.schema([(name, pyarrow.string()) for name in ("id", "image", "phrase")])
        parquet.write_table(schema.empty_table(), file)
    with pytest.raises(DataError) as caught:
        read_queries(file)
    assert problem in str(caught.value)


def test_files_that_are_no_parquet_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read_queries(tmp_path / "q.parquet")
    (tmp_path / "q.parquet").write_text("{}")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read_queries(tmp_path / "q.parquet")
    parquet.write_table(pyarrow.table({"id": ["1"], "text": ["a"]}), tmp_path / "q.parquet")
    with pytest.raises(DataError, match="no column image, phrase; found id, text"):
        read_queries(tmp_path / "q.parquet")


def test_a_url_stays_as_it_is_in_predictions() -> None:
    line = PredictionLine("1", "no_object", image=ImageUrl("s3://bucket/a.png"), phrase="thing")
    assert prediction_from_json(line.to_json()).image == line.image
