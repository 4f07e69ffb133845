"""Oracle predictions with a segmenter whose mask is the box: only the rounding of the grid is lost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from sam4mllm.data.masks import decode
from sam4mllm.data.predictions import PredictionLine
from sam4mllm.data.sample import Sample
from sam4mllm.errors import DataError
from sam4mllm.geometry import Box
from sam4mllm.methods.base import Method
from sam4mllm.methods.registry import method_from_settings
from sam4mllm.pipeline.oracle import oracle_predictions
from sam4mllm.segmenters.fake import BoxSegmenter
from sam4mllm.targets.prepare import compute_targets
from sam4mllm.targets.store import ObjectTarget
from tests.targets.examples import SETTINGS, make_samples


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Two images, four phrases each: the left disc, the right one, both, none."""
    return make_samples(tmp_path_factory.mktemp("images"), images=2)


@pytest.fixture(scope="module")
def targets(samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> dict[str, ObjectTarget]:
    return compute_targets(samples, BoxSegmenter(), SETTINGS, tmp_path_factory.mktemp("targets")).read()


def _method(positives: int = 2, negatives: int = 1, grid: int = 1000) -> Method:
    numbers = {"positives": positives, "negatives": negatives, "grid": grid, "phrases": 1}
    return method_from_settings({"name": "ppg", **numbers})


def _box_mask(boxes: Sequence[Box], size_wh: tuple[int, int]) -> np.ndarray:
    rows, columns = np.mgrid[: size_wh[1], : size_wh[0]] + 0.5
    inside = [(columns >= x1) & (columns < x2) & (rows >= y1) & (rows < y2) for x1, y1, x2, y2 in boxes]
    return np.logical_or.reduce([np.zeros(rows.shape, dtype=bool), *inside])


def _mask(line: PredictionLine, size_wh: tuple[int, int]) -> np.ndarray:
    return np.logical_or.reduce([_box_mask([], size_wh), *(decode(item.segmentation) for item in line.objects)])


def test_the_targets_are_reproduced_up_to_the_rounding_of_the_grid(
    samples: list[Sample], targets: dict[str, ObjectTarget]
) -> None:
    method = _method()
    advanced: list[int] = []
    lines = list(oracle_predictions(samples, targets, method, BoxSegmenter(), advance=advanced.append))
    assert [line.id for line in lines] == [sample.id for sample in samples]
    for line, sample in zip(lines, samples, strict=True):
        assert line.answer == method.training_conversations([sample], targets)[0].turns[-1].text
        assert line.status == ("ok" if sample.objects else "no_object")
        assert (line.image, line.phrase) == (sample.image, sample.phrase)
        assert len(line.objects) == len(sample.objects)
        for item in line.objects:
            assert item.prompt is not None
            assert (len(item.prompt.positives), len(item.prompt.negatives)) == (2, 1)
        # Half a bin of a thousand moves no edge over a pixel's centre.
        wanted = _box_mask([item.box for item in sample.objects], sample.size_wh)
        assert np.array_equal(_mask(line, sample.size_wh), wanted)
    assert sum(advanced) == len(samples)


def test_the_rounding_of_a_coarse_grid_changes_the_masks(
    samples: list[Sample], targets: dict[str, ObjectTarget]
) -> None:
    """On a grid of four bins a box is moved by up to an eighth of the image."""
    for line, sample in zip(
        oracle_predictions(samples, targets, _method(grid=4), BoxSegmenter()), samples, strict=True
    ):
        wanted = _box_mask([item.box for item in sample.objects], sample.size_wh)
        assert np.array_equal(_mask(line, sample.size_wh), wanted) == (not sample.objects)


def test_a_phrase_without_all_its_targets_has_no_prediction(
    samples: list[Sample], targets: dict[str, ObjectTarget]
) -> None:
    left = samples[0].objects[0].id
    known = {object_id: target for object_id, target in targets.items() if object_id != left}
    advanced: list[int] = []
    lines = list(oracle_predictions(samples, known, _method(), BoxSegmenter(), advance=advanced.append))
    assert [line.id for line in lines] == [
        "0/right",
        "0/none",
        *(f"1/{phrase}" for phrase in ("left", "right", "both", "none")),
    ]
    assert sum(advanced) == len(samples)
    assert [line.id for line in oracle_predictions(samples, {}, _method(), BoxSegmenter())] == ["0/none", "1/none"]


def test_phrases_of_one_image_are_answered_together_wherever_they_are(
    samples: list[Sample], targets: dict[str, ObjectTarget]
) -> None:
    mixed = [samples[0], samples[4], samples[1]]
    lines = list(oracle_predictions(mixed, targets, _method(), BoxSegmenter()))
    assert [line.id for line in lines] == ["0/left", "0/right", "1/left"]


def test_a_missing_image_is_a_data_error(samples: list[Sample], targets: dict[str, ObjectTarget]) -> None:
    one = samples[0]
    gone = Sample(one.id, Path("nowhere.png"), one.size_wh, one.phrase, one.objects)
    with pytest.raises(DataError, match=r"nowhere\.png"):
        list(oracle_predictions([gone], targets, _method(), BoxSegmenter()))
