"""The ceiling: what a model would reach that said, word for word, what is taught.

The taught text goes the way of any answer: parsed, handed to SAM, drawn as masks. What is lost here no training wins
back. This module knows no model but the segmenter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from sam4mllm.data.images import load_image
from sam4mllm.data.queries import PredictionLine, queries_of
from sam4mllm.data.sample import Sample
from sam4mllm.methods import Method
from sam4mllm.methods.base import Taught, teachable
from sam4mllm.mllm.scripted import ScriptedEngine
from sam4mllm.predict.lines import line_of
from sam4mllm.predict.pipeline import Pipeline
from sam4mllm.progress import Advance, ignore
from sam4mllm.segment.base import Segmenter


def recite(
    samples: Sequence[Sample],
    targets: Mapping[str, Taught],
    method: Method,
    segmenter: Segmenter,
    *,
    advance: Advance = ignore,
) -> Iterator[PredictionLine]:
    """The predictions of a model that recites its lessons, picture by picture; none for a phrase that cannot be taught.

    Raises:
        DataError: a picture that cannot be read.
    """
    by_picture: dict[Path, list[Sample]] = {}
    for sample in samples:
        by_picture.setdefault(sample.image, []).append(sample)
    for image, group in by_picture.items():
        said = [sample for sample in group if teachable(sample, targets)]
        texts = [method.teach([sample], targets)[0].turns[-1].text for sample in said]
        pipeline = Pipeline(method, ScriptedEngine(texts), segmenter)
        results = pipeline.answer([load_image(image)], [(0, sample.phrase) for sample in said]) if said else []
        for query, result in zip(queries_of(said), results, strict=True):
            yield line_of(query, result)
        advance(len(group))
