"""Oracle predictions: the masks of a model that generates the training targets word for word.

The target text is parsed and segmented like any answer, so its score is an upper bound for training on these targets.
Locations are those of the training conversations: the true boxes, with which alone SAM is prompted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from sam4mllm.data.images import load_image
from sam4mllm.data.predictions import PredictionLine, queries_of
from sam4mllm.data.sample import Sample
from sam4mllm.methods.base import Method, PromptTarget, has_targets
from sam4mllm.methods.registry import method_from_settings
from sam4mllm.mllm.engine import DecodedLocation, Reply
from sam4mllm.mllm.scripted_engine import ScriptedEngine
from sam4mllm.pipeline.pipeline import Pipeline
from sam4mllm.pipeline.result import prediction_line
from sam4mllm.prompts.conversation import LOCATION_TOKEN, Turn
from sam4mllm.segmenters.base import Segmenter
from sam4mllm.utils.progress import Advance, ignore


def oracle_predictions(
    samples: Sequence[Sample],
    targets: Mapping[str, PromptTarget],
    method: Method,
    segmenter: Segmenter,
    *,
    advance: Advance = ignore,
) -> Iterator[PredictionLine]:
    """Yield the predictions for the training targets of `samples`, image by image; none for a phrase without targets.

    `targets` is keyed by object id. `advance` is called with the number of samples done.

    Raises:
        DataError: An image cannot be read.
    """
    if method.needs_prompt_tokens:
        method = method_from_settings({**method.settings(), "prompt": "box"})
    by_image: dict[Path, list[Sample]] = {}
    for sample in samples:
        by_image.setdefault(sample.image, []).append(sample)
    for image, group in by_image.items():
        known = [each for each in group if method.needs_locations or has_targets(each, targets)]
        if known:
            answers = [method.training_conversations([sample], targets)[0].turns[-1] for sample in known]
            pipeline = Pipeline(method, ScriptedEngine([_reply(turn) for turn in answers]), segmenter)
            results = pipeline.answer([load_image(image)], [(0, sample.phrase) for sample in known])
            for query, result in zip(queries_of(known), results, strict=True):
                yield prediction_line(query, result)
        advance(len(group))


def _reply(turn: Turn) -> Reply:
    """Return the reply of a model that generates the turn's text, and whose locations decode to its boxes."""
    no_tokens = torch.zeros(0, 0)
    locations = [DecodedLocation(each.box, no_tokens, each.start + len(LOCATION_TOKEN)) for each in turn.locations]
    return Reply(turn.text, locations=tuple(locations))
