"""Checks of all training data before a model is loaded: damaged images and phrases that no model can read.

Each check reports every bad record at once, so that a long run does not end at the step that meets it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sam4mllm.data.grounded_caption import GroundedCaption
from sam4mllm.data.images import check_image
from sam4mllm.data.readers.chat import Dialogue
from sam4mllm.data.reading import AnyItem
from sam4mllm.data.sample import Sample
from sam4mllm.errors import DataError
from sam4mllm.mllm.control_tokens import control_token_error, control_tokens, find_token, special_tokens
from sam4mllm.mllm.inputs import messages_with_image, model_inputs
from sam4mllm.prompts.conversation import training_conversation
from sam4mllm.utils.distributed import SINGLE_PROCESS, DistributedContext
from sam4mllm.utils.messages import first_and_more
from sam4mllm.utils.progress import bar

_LISTED = 10


def check_images(items: Iterable[AnyItem], processes: DistributedContext = SINGLE_PROCESS) -> None:
    """Decode every image once and compare its size with its annotation's; several processes share the images.

    Raises:
        DataError: Images are missing, damaged, too large or of another size; each with the first record about it.
    """
    _raise_all(image_problems(items, processes), "image", "cannot be used")


def image_problems(items: Iterable[AnyItem], processes: DistributedContext = SINGLE_PROCESS) -> list[str]:
    """Return what is wrong with images, as `check_images`; the same list in every process."""
    users: dict[Path, _Users] = {}
    for item in items:
        if item.image is not None:
            of_image = users.setdefault(item.image, _Users(item))
            of_image.count += 1
            if not isinstance(item, Dialogue):
                of_image.first_of_size.setdefault(item.size_wh, item)
    part = list(users.items())[processes.rank :: processes.world_size]
    problems: list[str] = []
    with (
        ThreadPoolExecutor(os.cpu_count()) as threads,
        bar("check images", len(part), unit="images", shown=processes.is_main) as advance,
    ):
        try:
            for problem in threads.map(lambda each: _image_problem(*each), part):
                problems += [problem] if problem else []
                advance(1)
        finally:
            # After Ctrl-C, the images that are waiting are not decoded any more.
            threads.shutdown(cancel_futures=True)
    return [each for found in processes.gather(problems) for each in found]


@dataclass(slots=True)
class _Users:
    """The first record about an image, the number of all, and the first one of each annotated size."""

    first: AnyItem
    count: int = 0
    first_of_size: dict[tuple[int, int], Sample | GroundedCaption] = field(default_factory=dict)


def _image_problem(image: Path, users: _Users) -> str | None:
    """Return what is wrong with an image, with its first record; None if nothing is."""
    more = f" and {users.count - 1} more" if users.count > 1 else ""
    try:
        size_wh = check_image(image)
    except DataError as error:
        return f"{users.first.where}{more}: {error}"
    other = next((each for size, each in users.first_of_size.items() if size != size_wh), None)
    if other is None:
        return None
    return f"{other.where}: {image} is {size_wh} (W, H), but its annotation is for {other.size_wh}"


def check_texts(
    processor: Any,
    annotated: Iterable[Sample | GroundedCaption],
    dialogues: Iterable[Dialogue] = (),
    *,
    added: frozenset[str] = frozenset(),
) -> None:
    """Check that no phrase, caption or chat holds a token that the model reads as the end of a turn, an image or so.

    `added` are further tokens that the processor will get.

    Raises:
        DataError: Texts that do; each with its record.
    """
    of_phrases, of_chats = special_tokens(processor) | added, control_tokens(processor) | added
    problems = []
    for item in annotated:
        text, name = (item.phrase, "the phrase") if isinstance(item, Sample) else (item.text, "the caption")
        if token := find_token(text, of_phrases):
            problems.append(f"{item.where}: {control_token_error(text, token, name)}")
    for dialogue in dialogues:
        texts = (text for exchange in dialogue.exchanges for text in exchange)
        found = next(((text, token) for text in texts if (token := find_token(text, of_chats))), None)
        if found is not None:
            problems.append(f"{dialogue.where}: {control_token_error(*found)}")
    _raise_all(problems, "phrase or chat", "cannot be trained on")


def long_chat_notes(processor: Any, longest_input: int | None, dialogues: Iterable[Dialogue]) -> list[str]:
    """Return a note if chats have more tokens than the model's longest input; each with its record.

    `longest_input` is `loading.longest_input`; None if it is not known. Images are opened for long texts only.
    """
    if longest_input is None:
        return []
    found = []
    for dialogue in dialogues:
        # A token has at least one byte, and images have fewer tokens than half of the longest input.
        if sum(len(text.encode()) for exchange in dialogue.exchanges for text in exchange) < longest_input // 2:
            continue
        messages = messages_with_image(training_conversation(dialogue.image, list(dialogue.exchanges)))
        tokens = model_inputs(processor, [messages], padding_side="right")["input_ids"].shape[1]
        if tokens > longest_input:
            found.append(f"{dialogue.where} ({tokens:,} tokens)")
    if not found:
        return []
    return [
        f"{len(found)} chat(s) are longer than the model's longest input of {longest_input:,} tokens: "
        f"{first_and_more(found, _LISTED)}; shorten or split them, because later positions were not trained"
    ]


def _raise_all(problems: Sequence[str], what: str, verdict: str) -> None:
    """Raise one error that counts the problems and lists the first ones; return if there are none."""
    if not problems:
        return
    raise DataError(
        f"{len(problems)} {what}(s) {verdict}: {first_and_more(problems, _LISTED)}; correct them, or take their "
        "records out"
    )
