"""Readers of chat about images: training conversations without masks, or questions for an evaluation.

Three forms are read. The first two are entries of a JSON list or of JSON lines:

    {"image": path, "conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": text}, ...]}   LLaVA's
    {"image": path, "question": text, "answer": text}                                             question and answer
    ReasonSeg/explanatory/train.json: [{"image": name, "query": text, "outputs": text}, ...]      LISA's explanations

`<image>` in the first human turn marks the image's position and is removed: a conversation begins with its image.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import Field

from sam4mllm.data.problems import SKIP_ADVICE, record_errors
from sam4mllm.data.readers.instances import image_path
from sam4mllm.data.records import (
    Record,
    Text,
    file_exists,
    parse_record,
    raise_problems,
    read_json,
    read_lines,
    record_problem,
    shorten,
)
from sam4mllm.data.registry import DatasetRow
from sam4mllm.errors import DataError

IMAGE_MARKER = "<image>"


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Questions and answers about one image, in their order; `id` is made of the file's name and the entry's number.

    `source` is the record in messages, such as "chat.jsonl, line 3"; equality ignores it.
    """

    id: str
    image: Path
    exchanges: tuple[tuple[str, str], ...]
    source: str = field(default="", compare=False, repr=False)

    @property
    def where(self) -> str:
        """The record of this dialogue in messages: its source, or its id where the source is not known."""
        return self.source or f"dialogue {self.id}"


class _Turn(Record):
    speaker: Text = Field(alias="from")
    value: Text


class _Chat(Record):
    image: Text | None = None
    conversations: list[_Turn] | None = None
    question: Text | None = None
    answer: Text | None = None


class _Explanation(Record):
    query: Text
    outputs: Text
    image: Text


def read(row: DatasetRow, *, path: Path, images: Path | None = None, limit: int | None = None) -> list[Dialogue]:
    """Read the dialogues of a JSON list or of JSON lines, in the file's order.

    Args:
        row: The data set's row of the table.
        path: The file.
        images: The folder that relative image paths start from; None for the file's folder.
        limit: The maximum number of dialogues, from the beginning.

    Raises:
        DataError: No such file, no entry in it, or entries that are not a dialogue about one existing image (all are
            counted, the first ten listed by line, or by number from 1 in a JSON list).
    """
    folder = path.parent if images is None else images
    dialogues: list[Dialogue] = []
    problems: list[DataError] = []
    is_list = _is_list(path)
    unit: Literal["line", "entry"] = "entry" if is_list else "line"
    entries = enumerate(read_json(path, "a chat file"), 1) if is_list else read_lines(path, lambda line: line, problems)
    for number, value in entries:
        try:
            dialogues.append(_dialogue(value, f"chat/{path.stem}/{number}", folder, f"{path}, {unit} {number}"))
        except DataError as error:
            problems.append(record_problem(unit, number, error))
        if len(dialogues) == limit:
            break
    raise_problems(path, problems, unit=unit, advice=SKIP_ADVICE)
    if not dialogues and not problems:
        raise DataError(f'{path}: no chat in it; an entry is {{"image": path, "conversations": [human, gpt, ...]}}')
    return dialogues


def read_explanations(
    row: DatasetRow, *, root: Path, images: Path | None = None, limit: int | None = None
) -> list[Dialogue]:
    """Read ReasonSeg's explanations of its training images: each query, and the text that answers it.

    LISA trains on them in its `explanatory` mode (its utils/reason_seg_dataset.py).

    Args:
        row: The data set's row of the table.
        root: The folder that holds `ReasonSeg`.
        images: The folder of the images; None for `ReasonSeg/train`.
        limit: The maximum number of dialogues, from the beginning.

    Raises:
        DataError: The file is missing or malformed, or an image is missing or outside of the folder.
    """
    path = row.folder_in(root) / "explanatory" / "train.json"
    folder = row.folder_in(root) / "train" if images is None else images
    content = read_json(path, "ReasonSeg's explanations")
    if not isinstance(content, list) or not content:
        raise DataError(f"{path}: explanations are a list of {{image, query, outputs}}; found {shorten(content)}")
    dialogues = []
    for index, value in enumerate(content[:limit]):
        where = f"{path}, entry {index}"
        with record_errors():
            record = parse_record(_Explanation, value, where)
            image = _existing(image_path(folder, record.image, where), f"{where}: ")
            dialogues.append(
                Dialogue(f"reasonseg-explanations/{index}", image, ((record.query, record.outputs),), where)
            )
    return dialogues


def _is_list(path: Path) -> bool:
    """Return whether a file is a JSON list, which begins with a bracket, and not JSON lines."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; a chat file was expected there")
    with path.open("rb") as file:
        return file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")


def _dialogue(value: object, dialogue_id: str, folder: Path, source: str) -> Dialogue:
    record = parse_record(_Chat, value)
    if record.conversations is not None:
        exchanges = _exchanges(record.conversations)
    elif record.question is not None:
        if record.answer is None:
            raise DataError("the field 'answer' is missing; a question needs its answer", "field")
        exchanges = ((record.question, record.answer),)
    else:
        keys = ", ".join(value) if isinstance(value, dict) else ""
        raise DataError(f"a chat has conversations, or question and answer; found {keys or 'no field'}", "field")
    if record.image is None:
        raise DataError("a chat without an image is not supported; remove it from the file", "field")
    (question, answer), *rest = exchanges
    exchanges = ((question.replace(IMAGE_MARKER, "", 1).strip(), answer), *rest)
    if any(IMAGE_MARKER in text for exchange in exchanges for text in exchange):
        raise DataError(
            f"{IMAGE_MARKER} occurs again after the first turn's first one; a chat is about one image", "field"
        )
    return Dialogue(dialogue_id, _existing(folder / record.image), exchanges, source)


def _exchanges(turns: list[_Turn]) -> tuple[tuple[str, str], ...]:
    """Return the (human, gpt) pairs of LLaVA's turns."""
    speakers = [turn.speaker for turn in turns]
    if not speakers or speakers != ["human", "gpt"] * (len(speakers) // 2):
        raise DataError(
            f"the turns of a chat alternate between human and gpt, gpt last; found {shorten(speakers)}", "field"
        )
    texts = [turn.value for turn in turns]
    return tuple(zip(texts[::2], texts[1::2], strict=True))


def _existing(path: Path, where: str = "") -> Path:
    if not file_exists(path):
        raise DataError(f"{where}{path}: no such image", "image")
    return path
