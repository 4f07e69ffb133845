"""`Result.to_supervision`: masks, boxes and scores as supervision reads them, and its own annotator draws them."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from sam4mllm.errors import ModelError
from sam4mllm.geometry import Box, Point, SamPrompt
from sam4mllm.pipeline.result import Result


def result() -> Result:
    """Three objects: one prompted by a box, one whose mask has no pixel, one prompted by a point alone."""
    masks = torch.zeros(3, 10, 20, dtype=torch.bool)
    masks[0, 2:6, 3:9] = True
    masks[2, 9, 19] = True
    prompts = [SamPrompt(Box(3, 2, 10, 7)), SamPrompt(Box(0, 0, 1, 1)), SamPrompt(None, (Point(19.5, 9.5, 1),))]
    return Result(masks, prompts, torch.tensor([0.9, 0.1, 0.5]), "ok", "answer")


def test_detections_hold_masks_boxes_and_scores() -> None:
    supervision = pytest.importorskip("supervision")
    detections = result().to_supervision()
    assert detections.xyxy.tolist() == [[3, 2, 9, 6], [19, 9, 20, 10]]
    assert detections.confidence is not None and detections.confidence.tolist() == pytest.approx([0.9, 0.5])
    assert np.array_equal(detections.mask, result().masks.numpy()[[0, 2]])
    assert np.isnan(detections.data["prompt_box_xyxy"]).all(axis=1).tolist() == [False, True]
    assert detections[detections.confidence > 0.6].xyxy.tolist() == [[3, 2, 9, 6]]
    drawn = supervision.MaskAnnotator(opacity=1).annotate(np.zeros((10, 20, 3), dtype=np.uint8), detections)
    assert np.array_equal(drawn.any(axis=2), result().mask.numpy())


def test_no_object_is_an_empty_detections() -> None:
    pytest.importorskip("supervision")
    empty = Result(torch.zeros(0, 10, 20, dtype=torch.bool), [], torch.zeros(0), "no_object", "No object found.")
    assert len(empty.to_supervision()) == 0


def test_the_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ModelError, match=r"pip install 'sam4mllm\[supervision\]'"):
        result().to_supervision()
