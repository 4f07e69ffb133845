"""Collator: make one training batch from conversations, token ids and labels together.

Loss is computed on the tokens of the supervised answers and on the token that ends each of them. The text of an answer
is the difference between the conversation rendered with the answer and the conversation rendered up to the prompt for
it, so the tokens that carry loss are those that the model generates at inference. A template's `{% generation %}` block
is not used, because it need not begin where the prompt ends.

The branches of a conversation (isolated phrases) become one sequence: the tokens that all have in common, with the
image, and then the other tokens of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from sam4mllm.errors import DataError, ModelError
from sam4mllm.mllm.inputs import messages_with_image, model_inputs
from sam4mllm.mllm.loading import Mllm
from sam4mllm.mllm.location_passes import check_markers
from sam4mllm.mllm.shared_prefix import common_length
from sam4mllm.prompts.conversation import LOCATION_TOKEN, Conversation
from sam4mllm.training.batch_locations import LOCATIONS, BatchLocations, LocatedToken, located_tokens
from sam4mllm.training.isolation import BRANCH_IDS, POSITIONS

IGNORED = -100
"""The label that torch's cross entropy ignores."""

Span = tuple[int, int]
"""Positions [start, end) of tokens in a row of `input_ids`."""


class Collator:
    """A callable that makes a batch: `input_ids`, `attention_mask` and `labels`, and the tensors of the images.

    The first three are (B, T) int64, padded on the right. Floating-point tensors are cast to the model's dtype.
    `labels` is IGNORED everywhere but on the supervised answers. If a conversation has several branches, the batch also
    has the tensors of `training.isolation`, for a model prepared by `isolate_branches`. If turns have locations, it has
    `BatchLocations` under the name LOCATIONS, which the caller removes.

    Raises:
        DataError: (when called) An image cannot be read, a conversation has no supervised answer, or a text has the
            location token where its turn has no location.
        ModelError: (when called) The answers cannot be located in the text that the chat template renders.
    """

    def __init__(self, mllm: Mllm) -> None:
        self._processor = mllm.processor
        self._end_ids = mllm.end_ids
        self._dtype = mllm.dtype
        self._location_id = mllm.location_id

    def __call__(self, conversations: Sequence[Conversation]) -> dict[str, Any]:
        check_markers(self._processor, [each for each in conversations if _has_only_markers(each)])
        # The processor gets the first branch of each conversation, so that each image is processed once.
        inputs = model_inputs(
            self._processor,
            [messages_with_image(conversation.branches[0]) for conversation in conversations],
            padding_side="right",
        )
        lengths = inputs["attention_mask"].sum(dim=1).tolist()
        sequences = [
            self._sequence(conversation, inputs["input_ids"][row, :length].tolist())
            for row, (conversation, length) in enumerate(zip(conversations, lengths, strict=True))
        ]
        batch = {
            name: value.to(self._dtype) if torch.is_floating_point(value) else value for name, value in inputs.items()
        }
        if any(len(conversation.branch_starts) > 1 for conversation in conversations):
            batch.update(_branch_tensors(sequences, batch, self._processor.tokenizer.pad_token_id))
        if any(each.locations for each in sequences):
            images = [conversation.image for conversation in conversations]
            batch[LOCATIONS] = BatchLocations.of([each.locations for each in sequences], images)
        return {**batch, "labels": _padded([each.labels for each in sequences], IGNORED)}

    def _sequence(self, conversation: Conversation, ids: list[int]) -> _Sequence:
        """Return the sequence of a conversation, of whose first branch the tokens are `ids`."""
        branches = conversation.branches
        ids_of_branches = [ids, *branch_ids(branches, ids, self._processor)]
        labels, located, first_own = [], [], []
        for branch, branch_tokens in zip(branches, ids_of_branches, strict=True):
            spans = answer_spans(branch, branch_tokens, self._processor)
            labels.append(label_row(branch, branch_tokens, spans, self._end_ids))
            located.append(located_tokens(branch, branch_tokens, self._processor, self._location_id))
            # The token before an answer predicts its first one, so it belongs to the branch; so do regions, because
            # equal tokens may mean different boxes.
            starts = [start - 1 for start, end in spans if end]
            first_own.append(min([*starts, *(token.index for token in located[-1])], default=len(branch_tokens) - 1))
        shared = len(ids)
        if len(branches) > 1:
            shared = min(*(common_length(ids, each) for each in ids_of_branches), *first_own)
        sequence = _Sequence(ids[:shared], labels[0][:shared], [0] * shared, list(range(shared)))
        for number, (branch_tokens, branch_labels) in enumerate(zip(ids_of_branches, labels, strict=True), start=1):
            moved = len(sequence.ids) - shared
            sequence.locations.extend(replace(token, index=token.index + moved) for token in located[number - 1])
            sequence.ids.extend(branch_tokens[shared:])
            sequence.labels.extend(branch_labels[shared:])
            sequence.branches.extend([number] * (len(branch_tokens) - shared))
            sequence.positions.extend(range(shared, len(branch_tokens)))
        return sequence


@dataclass(frozen=True, slots=True)
class _Sequence:
    """One row of a batch without padding: token ids, labels, branch and position of each token, and locations."""

    ids: list[int]
    labels: list[int]
    branches: list[int]
    positions: list[int]
    locations: list[LocatedToken] = field(default_factory=list)


def _has_only_markers(conversation: Conversation) -> bool:
    """Return whether all locations are those of location tokens, and not of boxes in text."""
    return all(
        turn.text.startswith(LOCATION_TOKEN, location.start)
        for turn in conversation.turns
        for location in turn.locations
    )


def _branch_tensors(sequences: Sequence[_Sequence], batch: dict[str, Any], pad_id: int) -> dict[str, torch.Tensor]:
    """Return the tensors that replace those of the first branches in a batch, and those for `isolate_branches`."""
    tensors = {
        "input_ids": _padded([each.ids for each in sequences], pad_id),
        "attention_mask": _padded([[1] * len(each.ids) for each in sequences], 0),
        BRANCH_IDS: _padded([each.branches for each in sequences], -1),
        POSITIONS: _padded([each.positions for each in sequences], 0),
    }
    longest = tensors["input_ids"].shape[1]
    for name in (name for name in batch if name.endswith("token_type_ids")):
        # The kinds of tokens, of images or of text (0): all images are in the prefix.
        kinds = torch.nn.functional.pad(batch[name], (0, max(0, longest - batch[name].shape[1])))[:, :longest]
        tensors[name] = kinds * (tensors[BRANCH_IDS] == 0)
    return tensors


def _padded(rows: Sequence[list[int]], padding: int) -> torch.Tensor:
    """Return rows of different lengths as (B, T) int64, padded on the right."""
    longest = max(map(len, rows))
    return torch.tensor([row + [padding] * (longest - len(row)) for row in rows])


def branch_ids(branches: Sequence[Conversation], ids: Sequence[int], processor: Any) -> list[list[int]]:
    """Return the token ids of all branches but the first, whose ids, with the tokens of the image, are `ids`.

    Raises:
        ModelError: The branches' texts differ before the image ends.
    """
    # In `ids` the image's placeholder has grown to many tokens; from the first difference on the ids are the text's.
    texts = [processor.apply_chat_template(branch.messages(), tokenize=False) for branch in branches]
    first, *others = processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
    shift = len(ids) - len(first)
    rows = []
    for other in others:
        shared = common_length(first, other)
        if list(ids[shared + shift :]) != list(first[shared:]):
            raise ModelError(
                "the chat template puts text of a phrase before the image, or the processor's tokens are not those of "
                "the rendered chat, so phrases cannot share the image; set method.packing=turns"
            )
        rows.append([*ids[: shared + shift], *other[shared:]])
    return rows


def answer_spans(conversation: Conversation, ids: Sequence[int], processor: Any) -> list[Span]:
    """Locate the tokens of each answer in `ids`, one row of `input_ids` without padding.

    Raises:
        ModelError: The template renders earlier turns differently once later turns follow, or the processor's tokens
            are not those of the rendered text.
    """
    # 1. Tokenize the rendered text. In `ids` the image's placeholder, which comes first, has grown to many tokens, so
    #    positions are shifted by the difference of the lengths.
    full = processor.apply_chat_template(conversation.messages(), tokenize=False)
    encoded = processor.tokenizer(full, add_special_tokens=False, return_offsets_mapping=True)
    text_ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    shift = len(ids) - len(text_ids)
    # 2. For each answer, find the characters between the prompt for it and its end, and the tokens of these characters.
    spans = []
    for turn in range(1, len(conversation.turns), 2):
        before = processor.apply_chat_template(conversation.messages(turn), tokenize=False, add_generation_prompt=True)
        after = full
        if turn + 1 < len(conversation.turns):
            after = processor.apply_chat_template(conversation.messages(turn + 1), tokenize=False)
        if not (full.startswith(before) and full.startswith(after)):
            raise ModelError(
                "the chat template renders earlier turns differently once later turns follow, so the tokens trained on "
                "would not be those of the prompt at inference; use method.name=ppg with method.packing=isolated or "
                "method.phrases=1"
            )
        end = len(after.rstrip())
        inside = [index for index, (start, stop) in enumerate(offsets) if stop > len(before) and start < end]
        spans.append((inside[0] + shift, inside[-1] + 1 + shift) if inside else (0, 0))
    # 3. Check that from the first answer on both token sequences are equal, as the shift assumes.
    first = min((start for start, end in spans if end), default=len(ids))
    if list(ids[first:]) != list(text_ids[first - shift :]):
        raise ModelError(
            "the processor's tokens are not those of the rendered chat, so the answers cannot be located; this model "
            "cannot be trained"
        )
    return spans


def label_row(
    conversation: Conversation, ids: Sequence[int], spans: Sequence[Span], end_ids: Sequence[int]
) -> list[int]:
    """Return the labels of one row: `ids` on the supervised answers, IGNORED elsewhere.

    The token that ends the turn belongs to its answer: without it a model would not learn to stop.

    Raises:
        DataError: The conversation has no supervised turn, or an answer has no token.
        ModelError: An answer does not end with one of `end_ids`.
    """
    labels = [IGNORED] * len(ids)
    for turn, (start, end) in zip(conversation.turns[1::2], spans, strict=True):
        if not turn.supervised:
            continue
        if start == end:
            raise DataError(f"{describe(conversation)}: the answer {turn.text!r} has no tokens to train on")
        if ids[end - 1] not in end_ids:
            raise ModelError(
                f"the chat template ends an answer with none of the model's end tokens ({list(end_ids)}), so the model "
                "would not learn to stop; put one of them after the assistant's text in the template"
            )
        labels[start:end] = ids[start:end]
    if all(label == IGNORED for label in labels):
        raise DataError(f"{describe(conversation)}: no answer in this conversation is supervised; nothing to train on")
    return labels


def describe(conversation: Conversation) -> str:
    """Return the image's path, or its type where it has none, and the first question, shortened."""
    image = conversation.image
    name = f"image {image if not hasattr(image, 'size') else type(image).__name__}" if image is not None else "no image"
    question = conversation.turns[0].text
    return f"{name}, {question if len(question) <= 120 else question[:117] + '...'!r}"
