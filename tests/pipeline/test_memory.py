"""Prediction with too little memory: fewer images, conversations or prompts at once, and the same predictions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sam4mllm.errors import DeviceMemoryError
from sam4mllm.methods.registry import method_from_settings
from sam4mllm.mllm.loading import load_mllm
from sam4mllm.mllm.transformers_engine import TransformersEngine
from sam4mllm.pipeline.batch import predict
from sam4mllm.pipeline.pipeline import Pipeline
from sam4mllm.segmenters.fake import BoxSegmenter
from sam4mllm.testing import save_tiny_mllm
from tests.pipeline.test_batch import lines_of, make_pipeline, make_queries


class SmallDevice(BoxSegmenter):
    """A segmenter on a device with memory for `images` embedded and `prompts` decoded at once."""

    def __init__(self, images: int = 99, prompts: int = 99) -> None:
        super().__init__()
        self.images, self.prompts = images, prompts

    def embed(self, images):  # type: ignore[no-untyped-def]
        if len(images) > self.images:
            raise torch.OutOfMemoryError("no room")
        return super().embed(images)

    def decode_points(self, embeddings, index, *arguments):  # type: ignore[no-untyped-def]
        if len(index) > self.prompts:
            raise torch.OutOfMemoryError("no room")
        return super().decode_points(embeddings, index, *arguments)


@pytest.mark.parametrize(
    ("device", "messages"),
    [
        ({"images": 1}, ["out of memory with 4 images at once; 1 at once"]),
        ({"prompts": 5}, ["out of memory with 18 prompts at once; 4 at once"]),
        (
            {"images": 2, "prompts": 1},
            ["out of memory with 4 images at once; 2 at once", "out of memory with 18 prompts at once; 1 at once"],
        ),
    ],
)
def test_the_segmenter_gets_smaller_batches_which_is_reported_once(tmp_path, caplog, device, messages) -> None:
    queries = make_queries(tmp_path)
    predict(make_pipeline(image_batch=6)[0], queries, tmp_path / "complete")
    pipeline, engine = make_pipeline(image_batch=6)
    pipeline.segmenter = SmallDevice(**device)
    summary = predict(pipeline, queries, tmp_path / "out")
    assert lines_of(tmp_path / "out") == lines_of(tmp_path / "complete") and summary.ok == 18
    assert [record.getMessage().partition(" from now")[0] for record in caplog.records] == messages
    assert len(engine.asked) == 18


def test_memory_that_runs_out_elsewhere_reduces_the_images_asked_together(tmp_path, caplog) -> None:
    class LargeMasks(BoxSegmenter):
        def masks(self, decoded):  # type: ignore[no-untyped-def]
            if len(decoded.index) > 2:
                raise torch.OutOfMemoryError("no room")
            return super().masks(decoded)

    queries = make_queries(tmp_path)
    predict(make_pipeline()[0], queries, tmp_path / "complete")
    pipeline, _ = make_pipeline(image_batch=6)
    pipeline.segmenter = LargeMasks()
    # Each image has three queries, so even a single image does not fit: its queries are answered one by one.
    predict(pipeline, queries, tmp_path / "out")
    assert lines_of(tmp_path / "out") == lines_of(tmp_path / "complete")
    assert [record.getMessage().partition(" from now")[0] for record in caplog.records] == [
        "out of memory with 6 images at once; 1 at once"
    ]


def test_too_little_memory_for_one_query_ends_the_run_and_keeps_complete_shards(tmp_path: Path) -> None:
    queries = make_queries(tmp_path)
    pipeline, _ = make_pipeline()
    segmenter = SmallDevice()
    pipeline.segmenter = segmenter
    answer_queries = pipeline.answer_queries

    def after_two_images(images, pairs):
        if any(image.shape[0] >= 44 for image in images):
            segmenter.images = 0
        return answer_queries(images, pairs)

    pipeline.answer_queries = after_two_images
    with pytest.raises(DeviceMemoryError, match=r"one of the images alone: free memory .*\(no room\)"):
        predict(pipeline, queries, tmp_path / "out", shard_size=6)
    resumed, engine = make_pipeline()
    assert predict(resumed, queries, tmp_path / "out", shard_size=6).ok == 18 and len(engine.asked) == 6


def test_the_model_generates_smaller_batches(tmp_path, monkeypatch, caplog) -> None:
    mllm = load_mllm(str(save_tiny_mllm("fast_vlm", tmp_path / "model", seed=1)))
    method = method_from_settings({"name": "ppg", "positives": 2, "negatives": 1, "grid": 1000, "phrases": 1})
    forward, tried = mllm.model.forward, []

    def with_room_for_two(**inputs):
        if "pixel_values" in inputs or inputs["input_ids"].shape[1] > 1:
            tried.append(len(inputs["input_ids"]))
        if len(inputs["input_ids"]) > 2:
            raise torch.OutOfMemoryError("no room")
        return forward(**inputs)

    def answers(name: str) -> dict[str, dict]:
        pipeline = Pipeline(method, TransformersEngine(mllm, 8), BoxSegmenter(), max_new_tokens=4, image_batch=6)
        predict(pipeline, make_queries(tmp_path, images=4, phrases=2), tmp_path / name)
        return lines_of(tmp_path / name)

    expected = answers("complete")
    monkeypatch.setattr(mllm.model, "forward", with_room_for_two)
    assert answers("out") == expected
    # Two images, then their four phrases two by two; and the other two images.
    assert tried == [4, 2, 2, 2, 2, 2, 2]
    assert [record.getMessage().partition(" from now")[0] for record in caplog.records] == [
        "out of memory with 4 conversations at once; 2 at once"
    ]
