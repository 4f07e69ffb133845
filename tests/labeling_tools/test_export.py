"""Exports are read by the libraries of the labeling programs: label-studio-sdk and datumaro (`make test-labeling`)."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sam4mllm.export.export import export_predictions
from tests.export.answers import DOT, HEIGHT, PARTS, RING, WIDTH, masks, write_predictions


def with_accepted_rle(prediction: dict[str, Any]) -> dict[str, Any]:
    """A prediction whose RLE is another one: the SDK's validator refuses what its own `mask2rle` returns."""
    result = copy.deepcopy(prediction["result"])
    for region in result:
        if "rle" in region["value"]:
            region["value"]["rle"] = [1, 1]
    return {**prediction, "result": result}


@pytest.mark.parametrize("as_attribute", [False, True])
def test_the_sdk_of_label_studio_accepts_the_tasks(as_attribute: bool, tmp_path: Path) -> None:
    pytest.importorskip("label_studio_sdk")
    from label_studio_sdk.converter.brush import decode_rle
    from label_studio_sdk.label_interface import LabelInterface
    from label_studio_sdk.label_interface.objects import PredictionValue, TaskValue

    export_predictions(write_predictions(tmp_path), "labelstudio", tmp_path / "out", as_attribute=as_attribute)
    interface = LabelInterface((tmp_path / "out/labeling_config.xml").read_text(encoding="utf-8"))
    interface.validate()
    drawn = []
    for task in json.loads((tmp_path / "out/tasks.json").read_text(encoding="utf-8")):
        assert TaskValue(**task).data == task["data"] and interface.validate_task({"data": task["data"]})
        for prediction in task["predictions"]:
            assert interface.validate_prediction(with_accepted_rle(prediction), return_errors=True) == []
            assert PredictionValue(**prediction).score == prediction["score"]
            regions = [each for each in prediction["result"] if each["type"] == "brushlabels"]
            texts = [each for each in prediction["result"] if each["type"] == "textarea"]
            assert [each["id"] for each in texts] == ([each["id"] for each in regions] if as_attribute else [])
            drawn += [each["value"]["rle"] for each in regions]
    for rle, name in zip(drawn, (RING, PARTS, DOT, DOT), strict=True):
        assert np.array_equal(decode_rle(rle).reshape(HEIGHT, WIDTH, 4)[..., 3] > 0, masks()[name])


def test_datumaro_reads_cvat(tmp_path: Path) -> None:
    pytest.importorskip("datumaro")
    from datumaro.components.dataset import Dataset

    export_predictions(write_predictions(tmp_path), "cvat", tmp_path / "out", as_attribute=True)
    # As CVAT's own exports, which have the images beside the annotations.
    (tmp_path / "cvat").mkdir()
    shutil.copy(tmp_path / "out/annotations.xml", tmp_path / "cvat")
    shutil.copytree(tmp_path / "photos", tmp_path / "cvat/images")
    items = {item.id: item.annotations for item in Dataset.import_from(str(tmp_path / "cvat"), "cvat")}
    assert list(items) == ["a", "b/c"]
    found = [each for annotations in items.values() for each in annotations if hasattr(each, "image")]
    assert [(each.attributes["phrase"], float(each.attributes["score"])) for each in found] == [
        (RING, 0.75),
        (PARTS, 0.5),
        (PARTS, 0.25),
        (RING, 1.0),
    ]
    for each, name in zip(found, (RING, PARTS, DOT, DOT), strict=True):
        assert np.array_equal(each.image, masks()[name])
    (tag,) = [each for each in items["b/c"] if not hasattr(each, "image")]
    assert tag.attributes["phrase"] == "the dragon"
