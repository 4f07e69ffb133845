"""Majority vote: who wins, which objects are kept, what their masks, prompts and scores are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from sam4mllm.data.predictions import Confidence
from sam4mllm.errors import DataError, ModelError
from sam4mllm.geometry import Box, SamPrompt
from sam4mllm.methods.registry import method_from_settings
from sam4mllm.mllm.engine import Reply, Sampling
from sam4mllm.mllm.scripted_engine import ScriptedEngine
from sam4mllm.pipeline.batch import predict
from sam4mllm.pipeline.pipeline import Pipeline
from sam4mllm.pipeline.plan import resolve
from sam4mllm.pipeline.result import Result
from sam4mllm.pipeline.votes import merge_votes
from sam4mllm.recipe.schema import MethodSection
from sam4mllm.runs.calibration import fit_calibration
from sam4mllm.segmenters.fake import BoxSegmenter
from sam4mllm.synthetic.scenes import make_scene
from tests.pipeline.test_batch import lines_of, make_queries

SIZE = 20


def box(x1: int, x2: int) -> Box:
    return Box(x1, 0, x2, SIZE)


def ok(score: float, *boxes: Box) -> Result:
    """Return the result of an answer with these boxes as its masks."""
    columns = torch.arange(SIZE)
    rows = [((columns >= each.x1) & (columns < each.x2)).expand(SIZE, SIZE) for each in boxes]
    scores = torch.full((len(boxes),), score)
    confidence = (Confidence(iou=score),) * len(boxes)
    text = " ".join(f"{each.x1:.0f}-{each.x2:.0f}" for each in boxes)
    return Result(torch.stack(rows), [SamPrompt(each) for each in boxes], scores, "ok", text, None, confidence, score)


def none(score: float | None) -> Result:
    masks = torch.zeros((0, SIZE, SIZE), dtype=torch.bool)
    return Result(masks, [], torch.zeros(0), "no_object", f"none {score}", None, (Confidence(),), score)


def malformed(text: str = "odd") -> Result:
    return Result(torch.zeros((0, SIZE, SIZE), dtype=torch.bool), [], torch.zeros(0), "malformed", text, "why", (), 0.0)


def columns_of(result: Result) -> list[list[int]]:
    """Return the columns of each mask."""
    return [mask.all(dim=0).nonzero().flatten().tolist() for mask in result.masks]


@pytest.mark.parametrize(
    ("results", "status", "score"),
    [
        ([ok(1, box(0, 4)), none(1), none(1)], "no_object", 2 / 3),
        ([ok(0.9, box(0, 4)), none(0.3), none(0.3)], "ok", 0.9 / 1.5),
        ([ok(0.5, box(0, 4)), none(0.5)], "ok", 0.5),
        ([none(None), ok(0.9, box(0, 4))], "no_object", 1 / 1.9),
        ([malformed(), malformed(), none(0.2)], "no_object", 1.0),
        ([malformed(), ok(0.2, box(0, 4)), malformed()], "ok", 1.0),
        ([malformed("first"), malformed("second")], "malformed", 0.0),
        ([none(0.0), none(0.0)], "no_object", 1.0),
        ([ok(0.0, box(0, 4)), none(0.0), none(0.0)], "no_object", 2 / 3),
    ],
)
def test_the_status_has_more_than_half_of_the_weight(results: Sequence[Result], status: str, score: float) -> None:
    merged = merge_votes(results)
    assert merged.status == status and merged.score == pytest.approx(score)
    assert len(merged.masks) == len(merged.prompts) == len(merged.scores) == (status == "ok")
    if status == "malformed":
        assert merged.answer == "first" and merged.reason == "why"


@pytest.mark.parametrize(
    ("results", "columns", "prompt", "scores"),
    [
        # The pixels of the majority; the prompt is that of the mask next to it.
        ([ok(1, box(0, 8)), ok(1, box(0, 10)), ok(1, box(2, 10))], [range(10)], [box(0, 10)], [1]),
        # Weights decide about pixels.
        ([ok(0.2, box(0, 8)), ok(0.2, box(0, 8)), ok(0.9, box(0, 10))], [range(10)], [box(0, 10)], [1]),
        # Another object is not merged into the first one; the majority has it.
        ([ok(1, box(0, 5)), ok(1, box(10, 15)), ok(1, box(10, 15))], [range(10, 15)], [box(10, 15)], [2 / 3]),
        # All differ: the one of the highest weight.
        ([ok(0.5, box(0, 5)), ok(0.7, box(6, 11)), ok(0.6, box(12, 17))], [range(6, 11)], [box(6, 11)], [0.7 / 1.8]),
        # Two objects, of which the third answer has one, and one answer has a further one.
        (
            [ok(1, box(0, 5), box(10, 15)), ok(1, box(10, 15), box(0, 5)), ok(1, box(0, 5), box(16, 20))],
            [range(5), range(10, 15)],
            [box(0, 5), box(10, 15)],
            [1, 2 / 3],
        ),
        # Two boxes of one answer are two objects, though each overlaps the same mask of another answer.
        (
            [ok(1, box(0, 10), box(0, 9)), ok(0.9, box(0, 10))],
            [range(10), range(9)],
            [box(0, 10), box(0, 9)],
            [1, 1 / 1.9],
        ),
        # "No object" lowers the agreement.
        ([ok(1, box(0, 5)), ok(1, box(0, 5)), none(1)], [range(5)], [box(0, 5)], [2 / 3]),
    ],
)
def test_objects_are_those_of_the_majority(results, columns, prompt, scores) -> None:
    merged = merge_votes(results)
    assert columns_of(merged) == [list(each) for each in columns]
    assert [each.box for each in merged.prompts] == prompt
    assert merged.scores.tolist() == pytest.approx(scores) and merged.score == pytest.approx(min(scores))
    assert len(merged.confidence) == len(columns)


def test_an_object_has_a_mask_where_the_matched_masks_share_few_pixels() -> None:
    chain = [ok(1, box(0, 10)), ok(1, box(3, 12)), ok(1, box(0, 6))]
    assert columns_of(merge_votes(chain)) == [list(range(10))]
    lone = [ok(1, box(0, 4)), ok(1, box(8, 12))]
    assert columns_of(merge_votes(lone)) == [list(range(4))]


def test_a_vote_needs_a_result() -> None:
    with pytest.raises(ValueError, match="at least one"):
        merge_votes([])


def ppg_pipeline(answers, votes: Sampling | None, **options):  # type: ignore[no-untyped-def]
    method = method_from_settings(MethodSection(positives=0, negatives=0, coordinates="grid").model_dump())
    return Pipeline(method, ScriptedEngine(answers), BoxSegmenter(64), votes=votes, **options)


def test_a_pipeline_with_votes_merges_the_answers_of_each_phrase() -> None:
    image = np.zeros((40, 40, 3), dtype=np.uint8)
    answers = ["[000,000,500,499]", "[000,000,499,499]", "No object found."]
    answers += ["No object found.", "[900,900,999,999]", "No object found."]
    pipeline = ppg_pipeline(answers, Sampling(3))
    first, second = pipeline([(image, "left"), (image, "right")])
    assert first.status == "ok" and first.score == pytest.approx(2 / 3) and len(first.masks) == 1
    assert second.status == "no_object" and second.score == pytest.approx(2 / 3)
    assert pipeline.engine.asked[0] == pipeline.engine.asked[2] != pipeline.engine.asked[3]


def test_equal_answers_are_segmented_once() -> None:
    decoded: list[int] = []

    class Counting(BoxSegmenter):
        def decode_points(self, embeddings, index, *arguments):  # type: ignore[no-untyped-def]
            decoded.append(len(index))
            return super().decode_points(embeddings, index, *arguments)

    pipeline = ppg_pipeline(["[000,000,500,499]"] * 3 + ["[000,000,400,499]"], Sampling(4))
    pipeline.segmenter = Counting(64)
    result = pipeline(np.zeros((40, 40, 3), dtype=np.uint8), "x")
    assert decoded == [2] and columns_of(result)[0] == []
    assert int(result.mask.sum()) == 20 * 20


def test_a_job_with_votes_is_another_job_and_keeps_its_scores(tmp_path: Path) -> None:
    queries = make_queries(tmp_path, images=2, phrases=2)
    plain = ppg_pipeline(lambda conversation: "[000,000,500,500]", None, image_batch=1)
    predict(plain, queries, tmp_path / "plain")
    pairs = [(Confidence(None, None, iou), iou > 0.5) for iou in (0.1, 0.9) * 20]
    calibration = fit_calibration(pairs, [], "val")

    def pipeline(votes: Sampling | None) -> Pipeline:
        return ppg_pipeline(lambda conversation: "[000,000,500,500]", votes, image_batch=1, calibration=calibration)

    predict(pipeline(Sampling(3)), queries, tmp_path / "votes")
    # All votes agree; a calibration is for answers that were not merged.
    assert {line["score"] for line in lines_of(tmp_path / "votes").values()} == {1.0}
    job = json.loads((tmp_path / "votes/job.json").read_text())
    assert job["votes"] == {"samples": 3, "temperature": 0.5, "seed": 0} and "calibration" in job
    for other in (pipeline(None), pipeline(Sampling(3, temperature=0.7)), pipeline(Sampling(4))):
        with pytest.raises(DataError, match=r"different: .*votes"):
            predict(other, queries, tmp_path / "votes")
    assert "votes" not in json.loads((tmp_path / "plain/job.json").read_text())


def test_one_vote_is_the_greedy_answer(tmp_path: Path) -> None:
    queries = make_queries(tmp_path, images=2, phrases=2)
    pipelines = [ppg_pipeline(lambda conversation: "[000,000,500,500]", votes) for votes in (None, Sampling(1))]
    for number, pipeline in enumerate(pipelines):
        pipeline.engine.generate_samples = None
        predict(pipeline, queries, tmp_path / str(number))
    for name in ("job.json", "predictions.jsonl"):
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "1" / name).read_bytes()


def test_methods_and_engines_without_votes_are_refused() -> None:
    class Greedy:
        def generate(self, conversations, max_new_tokens):  # type: ignore[no-untyped-def]
            return [Reply("")]

    ppg = method_from_settings(MethodSection(coordinates="grid").model_dump())
    with pytest.raises(ModelError, match="Greedy does not draw; leave out --votes"):
        Pipeline(ppg, Greedy(), BoxSegmenter(), votes=Sampling(2))
    pqpp = method_from_settings(MethodSection(name="pqpp", coordinates="grid").model_dump())
    with pytest.raises(ModelError, match="one question per phrase, not pqpp; leave out --votes"):
        Pipeline(pqpp, ScriptedEngine([]), BoxSegmenter(), votes=Sampling(2))


def test_votes_and_temperature_become_the_sampling_of_the_plan() -> None:
    assert resolve("shapes", device="cpu").votes is None is resolve("shapes", device="cpu", votes=1).votes
    assert resolve("shapes", device="cpu", votes=4).votes == Sampling(4)
    assert resolve("shapes", device="cpu", votes=4, temperature=0.7).votes == Sampling(4, 0.7)
    with pytest.raises(ModelError, match="--temperature is that of votes"):
        resolve("shapes", device="cpu", temperature=0.5)
    with pytest.raises(ModelError, match="samples must be at least 1"):
        resolve("shapes", device="cpu", votes=0)


def test_the_votes_of_a_model_do_not_depend_on_the_batch() -> None:
    """The embedded model: one phrase at a time, and several phrases about two images together."""
    pairs = [(make_scene(5, 0).image, "the ring"), (make_scene(5, 1).image, "the star")]
    pipeline = Pipeline.from_pretrained("shapes", device="cpu", votes=2, temperature=2.0, segmenter=BoxSegmenter())
    together = pipeline(pairs)
    assert len({result.answer for result in together}) > 1
    for (image, phrase), result in zip(pairs, together, strict=True):
        alone = pipeline(image, phrase)
        assert (alone.status, alone.answer, alone.prompts) == (result.status, result.answer, result.prompts)
        assert torch.equal(alone.masks, result.masks) and alone.scores.tolist() == result.scores.tolist()
