"""What methods that are answered in the grammar share: the order and grouping of what is taught, and replies read back.

This module asks nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from sam4mllm.data.predictions import Confidence
from sam4mllm.data.sample import Sample
from sam4mllm.errors import ModelError
from sam4mllm.geometry import Point, SamPrompt
from sam4mllm.methods.base import Answer
from sam4mllm.mllm.engine import Engine, Reply, ScoringEngine
from sam4mllm.prompts.grammar import AnswerGrammar


def read_reply(grammar: AnswerGrammar, reply: Reply, size_wh: tuple[int, int], max_new_tokens: int) -> Answer:
    """What a reply of at most `max_new_tokens` tokens says about an image of `size_wh` pixels."""
    # What is left of a cut answer may well read as a shorter one, with an object too few.
    if not reply.finished:
        return Answer("malformed", (), reply.text, f"cut off at max_new_tokens={max_new_tokens}")
    parsed = grammar.parse(reply.text, size_wh)
    spans = {"ok": parsed.box_spans, "no_object": ((0, len(reply.text)),), "malformed": ()}[parsed.status]
    confidence = tuple(Confidence(reply.mean_logprob(start, end)) for start, end in spans)
    return Answer(parsed.status, parsed.prompts, reply.text, parsed.reason, confidence)


def with_points(answer: Answer, kept: Sequence[Sequence[tuple[Point, float]]]) -> Answer:
    """The answer with these points for each of its prompts, and how likely the model finds their labels in the mean.

    An answer without prompts stays as it is.
    """
    if not answer.prompts:
        return answer
    prompts = [
        SamPrompt(prompt.box, tuple(point for point, _ in points))
        for prompt, points in zip(answer.prompts, kept, strict=True)
    ]
    confidence = [
        replace(said, points=fmean(likely for _, likely in points) if points else None)
        for said, points in zip(answer.confidence, kept, strict=True)
    ]
    return replace(answer, prompts=tuple(prompts), confidence=tuple(confidence))


def require_scoring_engine(engine: Engine) -> ScoringEngine:
    """The engine, as one whose model's distribution can be read.

    Raises:
        ModelError: it cannot.
    """
    if not isinstance(engine, ScoringEngine):
        raise ModelError(
            f"pqpp reads how likely yes and no are, which a {type(engine).__name__} does not tell; run the model in "
            "this process (without --server)"
        )
    return engine


def reading_order(prompts: Sequence[SamPrompt]) -> list[SamPrompt]:
    """The prompts by their box's left edge, then its top: an order that a model can learn, as the file's is not.

    Raises:
        ValueError: a prompt without a box.
    """

    def corner(prompt: SamPrompt) -> tuple[float, float]:
        if prompt.box is None:
            raise ValueError(f"reading order goes by boxes; got a prompt with points only: {prompt.points}")
        return prompt.box.x1, prompt.box.y1

    return sorted(prompts, key=corner)


def grouped(samples: Sequence[Sample], size: int) -> list[list[Sample]]:
    """The samples of one image in groups of at most `size`, no two of which mean the same objects.

    Raises:
        ValueError: samples of several images.
    """
    images = {sample.image for sample in samples}
    if len(images) > 1:
        raise ValueError(f"a conversation is about one image; got samples of {sorted(map(str, images))}")
    layers: list[list[Sample]] = []
    seen: dict[frozenset[str], int] = {}
    for sample in samples:
        meaning = frozenset(item.id for item in sample.objects)
        layer = seen.get(meaning, 0)
        seen[meaning] = layer + 1
        if layer == len(layers):
            layers.append([])
        layers[layer].append(sample)
    return [layer[start : start + size] for layer in layers for start in range(0, len(layer), size)]
