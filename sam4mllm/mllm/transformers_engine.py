"""TransformersEngine: greedy answers of a model that transformers runs in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sam4mllm.mllm.engine import Reply
from sam4mllm.mllm.inputs import messages_with_image, model_inputs
from sam4mllm.mllm.loading import Mllm
from sam4mllm.prompts.conversation import Conversation
from sam4mllm.prompts.yes_no import YesNo, YesNoQuery


class TransformersEngine:
    """Greedy answers of a loaded model, in left-padded batches of `batch_size`.

    Conversations of like size share a batch, so little is padded; answers come back in the order asked, and depend on
    the batch only as far as the rounding of the device's arithmetic does.

    Raises:
        ValueError: a batch size below 1.
    """

    def __init__(self, mllm: Mllm, batch_size: int) -> None:
        if batch_size < 1:
            raise ValueError(f"a batch holds at least one conversation; got batch_size={batch_size}")
        self.mllm = mllm
        self.batch_size = batch_size

    def generate(self, conversations: Sequence[Conversation], max_new_tokens: int) -> list[Reply]:
        """The replies, without special tokens and surrounding white space; one is finished when it has its end token.

        Raises:
            ValueError: a conversation whose last turn is not the user's.
            DataError: an image cannot be read.
        """
        for conversation in conversations:
            if not conversation.asks:
                raise ValueError(f"the last turn must be the user's; got {conversation.turns[-1]}")
        order = sorted(range(len(conversations)), key=lambda index: _cost(conversations[index]))
        replies: dict[int, Reply] = {}
        with _evaluating(self.mllm.model):
            for start in range(0, len(order), self.batch_size):
                batch = order[start : start + self.batch_size]
                written = self._generate_batch([conversations[index] for index in batch], max_new_tokens)
                replies.update(zip(batch, written, strict=True))
        return [replies[index] for index in range(len(conversations))]

    def score_answers(self, inquiries: Sequence[YesNoQuery]) -> list[list[list[YesNo]]]:
        """For each inquiry, for each of its questions, the probabilities of each of its answers; see `yes_no.py`.

        Raises:
            DataError: an image cannot be read.
            ModelError: the chat template or the tokenizer does not let the answers be told apart.
        """
        from sam4mllm.mllm.point_scoring import score_answers

        order = sorted(range(len(inquiries)), key=lambda index: _cost(inquiries[index].history))
        with _evaluating(self.mllm.model):
            weighed = score_answers(self.mllm, [inquiries[index] for index in order], self.batch_size)
        found = dict(zip(order, weighed, strict=True))
        return [found[index] for index in range(len(inquiries))]

    def _generate_batch(self, conversations: Sequence[Conversation], max_new_tokens: int) -> list[Reply]:
        import torch
        from transformers import GenerationConfig

        mllm = self.mllm
        tokenizer = mllm.processor.tokenizer
        inputs = model_inputs(
            mllm.processor,
            [messages_with_image(conversation) for conversation in conversations],
            padding_side="left",
            add_generation_prompt=True,
        ).to(mllm.device, mllm.dtype)
        # Each value that would change greedy decoding is set here, because transformers fills the others from the
        # checkpoint's own generation_config, and some chat models ship a repetition penalty, which spoils coordinates.
        settings = GenerationConfig(
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            max_new_tokens=max_new_tokens,
            eos_token_id=mllm.end_ids,
            pad_token_id=tokenizer.pad_token_id,
            use_cache=True,
        )
        logprobs: list[torch.Tensor] = []

        def keep_logprob(_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            """Greedy decoding takes the likeliest token, so its probability is all that is kept of a vocabulary."""
            logprobs.append(scores.float().log_softmax(dim=-1).amax(dim=-1))
            return scores

        # Not inference mode: what FSDP gathers of the weights in it could not serve the next training step.
        with torch.no_grad():
            tokens = mllm.model.generate(**inputs, generation_config=settings, logits_processor=[keep_logprob])
        written = tokens[:, inputs["input_ids"].shape[1] :]
        finished = torch.isin(written, torch.tensor(mllm.end_ids).to(written)).any(dim=1).tolist()
        rows = zip(written.tolist(), torch.stack(logprobs, dim=1).tolist(), finished, strict=True)
        return [_reply(tokenizer, row, logs, whole, mllm.end_ids) for row, logs, whole in rows]


def _reply(
    tokenizer: Any, tokens: Sequence[int], logprobs: Sequence[float], finished: bool, end_ids: Sequence[int]
) -> Reply:
    """What was written, without special tokens and surrounding white space, and which token wrote what of it.

    Of a reply that was cut off, which is no answer, nobody asks which token wrote what.
    """
    if not finished:
        return Reply(tokenizer.decode(tokens, skip_special_tokens=True).strip(), False)
    length = 1 + next(place for place, token in enumerate(tokens) if token in end_ids)
    prefixes = [tokens[: count + 1] for count in range(length)]
    texts = tokenizer.batch_decode(prefixes, skip_special_tokens=True)
    text = texts[-1].strip()
    before = len(texts[-1]) - len(texts[-1].lstrip())
    ends = [min(max(len(each) - before, 0), len(text)) for each in texts]
    # A token that adds nothing (padding, the end of the turn) writes nothing.
    kept = [(end, logprob) for begin, end, logprob in zip([0, *ends], ends, logprobs, strict=False) if end > begin]
    return Reply(text, finished, tuple(kept))


def _cost(conversation: Conversation) -> tuple[int, int]:
    """What decides the number of tokens: the image's area in pixels and the characters of the turns.

    An image that cannot be opened sorts first; the batch it comes to says what is wrong with it.
    """
    return _area(conversation.image), sum(len(turn.text) for turn in conversation.turns)


def _area(image: Any) -> int:
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
def _evaluating(model: Any) -> Iterator[None]:
    """The model in evaluation mode, and back in the mode it was found in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
