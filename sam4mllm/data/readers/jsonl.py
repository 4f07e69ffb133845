"""Readers of custom data as JSONL, phrases or grounded captions, and a writer of phrases.

A line of phrases is a record of `custom_record.py`.

A line of grounded captions names the phrases of the caption, in its order, with the masks or boxes of their objects in
the forms of `custom_record.py`:

    {"image": path, "caption": text, "mentions": [{"phrase": text, "masks": [...] | "boxes": [...]}, ...]}

with an optional `id`, `size_wh`, and `object_ids` of a mention. Relative paths start from the file's folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from sam4mllm.data.grounded_caption import GroundedCaption, Mention
from sam4mllm.data.json_lines import dump_object
from sam4mllm.data.problems import SKIP_ADVICE, naming
from sam4mllm.data.readers.custom_record import CustomRecordParser, record_of, samples_of_lines
from sam4mllm.data.records import (
    Record,
    Text,
    check_not_empty,
    check_phrase,
    parse_record,
    raise_problems,
    read_lines,
    record_problem,
    shorten,
)
from sam4mllm.data.registry import DatasetRow
from sam4mllm.data.sample import Sample
from sam4mllm.errors import DataError
from sam4mllm.utils.atomic_io import atomic_path, check_folder_of


class _CaptionRecord(Record):
    model_config = ConfigDict(extra="forbid")

    image: Text
    caption: Text
    mentions: list[dict[str, Any]]
    id: Text | None = None
    size_wh: list[int] | None = None


def read(row: DatasetRow, *, path: Path, images: Path | None = None, limit: int | None = None) -> list[Sample]:
    """Read the samples of a file, in its order; ids are the records' own, or `jsonl/{file stem}/{line}`.

    Args:
        row: The data set's row of the table.
        path: The file.
        images: The folder that relative image paths start from; None for the file's folder.
        limit: The maximum number of samples, from the beginning; no line after them is read.

    Raises:
        DataError: No such file, no sample in it, or bad lines (all are counted, the first ten listed).
    """
    parser = CustomRecordParser(
        f"jsonl/{path.stem}", path.parent if images is None else images, path.parent, f"{path}, line"
    )
    empty = 'no sample in it; a line is {"image": path, "phrase": text, "masks": [mask, ...]}'
    return samples_of_lines(path, parser.samples, limit, empty=empty)


def captions(
    row: DatasetRow, *, path: Path, images: Path | None = None, limit: int | None = None
) -> list[GroundedCaption]:
    """Read the grounded captions of a file, in its order; ids are the records' own, or `jsonl/{file stem}/{line}`.

    Args:
        row: The data set's row of the table.
        path: The file.
        images: The folder that relative image paths start from; None for the file's folder.
        limit: The maximum number of captions, from the beginning; no line after them is read.

    Raises:
        DataError: No such file, no caption in it, or bad lines (all are counted, the first ten listed): a field that is
            missing or invalid, a phrase that the caption does not have behind the previous one, or one without objects.
    """
    name = f"jsonl/{path.stem}"
    parser = CustomRecordParser(name, path.parent if images is None else images, path.parent, f"{path}, line")
    found: dict[str, GroundedCaption] = {}
    problems: list[DataError] = []
    for number, record in read_lines(path, lambda line: parse_record(_CaptionRecord, line), problems):
        try:
            caption = _caption(record, f"{name}/{number}", parser, number)
            if caption.id in found:
                raise DataError(f"the id {caption.id!r} is also in {found[caption.id].source}", "duplicate")
        # OverflowError: a number with more digits than pycocotools supports.
        except (DataError, ValueError, OverflowError) as error:
            problems.append(record_problem("line", number, error))
            continue
        found[caption.id] = caption
        if len(found) == limit:
            break
    raise_problems(path, problems, advice=SKIP_ADVICE)
    if not found and not problems:
        raise DataError(f'{path}: no caption in it; a line is {{"image": path, "caption": text, "mentions": [...]}}')
    return list(found.values())


def _caption(record: _CaptionRecord, default_id: str, parser: CustomRecordParser, number: int) -> GroundedCaption:
    check_phrase(check_not_empty(record.caption), "the caption")
    size: dict[str, Any] = {} if record.size_wh is None else {"size_wh": record.size_wh}
    # A sample without objects has the checks of the image, also if there is no mention.
    (whole,) = parser.samples({"image": record.image, "phrase": record.caption, **size}, number)
    mentions = []
    end = 0
    for index, value in enumerate(record.mentions):
        with naming(f"mentions[{index}]"):
            (sample,) = parser.samples({**value, "image": record.image, **size}, number)
            start = record.caption.find(sample.phrase, end)
            if start < 0:
                raise DataError(
                    f"the phrase {shorten(sample.phrase)} is not in the rest of the caption, "
                    f"{shorten(record.caption[end:])}; list mentions in the order of the caption",
                    "phrase",
                )
            if not sample.objects:
                raise DataError("it has no object; give masks or boxes, or remove it", "field")
            end = start + len(sample.phrase)
            mentions.append(Mention(start, end, sample.objects))
    return GroundedCaption(
        record.id or default_id, whole.image, whole.size_wh, record.caption, tuple(mentions), whole.source
    )


def write_jsonl(samples: Sequence[Sample], path: Path) -> None:
    """Write samples to a file that `read` parses to equal samples; the write is atomic.

    Raises:
        DataError: The file's folder does not exist.
    """
    check_folder_of(path)
    with atomic_path(path) as unfinished, unfinished.open("w", encoding="utf-8") as file:
        for sample in samples:
            file.write(dump_object(record_of(sample, path.parent)))
