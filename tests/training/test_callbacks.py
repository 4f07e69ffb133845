"""Callbacks that report to callers: the number of finished steps."""

import pytest

from sam4mllm.training.callbacks import ProgressCallback
from tests.training.helpers import StopAt, make_recipe, run_fit


def test_finished_steps_are_reported_and_those_of_an_interrupted_training_first(tmp_path, fast_vlm):
    recipe = make_recipe(tmp_path, fast_vlm)
    with pytest.raises(KeyboardInterrupt):
        run_fit(recipe, stop=StopAt(5))
    reported = []
    run_fit(recipe, stop=ProgressCallback(reported.append))
    assert reported == [4, 1, 1, 1, 1]
