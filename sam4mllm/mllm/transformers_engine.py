"""TransformersEngine: greedy decoding and yes/no probabilities of a model that transformers runs in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sam4mllm.mllm.engine import Reply
from sam4mllm.mllm.inputs import messages_with_image, model_inputs
from sam4mllm.mllm.loading import Mllm
from sam4mllm.prompts.conversation import Conversation
from sam4mllm.prompts.yes_no import YesNo, YesNoQuery
from sam4mllm.utils.memory import DeviceBatch

if TYPE_CHECKING:
    import torch


class TransformersEngine:
    """An engine that runs a loaded model with greedy decoding, in left-padded batches of `batch_size` conversations.

    Conversations of similar length share a batch, so little is padded. Replies come back in the order of the
    conversations, and depend on the batch only through the rounding of the device's arithmetic. Batches for which the
    device has too little memory are halved, and later ones keep the smaller size.

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

    def generate(self, conversations: Sequence[Conversation], max_new_tokens: int) -> list[Reply]:
        """Return the replies without special tokens and surrounding white space; finished ones have an end token.

        Raises:
            ValueError: The last turn of a conversation is not the user's.
            DataError: An image cannot be read, or the processor refuses it.
            DeviceMemoryError: Memory does not suffice for one conversation.
        """
        for conversation in conversations:
            if not conversation.awaits_answer:
                raise ValueError(f"the last turn must be the user's; got {conversation.turns[-1]}")
        order = sorted(range(len(conversations)), key=lambda index: _length_key(conversations[index]))

        def generate_batch(batch: Sequence[int]) -> list[Reply]:
            return self._generate_batch([conversations[index] for index in batch], max_new_tokens)

        with _evaluation_mode(self.mllm.model):
            replies = [reply for batch in self.batch.map(order, generate_batch) for reply in batch]
        by_index = dict(zip(order, replies, strict=True))
        return [by_index[index] for index in range(len(conversations))]

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
            scored = score_answers(self.mllm, [queries[index] for index in order], self.batch)
        by_index = dict(zip(order, scored, strict=True))
        return [by_index[index] for index in range(len(queries))]

    def _generate_batch(self, conversations: Sequence[Conversation], max_new_tokens: int) -> list[Reply]:
        """Generate the replies of one batch by greedy decoding, with the log-probability of every token."""
        import torch
        from transformers import GenerationConfig

        # 1. A left-padded batch: every prompt ends in the last column, where generation continues.
        mllm = self.mllm
        inputs = model_inputs(
            mllm.processor,
            [messages_with_image(conversation) for conversation in conversations],
            padding_side="left",
            add_generation_prompt=True,
        ).to(mllm.device, mllm.dtype)
        # 2. Settings of greedy decoding. Every value that would change it is set here, because transformers takes the
        #    others from the checkpoint's generation_config.json, and some chat models have a repetition penalty in it,
        #    which changes the digits of coordinates.
        settings = GenerationConfig(
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            max_new_tokens=max_new_tokens,
            eos_token_id=mllm.end_ids,
            pad_token_id=mllm.processor.tokenizer.pad_token_id,
            use_cache=True,
        )
        # 3. Greedy decoding takes the most probable token of each step, so only that probability is recorded.
        logprobs: list[torch.Tensor] = []

        def record_logprob(_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            logprobs.append(scores.float().log_softmax(dim=-1).amax(dim=-1))
            return scores

        # Not inference mode: weights that FSDP gathers in it could not be used by the next training step.
        with torch.no_grad():
            tokens = mllm.model.generate(**inputs, generation_config=settings, logits_processor=[record_logprob])
        # 4. The new tokens of each row become its reply.
        new_tokens = tokens[:, inputs["input_ids"].shape[1] :]
        rows = zip(new_tokens.tolist(), torch.stack(logprobs, dim=1).tolist(), strict=True)
        return [_reply(mllm.processor.tokenizer, row, row_logprobs, mllm.end_ids) for row, row_logprobs in rows]


def _reply(tokenizer: Any, tokens: Sequence[int], logprobs: Sequence[float], end_ids: Sequence[int]) -> Reply:
    """Decode the new tokens of a row, without special tokens, and assign the log-probabilities to parts of the text.

    A reply without an end token was cut off; it gets no log-probabilities, because it is not an answer.
    """
    length = next((index + 1 for index, token in enumerate(tokens) if token in end_ids), None)
    if length is None:
        return Reply(tokenizer.decode(tokens, skip_special_tokens=True).strip(), finished=False)
    # A token may add no character by itself (a part of a UTF-8 sequence), so the end of each token is the length of the
    # text that the tokens up to it decode to.
    prefixes = tokenizer.batch_decode([tokens[: count + 1] for count in range(length)], skip_special_tokens=True)
    text = prefixes[-1].strip()
    stripped = len(prefixes[-1]) - len(prefixes[-1].lstrip())
    ends = [min(max(len(prefix) - stripped, 0), len(text)) for prefix in prefixes]
    # Tokens that add nothing to the text (the end token, surrounding white space) are left out.
    added = [(end, logprob) for start, end, logprob in zip([0, *ends], ends, logprobs, strict=False) if end > start]
    return Reply(text, tokens=tuple(added))


def _length_key(conversation: Conversation) -> tuple[int, int]:
    """Return what determines the number of tokens: the image's area in pixels and the characters of all turns."""
    return _area(conversation.image), sum(len(turn.text) for turn in conversation.turns)


def _area(image: Any) -> int:
    """Return an image's area in pixels, 0 for None; also 0 for a file that cannot be opened, whose batch will raise."""
    import numpy as np
    from PIL import Image

    if isinstance(image, np.ndarray):
        return int(np.prod(image.shape[:2]))
    if isinstance(image, Image.Image):
        return image.width * image.height
    try:
        with Image.open(image) as header:
            return header.width * header.height
    except OSError:
        return 0


@contextmanager
def _evaluation_mode(model: Any) -> Iterator[None]:
    """Put the model into evaluation mode, and back into its former mode afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
    if image is None:
        return 0
