"""TransformersEngine: answers and yes/no probabilities of a model that transformers runs in this process."""

from __future__ import annotations

import copy
import hashlib
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from sam4mllm.data.images import size_wh_of
from sam4mllm.errors import ModelError
from sam4mllm.mllm.decoding import Generated, decode, reply_of
from sam4mllm.mllm.engine import ConstraintFactory, Reply, Sampling
from sam4mllm.mllm.loading import Mllm
from sam4mllm.mllm.locations import decode_locations
from sam4mllm.mllm.sharded_generation import generate_sharded, sharded_over_processes
from sam4mllm.mllm.shared_prefix import PrefixStore, SharedPrefixes, compute_with_store, make_prompts
from sam4mllm.prompts.conversation import Conversation
from sam4mllm.prompts.yes_no import YesNo, YesNoQuery
from sam4mllm.utils.attention import without_cudnn_attention
from sam4mllm.utils.memory import DeviceBatch


class TransformersEngine:
    """An engine that runs a loaded model, with `batch_size` images or answers in a batch.

    The tokens that conversations about one image have in common, the image first of all, are computed once; a batch
    then decodes `batch_size` answers, about one image or several. Images and answers of similar length share a batch,
    so little is padded. Replies come back in the order of the conversations, and depend on the batch only through the
    rounding of the device's arithmetic. Batches for which the device has too little memory are halved, and later ones
    keep the smaller size.

    Raises:
        ValueError: `batch_size` is below 1.
    """

    def __init__(self, mllm: Mllm, batch_size: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {batch_size}")
        self.mllm = mllm
        self.batch = DeviceBatch(
            batch_size, "conversations", "free memory on the device, lower model.image_size, or quantize the model"
        )
        self._store: PrefixStore | None = None

    @contextmanager
    def session(self) -> Iterator[TransformersEngine]:
        """Return a context with an engine that computes an image once for all its calls; the exit frees the memory.

        Where the device has too little memory for a batch, the images of former calls are dropped first.
        """
        engine = copy.copy(self)
        engine._store = {}
        try:
            yield engine
        finally:
            engine._store.clear()

    def generate(
        self,
        conversations: Sequence[Conversation],
        max_new_tokens: int,
        *,
        constraints: Sequence[ConstraintFactory | None] | None = None,
    ) -> list[Reply]:
        """Return the replies without special tokens and surrounding white space; finished ones have an end token.

        Each token is the most probable one of those that the conversation's constraint, if any, allows.

        Raises:
            ValueError: The last turn of a conversation is not the user's.
            DataError: An image cannot be read, or the processor refuses it.
            DeviceMemoryError: Memory does not suffice for one conversation.
        """
        factories = constraints or [None] * len(conversations)
        if sharded_over_processes(self.mllm.model):
            _check_awaiting(conversations)
            return self._generate_sharded(conversations, factories, max_new_tokens)
        return self._most_probable(conversations, factories, max_new_tokens)

    def generate_located(
        self,
        conversations: Sequence[Conversation],
        max_new_tokens: int,
        *,
        constraints: Sequence[ConstraintFactory | None] | None = None,
    ) -> list[Reply]:
        """Return the replies of `generate`, with the location of each location token, also in those that are cut off.

        Raises:
            ValueError, DataError, DeviceMemoryError: As in `generate`.
            ModelError: The model has no location heads, or its weights are sharded over processes.
        """
        if sharded_over_processes(self.mllm.model):
            raise ModelError(
                "locations are not decoded from weights that are sharded over processes (FSDP, ZeRO-3); load the run"
            )
        if self.mllm.location_heads is None:
            raise ModelError(
                "the model has no location heads, so it cannot answer with locations; give a run of method.name=pix2emb"
            )
        factories = constraints or [None] * len(conversations)
        return self._most_probable(conversations, factories, max_new_tokens, self.mllm.location_id)

    def _most_probable(
        self,
        conversations: Sequence[Conversation],
        factories: Sequence[ConstraintFactory | None],
        max_new_tokens: int,
        location_id: int | None = None,
    ) -> list[Reply]:
        """Return the most probable reply to each conversation; with `location_id` the locations of these tokens."""

        def new_answer(conversation: int, _sample: int) -> Generated:
            factory = factories[conversation]
            return Generated(factory() if factory else None)

        return [reply for (reply,) in self._answer(conversations, 1, new_answer, max_new_tokens, location_id)]

    def generate_samples(
        self,
        conversations: Sequence[Conversation],
        max_new_tokens: int,
        sampling: Sampling,
        *,
        constraints: Sequence[ConstraintFactory | None] | None = None,
    ) -> list[list[Reply]]:
        """Return several replies to each conversation, drawn at random; its prompt is computed once for all of them.

        Raises:
            ValueError, DataError, DeviceMemoryError: As in `generate`.
            ModelError: The weights are sharded over processes, which would have to draw in step.
        """
        if sharded_over_processes(self.mllm.model):
            raise ModelError("answers are not drawn from weights that are sharded over processes; load the saved run")
        factories = constraints or [None] * len(conversations)
        seeds = [_seed_text(conversation, sampling.seed) for conversation in conversations]

        def new_answer(conversation: int, sample: int) -> Generated:
            factory, rng = factories[conversation], random.Random(f"{seeds[conversation]} {sample}")
            return Generated(factory() if factory else None, rng, sampling.temperature)

        return self._answer(conversations, sampling.samples, new_answer, max_new_tokens)

    def score_answers(self, queries: Sequence[YesNoQuery]) -> list[list[list[YesNo]]]:
        """Return, for each query and each of its questions, the probabilities of each answer; see `point_scoring.py`.

        Raises:
            DataError: An image cannot be read, or the processor refuses it.
            ModelError: The model's chat template or tokenizer does not separate the answers.
            DeviceMemoryError: Memory does not suffice for one question.
        """
        from sam4mllm.mllm.point_scoring import score_answers

        order = sorted(range(len(queries)), key=lambda index: _length_key(queries[index].history))
        with _evaluation_mode(self.mllm.model):
            scored = score_answers(self.mllm, [queries[index] for index in order], self.batch, self._store)
        by_index = dict(zip(order, scored, strict=True))
        return [by_index[index] for index in range(len(queries))]

    def _answer(
        self,
        conversations: Sequence[Conversation],
        samples: int,
        new_answer: Callable[[int, int], Generated],
        max_new_tokens: int,
        location_id: int | None = None,
    ) -> list[list[Reply]]:
        """Return `samples` replies to each conversation; `new_answer` begins that of (conversation, sample).

        `location_id` is the token of which the locations are decoded; None for none.
        """
        import torch

        _check_awaiting(conversations)
        prompts = make_prompts(self.mllm, conversations)
        # 1. The conversations of each image, images of similar size one after the other.
        by_image: dict[object, list[int]] = {}
        for index, prompt in enumerate(prompts):
            by_image.setdefault(prompt.key, []).append(index)
        images = sorted(by_image.values(), key=lambda members: _length_key(conversations[members[0]]))
        replies: dict[tuple[int, int], Reply] = {}

        def decode_batch(
            prefixes: SharedPrefixes, batch: Sequence[tuple[int, int]], *, keep: bool = True
        ) -> list[Reply]:
            """Decode the answers (conversation, sample) of one batch; free the prefixes unless they are kept."""
            members = list(dict.fromkeys(index for index, _ in batch))
            rows, logits = prefixes.rows_and_logits([prompts[index] for index in members])
            if not keep:
                prefixes.clear()
            if len(members) < len(batch):
                copies = [members.index(index) for index, _ in batch]
                rows, logits = rows.select(copies), logits[copies]
            answers = [new_answer(*each) for each in batch]
            decode(rows, logits, answers, max_new_tokens, self.mllm.end_ids, location_id)
            return self._replies(answers)

        def answer_images(part: Sequence[list[int]]) -> None:
            """Compute the prefixes of a batch of images, and decode all answers about them."""
            members = [index for group in part for index in group]
            prefixes = SharedPrefixes(self.mllm, [prompts[index] for index in members], self._store)
            # 2. Answers to prompts of similar length share a batch.
            rows = [(index, sample) for index in members for sample in range(samples)]
            if len(rows) > len(part):
                rows.sort(key=lambda row: (prompts[row[0]].length, row))
                done = [each for batch in self.batch.map(rows, partial(decode_batch, prefixes)) for each in batch]
            else:
                # Nothing is shared, so the prefixes themselves are continued, and not kept beside their copies.
                done = decode_batch(prefixes, rows, keep=False)
            replies.update(zip(rows, done, strict=True))

        # Not inference mode: weights that FSDP gathers in it could not be used by the next training step.
        with _evaluation_mode(self.mllm.model), torch.no_grad():
            for _ in self.batch.map(images, partial(compute_with_store, self._store, answer_images)):
                pass
        return [[replies[index, sample] for sample in range(samples)] for index in range(len(conversations))]

    def _replies(self, answers: Sequence[Generated]) -> list[Reply]:
        tokenizer, end_ids = self.mllm.processor.tokenizer, self.mllm.end_ids
        replies = [reply_of(tokenizer, each.tokens, each.logprobs, end_ids) for each in answers]
        return [
            replace(reply, locations=decode_locations(self.mllm, each.tokens, each.states)) if each.states else reply
            for reply, each in zip(replies, answers, strict=True)
        ]

    def _generate_sharded(
        self, conversations: Sequence[Conversation], factories: Sequence[ConstraintFactory | None], max_new_tokens: int
    ) -> list[Reply]:
        """Return the replies by transformers' loop, which keeps processes that hold a part of the weights in step.

        Raises:
            ModelError: A question has a region, which that loop does not embed.
        """
        if any(conversation.has_regions for conversation in conversations):
            raise ModelError("regions are not embedded by weights that are sharded over processes; load the run")
        order = sorted(range(len(conversations)), key=lambda index: _length_key(conversations[index]))

        def generate_batch(batch: Sequence[int]) -> list[Reply]:
            constraints = [factory() if (factory := factories[index]) else None for index in batch]
            answers = generate_sharded(
                self.mllm, [conversations[index] for index in batch], constraints, max_new_tokens
            )
            return self._replies(answers)

        with _evaluation_mode(self.mllm.model):
            replies = [reply for batch in self.batch.map(order, generate_batch) for reply in batch]
        by_index = dict(zip(order, replies, strict=True))
        return [by_index[index] for index in range(len(conversations))]


def _seed_text(conversation: Conversation, seed: int) -> str:
    """Return a text that seeds the random numbers of a conversation: a hash of the seed, the turns and the image.

    A file's image is identified by its path, an image in memory by its pixels.
    """
    image = conversation.image
    digest = hashlib.sha256(repr((seed, conversation.turns)).encode())
    in_memory = hasattr(image, "tobytes")
    digest.update(image.tobytes() if in_memory else os.fsencode(image) if image is not None else b"")  # type: ignore
    return digest.hexdigest()


def _check_awaiting(conversations: Sequence[Conversation]) -> None:
    """Check that the model is to answer the last turn of each conversation.

    Raises:
        ValueError: One does not end with a question.
    """
    for conversation in conversations:
        if not conversation.awaits_answer:
            raise ValueError(f"the last turn must be the user's; got {conversation.turns[-1]}")


def _length_key(conversation: Conversation) -> tuple[int, int]:
    """Return what determines the number of tokens: the image's area in pixels and the characters of all turns."""
    return _area(conversation.image), sum(len(turn.text) for turn in conversation.turns)


def _area(image: Any) -> int:
    """Return an image's area in pixels, 0 for None; also 0 for a file that cannot be opened, whose batch will raise."""
    width, height = (image is not None and size_wh_of(image)) or (0, 0)
    return width * height


@contextmanager
def _evaluation_mode(model: Any) -> Iterator[None]:
    """Put the model into evaluation mode without cuDNN's attention, and back into its former mode afterwards."""
    was_training = model.training
    model.eval()
    try:
        with without_cudnn_attention():
            yield
    finally:
        model.train(was_training)
