"""The ceiling: what a model would reach that said, word for word, what is taught.

The taught text goes the way of any answer: parsed, handed to SAM, drawn as masks. What is lost here no training wins
back. This module knows no model but the segmenter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from sam4mllm.data.images import load_image
from sam4mllm.data.predictions import PredictionLine, queries_of
from sam4mllm.data.sample import Sample
from sam4mllm.methods.base import PromptTarget, has_targets
from sam4mllm.methods.registry import Method
from sam4mllm.mllm.scripted_engine import ScriptedEngine
from sam4mllm.pipeline.lines import line_of
from sam4mllm.pipeline.pipeline import Pipeline
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
    """The predictions of a model that recites its lessons, image by image; none for a phrase that cannot be taught.

    Raises:
        DataError: an image that cannot be read.
    """
    by_image: dict[Path, list[Sample]] = {}
    for sample in samples:
        by_image.setdefault(sample.image, []).append(sample)
    for image, group in by_image.items():
        said = [sample for sample in group if has_targets(sample, targets)]
        texts = [method.training_conversations([sample], targets)[0].turns[-1].text for sample in said]
        pipeline = Pipeline(method, ScriptedEngine(texts), segmenter)
        results = pipeline.answer([load_image(image)], [(0, sample.phrase) for sample in said]) if said else []
        for query, result in zip(queries_of(said), results, strict=True):
            yield line_of(query, result)
        advance(len(group))
