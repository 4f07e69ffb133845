"""Chat about images, as other instruction data has it: taught as it stands, without masks, or asked of a model.

Three forms are read, in a JSON list or as JSON lines:

    {"image": path, "conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": text}, ...]}   LLaVA's
    {"image": path, "question": text, "answer": text}                                                  questions alone
    ReasonSeg/explanatory/train.json: [{"image": name, "query": text, "outputs": text}, ...]           LISA's

`<image>` in the first human turn marks the image's place and is taken out: a conversation opens with its image.
This module knows nothing about models.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sam4mllm.data.fields import file_exists, read_json, require_field, shorten
from sam4mllm.data.json_lines import raise_faults, read_lines
from sam4mllm.data.registry import DatasetRow
from sam4mllm.errors import DataError

PLACE_OF_IMAGE = "<image>"


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Questions and answers about one image, in their order; `id` says where it was read."""

    id: str
    image: Path
    exchanges: tuple[tuple[str, str], ...]


def read(row: DatasetRow, *, path: Path, images: Path | None = None, limit: int | None = None) -> list[Dialogue]:
    """The dialogues of a JSON list or of JSON lines, in the file's order.

    Args:
        path: the file.
        images: the folder from which paths of images start, where it is not the file's.
        limit: at most so many, from the beginning.

    Raises:
        DataError: no such file, nothing in it, or entries that are no dialogue about one image that is there (all
            counted, the first ten told by line, or by number from 1 in a JSON list).
    """
    folder = path.parent if images is None else images
    dialogues: list[Dialogue] = []
    faults: list[str] = []
    for number, value in _entries(path, faults):
        try:
            dialogues.append(_dialogue(value, f"chat/{path.stem}/{number}", folder))
        except DataError as error:
            faults.append(f"line {number}: {error}")
        if len(dialogues) == limit:
            break
    raise_faults(path, faults)
    if not dialogues:
        raise DataError(f'{path}: no chat in it; an entry is {{"image": path, "conversations": [human, gpt, ...]}}')
    return dialogues


def read_explanations(
    row: DatasetRow, *, root: Path, images: Path | None = None, limit: int | None = None
) -> list[Dialogue]:
    """ReasonSeg's explanations of its training images: each query as it stands, and the words that answer it.

    LISA teaches them in its `explanatory` mode (its utils/reason_seg_dataset.py).

    Args:
        root: the folder that holds `ReasonSeg`.
        images: the folder of the images, where it is not `ReasonSeg/train`.
        limit: at most so many, from the beginning.

    Raises:
        DataError: the file is missing or not what it promises, or an image is not there.
    """
    path = row.folder_in(root) / "explanatory" / "train.json"
    folder = row.folder_in(root) / "train" if images is None else images
    content = read_json(path, "ReasonSeg's explanations")
    if not isinstance(content, list) or not content:
        raise DataError(f"{path}: explanations are a list of {{image, query, outputs}}; found {shorten(content)}")
    dialogues = []
    for index, record in enumerate(content[:limit]):
        where = f"{path}, entry {index}"
        exchange = require_field(record, "query", str, where), require_field(record, "outputs", str, where)
        image = _image(folder / require_field(record, "image", str, where), where)
        dialogues.append(Dialogue(f"reasonseg-explanations/{index}", image, (exchange,)))
    return dialogues


def _entries(path: Path, faults: list[str]) -> list[tuple[int, object]]:
    """The numbered entries of a JSON list or of JSON lines; the first character tells which it is."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; a chat file was expected there")
    with path.open("rb") as file:
        start = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(b"["):
        return list(enumerate(read_json(path, "a chat file"), start=1))
    return list(read_lines(path, lambda record: record, faults))


def _dialogue(value: object, identity: str, folder: Path) -> Dialogue:
    record = require_field({"chat": value}, "chat", dict, "chat")
    if "conversations" in record:
        exchanges = _exchanges(require_field(record, "conversations", list, "chat"))
    elif "question" in record:
        exchanges = ((require_field(record, "question", str, "chat"), require_field(record, "answer", str, "chat")),)
    else:
        raise DataError(f"a chat has conversations, or question and answer; found {', '.join(record) or 'no field'}")
    if record.get("image") is None:
        raise DataError("a chat without an image cannot be taught here; leave it out of the file")
    first, *rest = exchanges
    opened = first[0].replace(PLACE_OF_IMAGE, "", 1).strip()
    exchanges = ((opened, first[1]), *rest)
    if any(PLACE_OF_IMAGE in text for exchange in exchanges for text in exchange):
        raise DataError(f"{PLACE_OF_IMAGE} stands in more than the first place; a chat is about one image")
    return Dialogue(identity, _image(folder / require_field(record, "image", str, "chat"), "chat"), exchanges)


def _exchanges(turns: list[object]) -> tuple[tuple[str, str], ...]:
    """The (human, gpt) pairs of LLaVA's turns."""
    said = [require_field(turn, "from", str, "turn") for turn in turns]
    if not said or said != ["human", "gpt"] * (len(said) // 2):
        raise DataError(f"the turns of a chat are human and gpt in alternation, gpt last; found {shorten(said)}")
    texts = [require_field(turn, "value", str, "turn") for turn in turns]
    return tuple(zip(texts[::2], texts[1::2], strict=True))


def _image(path: Path, where: str) -> Path:
    if not file_exists(path):
        raise DataError(f"{where}: {path}: no such image")
    return path
