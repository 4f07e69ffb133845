"""Reading files of queries: JSON lines, or Parquet, whose images may be bytes in the file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from sam4mllm.data.image_sources import ImageCell, ImageSource, ImageUrl, check_protocol, image_source
from sam4mllm.data.predictions import Query
from sam4mllm.data.records import (
    Record,
    Text,
    check_not_empty,
    check_phrase,
    parse_record,
    raise_problems,
    read_lines,
    shorten,
)
from sam4mllm.errors import DataError
from sam4mllm.utils.paths import with_start

PARQUET = ".parquet"
"""The suffix by which a file of queries in Parquet is recognized."""

_COLUMNS = ("id", "image", "phrase")
_ROWS = 10_000


class _QueryRecord(Record):
    id: Text
    image: Text
    phrase: Text


def read_queries(path: Path) -> list[Query]:
    """Read all queries of a queries.jsonl or a .parquet file, in order; blank lines are skipped.

    A JSON line is `{"id": text, "image": path or URL, "phrase": text}`. A Parquet file has these columns; its images
    may be bytes as well (binary, or the struct of bytes and path that `datasets` writes), which stay in the file until
    they are needed.

    Raises:
        DataError: No such file, no query in it, or bad lines (all are counted, the first ten listed): not a JSON
            object, a field missing or of another type, an empty phrase, a URL whose protocol fsspec does not know, an
            id that an earlier line has. Or a Parquet file without these columns, or with images of another type.
    """
    problems: list[DataError] = []
    if path.suffix == PARQUET:
        return _checked(path, _rows(path, problems), problems, "entry")
    return _checked(path, read_lines(path, _query, problems), problems, "line")


def _checked(
    path: Path, numbered: Iterable[tuple[int, Query]], problems: list[DataError], unit: Literal["line", "entry"]
) -> list[Query]:
    """Return the queries, whose ids are unique."""
    first_lines: dict[str, int] = {}
    images: dict[ImageSource, ImageSource] = {}
    queries: list[Query] = []
    for number, query in numbered:
        if query.id in first_lines:
            problems.append(
                DataError(f"{unit} {number}: the id {query.id!r} is also in {unit} {first_lines[query.id]}")
            )
        first_lines.setdefault(query.id, number)
        # All queries about an image share one path: a Path takes more memory than the rest of a query.
        queries.append(replace(query, image=images.setdefault(query.image, query.image)))
    raise_problems(path, problems, unit=unit)
    if not queries:
        raise DataError(f'{path}: no query in it; a line is {{"id": text, "image": path, "phrase": text}}')
    return queries


def _query(value: object) -> Query:
    record = parse_record(_QueryRecord, value)
    where = f"query {shorten(record.id)}"
    check_phrase(check_not_empty(record.phrase, where), where)
    image = image_source(record.image)
    if isinstance(image, ImageUrl):
        check_protocol(image.url)
    return Query(record.id, image, record.phrase)


def _rows(path: Path, problems: list[DataError]) -> Iterator[tuple[int, Query]]:
    """Yield the numbers of rows (from 1) and their queries; the problems of invalid rows are appended to `problems`."""
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise DataError(f"{with_start(path)}: cannot be read as Parquet: {error}") from error
    with file:
        in_file = _has_bytes(path, file.schema_arrow)
        columns = [name for name in _COLUMNS if name != "image" or not in_file]
        number = 0
        for batch in file.iter_batches(_ROWS, columns=columns):
            for row in batch.to_pylist():
                number += 1
                try:
                    cell = ImageCell(path, number - 1) if in_file else None
                    query = _query(row if cell is None else {**row, "image": ""})
                except DataError as error:
                    problems.append(DataError(f"entry {number}: {error}", error.kind))
                    continue
                yield number, query if cell is None else replace(query, image=cell)


def _has_bytes(path: Path, schema: Any) -> bool:
    """Return whether the images are in the file; False for paths and URLs.

    Raises:
        DataError: A column is missing, or the images are of another type.
    """
    from pyarrow import types

    if missing := [name for name in _COLUMNS if name not in schema.names]:
        raise DataError(f"{path}: no column {', '.join(missing)}; found {', '.join(schema.names)}")
    kind = schema.field("image").type
    if types.is_string(kind) or types.is_large_string(kind):
        return False
    if types.is_struct(kind) and "bytes" in [kind.field(index).name for index in range(kind.num_fields)]:
        return True
    if types.is_binary(kind) or types.is_large_binary(kind):
        return True
    raise DataError(f"{path}: the column image holds paths, URLs or bytes; found {kind}")
