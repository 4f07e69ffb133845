"""Functions that several methods share: parse replies by the answer grammar, order prompts, group training samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, get_args

from sam4mllm.data.predictions import CUT_OFF, Confidence
from sam4mllm.data.sample import MaskObject, Sample
from sam4mllm.errors import ModelError
from sam4mllm.geometry import Box, Point, SamPrompt
from sam4mllm.methods.base import Answer
from sam4mllm.mllm.engine import Engine, LocatingEngine, Reply, ScoringEngine
from sam4mllm.prompts.conversation import Conversation, Exchange, isolated_conversation, training_conversation
from sam4mllm.prompts.grammar import AnswerGrammar
from sam4mllm.recipe.schema import Packing


def parse_reply(grammar: AnswerGrammar, reply: Reply, size_wh: tuple[int, int], max_new_tokens: int) -> Answer:
    """Parse a reply of at most `max_new_tokens` tokens about an image of `size_wh` pixels.

    A reply that was cut off is malformed even if the rest parses, because that rest may lack an object. The confidence
    is the mean log-probability of each object's box, or of the whole text for "no object".
    """
    if not reply.finished:
        return Answer("malformed", (), reply.text, f"{CUT_OFF}{max_new_tokens}")
    parsed = grammar.parse(reply.text, size_wh)
    spans = {"ok": parsed.box_spans, "no_object": ((0, len(reply.text)),), "malformed": ()}[parsed.status]
    confidence = tuple(Confidence(reply.mean_logprob(start, end)) for start, end in spans)
    return Answer(parsed.status, parsed.prompts, reply.text, parsed.reason, confidence)


def replace_points(answer: Answer, points: Sequence[Sequence[tuple[Point, float]]]) -> Answer:
    """Return the answer with other points: for each prompt, (point, probability of its label) pairs.

    The mean of the probabilities becomes the prompt's `Confidence.points`. An answer without prompts is returned as it
    is.
    """
    if not answer.prompts:
        return answer
    prompts = [
        SamPrompt(prompt.box, tuple(point for point, _ in scored))
        for prompt, scored in zip(answer.prompts, points, strict=True)
    ]
    confidence = [
        replace(before, points=fmean(probability for _, probability in scored) if scored else None)
        for before, scored in zip(answer.confidence, points, strict=True)
    ]
    return replace(answer, prompts=tuple(prompts), confidence=tuple(confidence))


def require_scoring_engine(engine: Engine) -> ScoringEngine:
    """Return `engine` if it can return yes/no probabilities.

    Raises:
        ModelError: The engine does not return them.
    """
    if not isinstance(engine, ScoringEngine):
        raise ModelError(
            f"the method pqpp needs the probabilities of yes and no, which {type(engine).__name__} does not return; "
            "run the model in this process (without --server)"
        )
    return engine


def require_locating_engine(engine: Engine) -> LocatingEngine:
    """Return `engine` if it can decode the locations of answers.

    Raises:
        ModelError: The engine does not decode them.
    """
    if not isinstance(engine, LocatingEngine):
        raise no_locations_error(type(engine).__name__)
    return engine


def no_locations_error(engine: str) -> ModelError:
    """Return the error for a method with locations and an engine, of this name, that decodes none."""
    return ModelError(
        f"the method pix2emb needs the hidden states of location tokens, which {engine} does not return; run the model "
        "in this process (without --server)"
    )


def require_box(prompt: SamPrompt) -> Box:
    """Return the prompt's box; every object of an answer that was parsed by the grammar has one.

    Raises:
        ValueError: The prompt has points only.
    """
    if prompt.box is None:
        raise ValueError(f"this needs a prompt with a box; got a prompt with points only: {prompt.points}")
    return prompt.box


def reading_order(prompts: Sequence[SamPrompt]) -> list[SamPrompt]:
    """Return the prompts sorted by their box's left edge, then its top edge.

    A model can predict this order from the image; it cannot predict the order of an annotation file.

    Raises:
        ValueError: A prompt without a box.
    """
    return sorted(prompts, key=lambda prompt: (require_box(prompt).x1, require_box(prompt).y1))


def objects_in_reading_order(objects: Sequence[MaskObject]) -> list[MaskObject]:
    """Return the objects sorted as `reading_order` sorts their boxes."""
    return sorted(objects, key=lambda item: (item.box.x1, item.box.y1))


def group_samples(samples: Sequence[Sample], size: int, packing: Packing = "turns") -> list[list[Sample]]:
    """Split the samples of one image into groups of at most `size`, in turns without two samples of the same objects.

    In turns the second of two answers about the same objects could be copied from the first. Isolated phrases do not
    see each other, so they are grouped in their order.

    Raises:
        ValueError: The samples are about several images.
    """
    images = {sample.image for sample in samples}
    if len(images) > 1:
        raise ValueError(f"a conversation is about one image; got samples of {sorted(map(str, images))}")
    if packing == "isolated":
        return [list(samples[start : start + size]) for start in range(0, len(samples), size)]
    # 1. The n-th sample about the same set of objects goes to layer n, so no layer has two of them.
    layers: list[list[Sample]] = []
    counts: dict[frozenset[str], int] = {}
    for sample in samples:
        object_ids = frozenset(item.id for item in sample.objects)
        layer = counts.get(object_ids, 0)
        counts[object_ids] = layer + 1
        if layer == len(layers):
            layers.append([])
        layers[layer].append(sample)
    # 2. Each layer is cut into groups.
    return [layer[start : start + size] for layer in layers for start in range(0, len(layer), size)]


def check_packing(packing: str) -> None:
    """Check that `packing` is "turns" or "isolated".

    Raises:
        ValueError: It is another text.
    """
    if packing not in get_args(Packing):
        raise ValueError(f"packing must be {' or '.join(get_args(Packing))}; got {packing!r}")


def packing_setting(packing: Packing, phrases: int) -> dict[str, Any]:
    """Return the setting for method.json, which has only isolated packing of several phrases; without it: in turns."""
    return {} if packing == "turns" or phrases == 1 else {"packing": packing}


def packed_conversation(image: Path, exchanges: Sequence[Sequence[Exchange]], packing: Packing) -> Conversation:
    """Return one training conversation from the (question, answer) pairs of each phrase, which `packing` arranges.

    Raises:
        ValueError: No phrases, or one without pairs.
    """
    if packing == "isolated":
        return isolated_conversation(image, exchanges)
    return training_conversation(image, [pair for of_phrase in exchanges for pair in of_phrase])
