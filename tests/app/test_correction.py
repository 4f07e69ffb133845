"""Correction of an answer by clicks on its drawing."""

from __future__ import annotations

import numpy as np
import pytest

from sam4mllm.app.answers import Mask
from sam4mllm.app.correction import Correction
from sam4mllm.errors import DataError
from sam4mllm.geometry import Box, Point, SamPrompt
from tests.app.pages import grey, scripted_models

LEFT = SamPrompt(Box(2.0, 1.0, 8.0, 5.0))
SCALE = 26
"""The drawing of 20 x 10 pixels has 520 x 260."""


def correction(phrase: str = "left", most_points: int = 64) -> tuple[Correction, list[SamPrompt]]:
    """A correction of the scripted answer to a phrase, and the prompts that are segmented."""
    models = scripted_models()
    (column,) = models.answer(grey(), [phrase])
    embeddings = models.embed(grey())
    segmented: list[SamPrompt] = []

    def segment(prompt: SamPrompt) -> Mask:
        segmented.append(prompt)
        return models.segment(embeddings, prompt)

    return Correction(grey(), phrase, column.results[0], segment, most_points), segmented


def test_a_correction_begins_with_the_masks_of_the_answer() -> None:
    corrected, segmented = correction()
    (mask,) = corrected.masks()
    assert segmented == [] and int(mask.sum()) == 24 and corrected.drawn_wh == corrected.draw().size == (520, 260)
    assert "1 left" in corrected.legend()


def test_a_click_adds_a_point_in_pixels_of_the_image_and_segments_again() -> None:
    corrected, segmented = correction()
    points = corrected.objects[0].points
    corrected.click(0, 0, 259, positive=False)
    x, y = 0.5 / SCALE, 10 - 0.5 / SCALE
    assert segmented[0].points == (*points, Point(pytest.approx(x), pytest.approx(y), 0))
    assert segmented[0].box == corrected.objects[0].box
    corrected.click(0, 519, 0, positive=True)
    assert segmented[1].points[-1].label == 1 and segmented[1].points[-1].x == pytest.approx(20 - x)


def test_an_object_can_be_segmented_by_its_points_or_its_box_alone() -> None:
    corrected, segmented = correction()
    corrected.remove_box(0)
    # BoxSegmenter without a box: 2 pixels around the positive points (4, 2) and (6, 3).
    assert segmented[0].box is None and int(corrected.masks()[0].sum()) == 6 * 5
    corrected.remove_points(0)
    assert corrected.masks() == [] and corrected.objects[0].prompt is None and len(segmented) == 1
    assert "click on it" in corrected.legend() and corrected.draw().size == (520, 260)
    corrected.undo()
    corrected.undo()
    corrected.remove_points(0)
    assert segmented[-1].points == () and segmented[-1].box is not None


def test_objects_are_added_and_removed() -> None:
    corrected, segmented = correction("dragon")
    assert corrected.masks() == [] and corrected.legend() == "no object"
    assert corrected.add_object() == 0
    corrected.click(0, 260, 130, positive=False)
    # A negative point alone is no prompt, but it is drawn.
    assert segmented == [] and corrected.objects[0].mask is None
    assert np.asarray(corrected.draw())[130, 260].tolist() == [225, 30, 40]
    corrected.click(0, 260, 130, positive=True)
    assert int(corrected.masks()[0].sum()) > 0
    corrected.remove_object(0)
    assert corrected.objects == []
    for _ in range(9):
        corrected.undo()
    assert corrected.objects == [] and corrected.masks() == []


def test_wrong_clicks_are_refused_and_change_nothing() -> None:
    corrected, segmented = correction(most_points=4)
    for index, column, row in ((0, 520, 0), (0, 0, 260), (0, -1, 0), (1, 0, 0), (-1, 0, 0)):
        with pytest.raises(DataError, match=r"not in the drawing|there is no object"):
            corrected.click(index, column, row, positive=True)
    with pytest.raises(DataError, match="there is no object 2"):
        corrected.remove_object(1)
    corrected.click(0, 0, 0, positive=True)
    with pytest.raises(DataError, match="object 1 has 4 points, the most"):
        corrected.click(0, 0, 0, positive=True)
    assert len(segmented) == 1 and len(corrected.objects[0].points) == 4
