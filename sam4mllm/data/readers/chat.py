"""Readers of chat, about images or text alone: training conversations without masks, or questions for an evaluation.

Four forms are read. The first three are entries of a JSON list or of JSON lines:

    {"image": path, "conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": text}, ...]}   LLaVA's
    {"image": path, "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": text}, ...]}
    {"image": path, "question": text, "answer": text}                                             question and answer
    ReasonSeg/explanatory/train.json: [{"image": name, "query": text, "outputs": text}, ...]      LISA's explanations

The names of the list, of the keys and of the roles may be combined. `content` may be a list of parts, such as
{"type": "text", "text": text} and {"type": "image", "image": path}, and `images` a list of one path.

`<image>` in the first user turn marks the image's position and is removed: a conversation begins with its image. An
entry that names no image, as LLaVA's instruction data have some, is chat without an image.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

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
from sam4mllm.utils.paths import with_start

IMAGE_MARKER = "<image>"


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Questions and answers about one image, in their order; `id` is made of the file's name and the entry's number.

    `image` is None for chat without an image. `source` is the record in messages, such as "chat.jsonl, line 3";
    equality ignores it.
    """

    id: str
    image: Path | None
    exchanges: tuple[tuple[str, str], ...]
    source: str = field(default="", compare=False, repr=False)

    @property
    def where(self) -> str:
        """The record of this dialogue in messages: its source, or its id where the source is not known."""
        return self.source or f"dialogue {self.id}"


_OTHER_MEDIA = re.compile(
    r"image|img|photo|pictur|video|audio|(?<![a-z])(pics?(?![a-z])|file)|(?-i:(?<=[a-z])(Pic|File))", re.IGNORECASE
)
"""Names of fields that probably name an image or other media, in an entry without the fields of images. Those that only
contain the letters of a short word, as "topic" and "profile" do, are not among them."""

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


class _Turn(Record):
    role: Text = Field(alias="from")
    content: Text = Field(alias="value")


class _Part(Record):
    kind: Text = Field(alias="type")
    text: Text = ""
    image: Text | None = None


class _Message(Record):
    role: Text
    content: Text


class _MessageOfParts(Record):
    role: Text
    content: list[dict[str, Any]]


class _Chat(Record):
    image: Text | None = None
    images: list[Text] | None = None
    conversations: list[dict[str, Any]] | None = None
    messages: list[dict[str, Any]] | None = None
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
        DataError: No such file, no entry in it, or entries that are not a dialogue, or about other than one existing
            image or none (all are counted, the first ten listed by line, or by number from 1 in a JSON list).
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
        raise DataError(f"{with_start(path)}: no such file; a chat file was expected there")
    with path.open("rb") as file:
        return file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")


def _dialogue(value: object, dialogue_id: str, folder: Path, source: str) -> Dialogue:
    record = parse_record(_Chat, value)
    paths = [*([] if record.image is None else [record.image]), *(record.images or [])]
    if record.conversations is not None:
        exchanges = _exchanges(record.conversations, "conversations", paths)
    elif record.messages is not None:
        exchanges = _exchanges(record.messages, "messages", paths)
    elif record.question is not None:
        if record.answer is None:
            raise DataError("the field 'answer' is missing; a question needs its answer", "field")
        exchanges = ((record.question, record.answer),)
    else:
        keys = ", ".join(value) if isinstance(value, dict) else ""
        raise DataError(
            f"a chat has conversations, messages, or question and answer; found {keys or 'no field'}", "field"
        )
    if not paths:
        _check_text_only(value, exchanges)
        return Dialogue(dialogue_id, None, exchanges, source)
    if len(paths) > 1:
        raise DataError(f"a chat is about one image; found {shorten(paths)}", "field")
    (question, answer), *rest = exchanges
    exchanges = ((question.replace(IMAGE_MARKER, "", 1).strip(), answer), *rest)
    if any(IMAGE_MARKER in text for exchange in exchanges for text in exchange):
        raise DataError(
            f"{IMAGE_MARKER} occurs again after the first turn's first one; a chat is about one image", "field"
        )
    return Dialogue(dialogue_id, _existing(folder / paths[0]), exchanges, source)


def _check_text_only(value: object, exchanges: tuple[tuple[str, str], ...]) -> None:
    """Check that an entry which names no image is about none: it has no marker of one and no field of another name."""
    if any(IMAGE_MARKER in text for exchange in exchanges for text in exchange):
        raise DataError(f"{IMAGE_MARKER} occurs in it, but no image is named; add the field 'image'", "field")
    fields = value.items() if isinstance(value, dict) else ()
    others = [key for key, content in fields if content and _OTHER_MEDIA.search(key)]
    if others:
        raise DataError(
            f"the field {others[0]!r} is not supported, and no image is named; name the image in the field 'image', or "
            "remove that field from chat without an image",
            "field",
        )


def _exchanges(values: list[dict[str, Any]], name: str, paths: list[str]) -> tuple[tuple[str, str], ...]:
    """Return the (user, assistant) pairs of turns; the paths of images among their parts are added to `paths`."""
    turns = [_turn(value, f"{name}[{index}]") for index, value in enumerate(values)]
    found = [turn.role for turn in turns]
    roles = [_ROLES.get(role) for role in found]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        system = "; leave the system turn out: the model's chat template has its own" if "system" in found else ""
        raise DataError(
            "the turns of a chat alternate between human (or user) and gpt (or assistant), which is last; found "
            f"{shorten(found)}{system}",
            "field",
        )
    texts = [_text(turn.content, f"{name}[{index}]", paths) for index, turn in enumerate(turns)]
    return tuple(zip(texts[::2], texts[1::2], strict=True))


def _turn(value: dict[str, Any], where: str) -> _Turn | _Message | _MessageOfParts:
    if "role" not in value:
        return parse_record(_Turn, value, where)
    if isinstance(value.get("content"), list):
        return parse_record(_MessageOfParts, value, where)
    return parse_record(_Message, value, where)


def _text(content: str | list[dict[str, Any]], where: str, paths: list[str]) -> str:
    """Return the text of a turn, with a marker for each image among its parts; their paths are added to `paths`."""
    if isinstance(content, str):
        return content
    texts = []
    for index, value in enumerate(content):
        part = parse_record(_Part, value, f"{where}.content[{index}]")
        if part.kind not in ("text", "image"):
            raise DataError(f"{where}: a part of the type {part.kind!r} is not supported; only text and image", "field")
        texts.append(part.text if part.kind == "text" else IMAGE_MARKER)
        if part.image is not None:
            paths.append(part.image)
    return "".join(texts)


def _existing(path: Path, where: str = "") -> Path:
    if not file_exists(path):
        raise DataError(f"{where}{path}: no such image", "image")
    return path
