from dataclasses import replace
from typing import Any

import pytest

from sam4mllm.errors import RecipeError
from sam4mllm.recipe.loading import load_recipe
from sam4mllm.targets.settings import TargetSettings
from tests.targets.examples import SETTINGS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positives": -1}, "positives and negatives must be 0 or more"),
        ({"groups": 0}, "at least 1"),
        ({"batch_size": 0}, "at least 1"),
        ({"keep": 9}, "keep must be at most groups; got 9 of 8"),
        ({"judge": "box"}, "judge must be exact, jittered or none"),
        ({"choose": "best"}, "choose top or random"),
        ({"jitter": 0.5}, "below 0.5"),
        ({"widen": -0.1}, "widen must be 0 or more"),
        ({"min_iou": 1.1}, "min_iou from 0 to 1"),
        ({"judge": "none", "positives": 0}, "neither a box nor a point"),
    ],
)
def test_invalid_settings_raise_an_error(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SETTINGS, **change)


def test_the_key_has_only_settings_that_change_the_targets() -> None:
    assert replace(SETTINGS, batch_size=1).key_settings() == SETTINGS.key_settings()
    assert replace(SETTINGS, jitter=0.3, jitter_boxes=7).key_settings() == SETTINGS.key_settings()
    jittered = replace(SETTINGS, judge="jittered")
    assert replace(jittered, jitter=0.3).key_settings() != jittered.key_settings()
    for change in ({"seed": 1}, {"keep": 2}, {"widen": 0.2}, {"positives": 1}, {"choose": "random"}, {"min_iou": 0.1}):
        assert replace(SETTINGS, **change).key_settings() != SETTINGS.key_settings()


def test_settings_are_read_from_a_recipe() -> None:
    recipe = load_recipe(
        "shapes_ppg", ["seed=7", "method.positives=3", "method.negatives=2", "targets.keep=2", "targets.jitter=0.2"]
    )
    settings = TargetSettings.from_recipe(recipe)
    assert (settings.seed, settings.positives, settings.negatives) == (7, 3, 2)
    assert (settings.keep, settings.jitter, settings.groups) == (2, 0.2, recipe.targets.groups)


def test_a_contradictory_recipe_raises_an_error() -> None:
    recipe = load_recipe("shapes_ppg", ["targets.judge=none", "method.positives=0"])
    with pytest.raises(RecipeError, match="targets: judge: none with positives: 0"):
        TargetSettings.from_recipe(recipe)
