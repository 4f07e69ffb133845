"""Chat about pictures, as other instruction data has it: taught as it stands, without masks, or asked of a model.

Three forms are read, in a JSON list or as JSON lines:

    {"image": path, "conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": text}, ...]}   LLaVA's
    {"image": path, "question": text, "answer": text}                                                  questions alone
    ReasonSeg/explanatory/train.json: [{"image": name, "query": text, "outputs": text}, ...]           LISA's

`<image>` in the first human turn marks the picture's place and is taken out: a conversation opens with its picture.
This module knows nothing about models.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sam4mllm.data.fields import is_there, need, read_json, shorten
from sam4mllm.data.lines import raise_faults, read_lines
from sam4mllm.errors import DataError

PLACE_OF_PICTURE = "<image>"
EXPLANATIONS = Path("ReasonSeg/explanatory/train.json")


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Questions and answers about one picture, in their order; `id` says where it was read."""

    id: str
    image: Path
    exchanges: tuple[tuple[str, str], ...]


def read_chat(path: Path, *, images: Path | None = None, limit: int | None = None) -> list[Dialogue]:
    """The dialogues of a JSON list or of JSON lines, in the file's order.

    Args:
        path: the file.
        images: the folder from which paths of pictures start, where it is not the file's.
        limit: at most so many, from the beginning.

    Raises:
        DataError: no such file, nothing in it, or entries that are no dialogue about one picture that is there (all
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


def read_explanations(root: Path, *, images: Path | None = None, limit: int | None = None) -> list[Dialogue]:
    """ReasonSeg's explanations of its training pictures: each query as it stands, and the words that answer it.

    LISA teaches them in its `explanatory` mode (its utils/reason_seg_dataset.py).

    Args:
        root: the folder that holds `ReasonSeg`.
        images: the folder of the pictures, where it is not `ReasonSeg/train`.
        limit: at most so many, from the beginning.

    Raises:
        DataError: the file is missing or not what it promises, or a picture is not there.
    """
    path = root / EXPLANATIONS
    folder = root / "ReasonSeg" / "train" if images is None else images
    content = read_json(path, "ReasonSeg's explanations")
    if not isinstance(content, list) or not content:
        raise DataError(f"{path}: explanations are a list of {{image, query, outputs}}; found {shorten(content)}")
    dialogues = []
    for index, record in enumerate(content[:limit]):
        where = f"{path}, entry {index}"
        exchange = need(record, "query", str, where), need(record, "outputs", str, where)
        picture = _picture(folder / need(record, "image", str, where), where)
        dialogues.append(Dialogue(f"reasonseg-explanations/{index}", picture, (exchange,)))
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
    record = need({"chat": value}, "chat", dict, "chat")
    if "conversations" in record:
        exchanges = _exchanges(need(record, "conversations", list, "chat"))
    elif "question" in record:
        exchanges = ((need(record, "question", str, "chat"), need(record, "answer", str, "chat")),)
    else:
        raise DataError(f"a chat has conversations, or question and answer; found {', '.join(record) or 'no field'}")
    if record.get("image") is None:
        raise DataError("a chat without a picture cannot be taught here; leave it out of the file")
    first, *rest = exchanges
    opened = first[0].replace(PLACE_OF_PICTURE, "", 1).strip()
    exchanges = ((opened, first[1]), *rest)
    if any(PLACE_OF_PICTURE in text for exchange in exchanges for text in exchange):
        raise DataError(f"{PLACE_OF_PICTURE} stands in more than the first place; a chat is about one picture")
    return Dialogue(identity, _picture(folder / need(record, "image", str, "chat"), "chat"), exchanges)


def _exchanges(turns: list[object]) -> tuple[tuple[str, str], ...]:
    """The (human, gpt) pairs of LLaVA's turns."""
    said = [need(turn, "from", str, "turn") for turn in turns]
    if not said or said != ["human", "gpt"] * (len(said) // 2):
        raise DataError(f"the turns of a chat are human and gpt in alternation, gpt last; found {shorten(said)}")
    texts = [need(turn, "value", str, "turn") for turn in turns]
    return tuple(zip(texts[::2], texts[1::2], strict=True))


def _picture(path: Path, where: str) -> Path:
    if not is_there(path):
        raise DataError(f"{where}: {path}: no such picture")
    return path
