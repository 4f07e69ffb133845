"""Tasks with tiny random models: regions go in, text and locations come out, equal in batches and one by one."""

from __future__ import annotations

from pathlib import Path

import pytest

from sam4mllm.data.images import Rgb, as_rgb
from sam4mllm.data.predictions import Query
from sam4mllm.evaluation.tasks.answers import TaskQuery, answer_from_json
from sam4mllm.evaluation.tasks.ask import TaskPredictor
from sam4mllm.evaluation.tasks.base import TaskName
from sam4mllm.geometry import Box
from sam4mllm.methods.base import Method
from sam4mllm.methods.pix2emb import Pix2Emb
from sam4mllm.methods.ppg import Ppg
from sam4mllm.mllm.loading import load_mllm
from sam4mllm.mllm.locations import LocationSettings, add_locations
from sam4mllm.mllm.transformers_engine import TransformersEngine
from sam4mllm.pipeline.pipeline import Pipeline
from sam4mllm.prompts.questions import ask_grounded_caption, ask_region_caption
from sam4mllm.segmenters.fake import NoSegmenter
from sam4mllm.testing import save_tiny_mllm
from tests.data.tiny_datasets import write_image

QUESTIONS: dict[TaskName, str] = {
    "rec": "the ring",
    "region-caption": ask_region_caption(),
    "pope": "Is there a cat?",
    "grounded-caption": ask_grounded_caption(),
}
METHODS = {"ppg": Ppg(0, 0, 100, 1), "pix2emb": Pix2Emb(prompt="both", sam_tokens=1, phrases=1)}


@pytest.fixture(scope="module", params=METHODS)
def pipeline(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    mllm = load_mllm(str(save_tiny_mllm("fast_vlm", tmp_path_factory.mktemp("base"), seed=1)))
    if request.param == "pix2emb":
        mllm = add_locations(mllm, LocationSettings(), seed=0)
    method: Method = METHODS[request.param]
    return Pipeline(
        method, TransformersEngine(mllm, 4), NoSegmenter("cpu"), max_new_tokens=6, constrained=True, image_batch=2
    )


@pytest.mark.parametrize("task", QUESTIONS)
def test_answers_do_not_depend_on_the_batch(pipeline: Pipeline, tmp_path: Path, task: TaskName) -> None:
    images: list[Rgb] = [as_rgb(write_image(tmp_path / f"{index}.png", 20 + 4 * index, 24)) for index in range(2)]
    regions = [(Box(1, 2, 9, 9),), (Box(3, 3, 20, 24),), (Box(0, 0, 4, 5),)] if task == "region-caption" else [()] * 3
    queries: list[tuple[int, Query]] = [
        (index, TaskQuery(f"q{number}", tmp_path / f"{index}.png", QUESTIONS[task], region))
        for number, (index, region) in enumerate(zip((0, 1, 0), regions, strict=True))
    ]
    predictor = TaskPredictor(pipeline, task)
    together = predictor.answer_queries(images, queries)
    alone = [predictor.answer_queries(images, [query])[0] for query in queries]
    assert [answer.answer for answer in together] == [answer.answer for answer in alone]
    assert [answer_from_json(line.to_json()) for line in together] == together
    asked = [(query.id, query.image, query.phrase) for _, query in queries]
    assert [(line.id, line.image, line.question) for line in together] == asked
    needed = {"rec": "boxes", "grounded-caption": "phrases"}.get(task, "answer")
    assert all(getattr(line, needed) is not None for line in together)
