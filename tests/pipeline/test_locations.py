"""Pipelines of the method pix2emb: what SAM is prompted with, refusals, the oracle and the baseline of boxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sam4mllm.data.images import Rgb
from sam4mllm.data.predictions import Query
from sam4mllm.data.sample import Sample
from sam4mllm.errors import ModelError
from sam4mllm.geometry import Box, SamPrompt, mask_of_box
from sam4mllm.methods.pix2emb import Pix2Emb
from sam4mllm.mllm.engine import Reply, Sampling
from sam4mllm.mllm.scripted_engine import ScriptedEngine
from sam4mllm.pipeline.baselines import BoxPredictor
from sam4mllm.pipeline.oracle import oracle_predictions
from sam4mllm.pipeline.pipeline import Pipeline
from sam4mllm.pipeline.result import prediction_line
from sam4mllm.prompts.conversation import LOCATION_TOKEN
from sam4mllm.recipe.schema import LocationPrompt
from sam4mllm.segmenters.base import DecodedMasks, Embeddings
from sam4mllm.segmenters.fake import BoxSegmenter
from tests.simulated import located
from tests.targets.examples import make_samples

WHOLE, LEFT, LOW = Box(0, 0, 1, 1), Box(0, 0, 0.5, 1), Box(0, 0.5, 1, 1)
IMAGES: list[Rgb] = [np.zeros((8, 16, 3), dtype=np.uint8), np.zeros((12, 8, 3), dtype=np.uint8)]


class TokenSegmenter(BoxSegmenter):
    """A BoxSegmenter that takes prompt tokens: without a box, the box in shares of the image is the first token."""

    def __init__(self) -> None:
        super().__init__(side=16)
        self.decoded: list[tuple[list[int], list[list[float]] | None]] = []

    @property
    def not_a_point(self) -> torch.Tensor:
        return torch.zeros(4)

    def decode_embedded(
        self, embeddings: Embeddings, index: torch.Tensor, boxes_xyxy: torch.Tensor | None, tokens: torch.Tensor
    ) -> DecodedMasks:
        self.decoded.append((index.tolist(), None if boxes_xyxy is None else boxes_xyxy.tolist()))
        if boxes_xyxy is None:
            sizes = torch.tensor([embeddings.sizes_wh[image] for image in index.tolist()]).repeat(1, 2)
            boxes_xyxy = tokens[:, 0] * sizes
        count = len(index)
        points, labels = torch.zeros(count, 0, 2), torch.zeros(count, 0, dtype=torch.int64)
        return self.decode_points(embeddings, index, boxes_xyxy, points, labels)


def make_pipeline(prompt: LocationPrompt, *replies: str | Reply) -> tuple[Pipeline, TokenSegmenter]:
    segmenter = TokenSegmenter()
    return Pipeline(Pix2Emb(prompt, 1, 1), ScriptedEngine(replies), segmenter), segmenter


REPLIES = (
    located(LOCATION_TOKEN * 2, LEFT, LOW, prompt_tokens=[WHOLE, LEFT]),
    "No object found.",
    "malformed",
    located(LOCATION_TOKEN, LOW, prompt_tokens=[WHOLE]),
)
PHRASES = [(1, "two"), (0, "none"), (0, "bad"), (0, "one")]


@pytest.mark.parametrize(
    ("prompt", "decoded", "masks"),
    [
        ("box", [], [[LEFT, LOW], [], [], [LOW]]),
        ("both", [([0, 1, 1], [[0, 4, 16, 8], [0, 0, 4, 12], [0, 6, 8, 12]])], [[LEFT, LOW], [], [], [LOW]]),
        ("embedding", [([0, 1, 1], None)], [[WHOLE, LEFT], [], [], [WHOLE]]),
    ],
)
def test_sam_gets_the_box_the_embedding_or_both(prompt: LocationPrompt, decoded: list, masks: list[list[Box]]) -> None:
    pipeline, segmenter = make_pipeline(prompt, *REPLIES)
    results = pipeline.answer(IMAGES, PHRASES)
    assert [result.status for result in results] == ["ok", "no_object", "malformed", "ok"]
    assert segmenter.decoded == decoded
    for (image, _), result, boxes in zip(PHRASES, results, masks, strict=True):
        size_wh = (IMAGES[image].shape[1], IMAGES[image].shape[0])
        expected = [mask_of_box(box.from_shares(size_wh), size_wh) for box in boxes]
        assert np.array_equal(result.masks.numpy(), np.array(expected).reshape(result.masks.shape))
    # The prompts are the decoded boxes, whatever SAM got.
    assert results[0].prompts == [SamPrompt(LEFT.from_shares((8, 12))), SamPrompt(LOW.from_shares((8, 12)))]


@pytest.mark.parametrize(
    ("prompt", "masks"), [("box", [LEFT, LOW]), ("both", [LEFT, LOW]), ("embedding", [WHOLE, LEFT])]
)
def test_marks_of_a_text_prompt_sam_as_the_method_does(prompt: LocationPrompt, masks: list[Box]) -> None:
    pipeline, _ = make_pipeline(prompt, REPLIES[0])
    result = pipeline.ask(IMAGES[1], "What are the two?")
    assert [mark.box for mark in result.marks] == [box.from_shares((8, 12)) for box in (LEFT, LOW)]
    assert np.array_equal(result.masks.numpy(), [mask_of_box(box.from_shares((8, 12)), (8, 12)) for box in masks])


def test_a_segmenter_without_prompt_tokens_is_refused_unless_the_box_is_the_prompt() -> None:
    for prompt in ("embedding", "both"):
        with pytest.raises(ModelError, match=r"BoxSegmenter takes no prompts as embeddings.*method\.prompt: box"):
            Pipeline(Pix2Emb(prompt, 1, 1), ScriptedEngine([]), BoxSegmenter())  # type: ignore[arg-type]
    Pipeline(Pix2Emb("box", 1, 1), ScriptedEngine([]), BoxSegmenter())


def test_an_engine_that_decodes_no_locations_is_refused() -> None:
    class TextEngine:
        def generate(self, conversations: object, max_new_tokens: int) -> list[Reply]:
            raise AssertionError("it is not asked")

    with pytest.raises(ModelError, match="TextEngine does not return; run the model in this process"):
        Pipeline(Pix2Emb("box", 1, 1), TextEngine(), BoxSegmenter())


def test_votes_are_refused() -> None:
    with pytest.raises(ModelError, match="those of pix2emb differ in hidden states; leave out --votes"):
        Pipeline(Pix2Emb("box", 1, 1), ScriptedEngine([]), BoxSegmenter(), votes=Sampling(3))


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """An image with four phrases: the left disc, the right one, both, none."""
    return make_samples(tmp_path_factory.mktemp("images"), images=1)


@pytest.mark.parametrize("prompt", ["box", "both"])
def test_the_oracle_prompts_sam_with_the_true_boxes(samples: list[Sample], prompt: LocationPrompt) -> None:
    lines = list(oracle_predictions(samples, {}, Pix2Emb(prompt, 1, 1), BoxSegmenter()))
    assert [line.id for line in lines] == [sample.id for sample in samples]
    for line, sample in zip(lines, samples, strict=True):
        boxes = [item.prompt.box for item in line.objects if item.prompt is not None]
        expected = sorted(item.box for item in sample.objects)
        assert line.status == ("ok" if sample.objects else "no_object")
        assert [tuple(box) for box in boxes if box is not None] == [pytest.approx(tuple(box)) for box in expected]


def test_the_baseline_prompts_sam_with_the_decoded_boxes_alone() -> None:
    pipeline, segmenter = make_pipeline("embedding", *REPLIES)
    queries = [Query(str(number), Path(f"{image}.png"), text) for number, (image, text) in enumerate(PHRASES)]
    results = pipeline.answer(IMAGES, PHRASES)
    lines = [prediction_line(query, result) for query, result in zip(queries, results, strict=True)]
    segmenter.decoded.clear()
    indexed = [(image, query) for (image, _), query in zip(PHRASES, queries, strict=True)]
    baseline = BoxPredictor(pipeline, lines).answer_queries(IMAGES, indexed)
    assert segmenter.decoded == []
    assert [each.prompts for each in baseline] == [each.prompts for each in results]
    assert np.array_equal(baseline[3].masks[0].numpy(), mask_of_box(LOW.from_shares((16, 8)), (16, 8)))
