"""The ML backend over HTTP with the types of label-studio-sdk: configuration, tasks, predictions, corrected tasks."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import pytest

from sam4mllm.data.reading import read_dataset
from tests.data.tiny_datasets import write_image
from tests.labeling.servers import ask, backend
from tests.labeling.test_backend import LEFT
from tests.labeling_tools.test_export import with_accepted_rle


def test_predictions_are_accepted_and_corrected_tasks_are_read(tmp_path: Path) -> None:
    pytest.importorskip("label_studio_sdk")
    from label_studio_sdk.converter.brush import decode_rle, mask2rle
    from label_studio_sdk.label_interface import LabelInterface
    from label_studio_sdk.label_interface.create import labels
    from label_studio_sdk.label_interface.objects import AnnotationValue, PredictionValue, TaskValue
    from label_studio_sdk.types import Prediction

    # 1. A project of the SDK's own making, and a task.
    config = LabelInterface.create({"image": "Image", "mask": labels(["left", "object"], tag_type="BrushLabels")})
    interface = LabelInterface(config)
    interface.validate()
    write_image(tmp_path / "photos/a.png", 20, 10)
    task = TaskValue(data={"image": "/data/local-files/?d=a.png", "phrase": "left"})
    request = {"tasks": [{"id": 1, **task.model_dump()}], "label_config": config, "project": "4.17"}

    with backend(tmp_path) as port:
        assert ask(port, "POST", "/setup", {"schema": config, "project": "4.17"})[0] == 200
        # 2. The prediction is one for the SDK, and its mask is what the pipeline segmented.
        status, answer = ask(port, "POST", "/predict", request)
        assert status == 200
        (prediction,) = answer["results"]
        assert interface.validate_prediction(with_accepted_rle(prediction), return_errors=True) == []
        assert PredictionValue(**prediction).model_version == "run-1"
        now = datetime.datetime.now(datetime.UTC)
        stored = Prediction(id=1, task=1, created_ago="0 s", created_at=now, updated_at=now, **prediction)
        (region,) = stored.result
        mask = decode_rle(region["value"]["rle"]).reshape(10, 20, 4)[..., 3] > 0
        assert np.array_equal(mask, LEFT)

        # 3. The mask is corrected, in the SDK's encoding, and comes back as training data.
        corrected = LEFT.copy()
        corrected[0:3, 10:14] = True
        region["value"]["rle"] = mask2rle(corrected.astype(np.uint8) * 255)
        annotation = AnnotationValue(result=[region], completed_by=1)
        tasks = [{"id": 1, "data": task.data, "annotations": [annotation.model_dump()]}]
        status, answer = ask(port, "POST", "/train", {"annotations": tasks, "project": "4.17"})
        assert status == 201 and answer["problems"] == []
    (sample,) = read_dataset("jsonl", path=tmp_path / "out/project-4.jsonl")
    assert sample.phrase == "left" and np.array_equal(sample.mask(), corrected)
