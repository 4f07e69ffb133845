"""Validation during training keeps the best adapter, its calibration and the log."""

import pytest

from sam4mllm.data.predictions import Confidence
from sam4mllm.runs.calibration import fit_calibration
from sam4mllm.runs.run_folder import RunFolder
from sam4mllm.training.validation import Validation
from tests.training.helpers import StopAt, adapter_of, largest_difference, make_recipe, run_fit, validations


def test_the_best_adapter_is_kept(tmp_path, fast_vlm):
    recipe = make_recipe(tmp_path, fast_vlm, "training.save_total_limit=10")
    run = run_fit(recipe, validate=validations(0.2, 0.6, 0.4, 0.6))
    assert {step: each["ciou"] for step, each in run.log.validations().items()} == {2: 0.2, 4: 0.6, 6: 0.4, 8: 0.6}
    step, ciou, folder = run.checkpoints.best()
    assert (step, ciou) == (4, 0.6)
    best, root = adapter_of(folder), adapter_of(run.path)
    assert largest_difference(best, root) == 0
    assert largest_difference(root, adapter_of(run.checkpoints.folder / "checkpoint-4")) == 0
    assert largest_difference(root, adapter_of(run.checkpoints.folder / "checkpoint-8")) > 0
    assert not list(run.checkpoints.folder.glob("unfinished*"))


def test_validation_does_not_change_the_weights(tmp_path, fast_vlm, uninterrupted):
    run = run_fit(make_recipe(tmp_path, fast_vlm), validate=validations(0.1, 0.2, 0.3, 0.4))
    assert run.checkpoints.best()[0] == 8
    assert largest_difference(adapter_of(run.path), adapter_of(uninterrupted.path)) == 0


def test_the_best_adapter_survives_an_interruption_and_later_validations_are_repeated(tmp_path, fast_vlm):
    by_step = {2: 0.5, 4: 0.3, 6: 0.7, 8: 0.1}
    recipe = make_recipe(tmp_path, fast_vlm, "training.save_steps=4")

    def start(stop, steps):
        left = list(steps)
        return run_fit(recipe, stop=stop, validate=lambda: Validation(by_step[left.pop(0)], 0.0, 4))

    with pytest.raises(KeyboardInterrupt):
        start(StopAt(7), [2, 4, 6])
    assert RunFolder(recipe.output).checkpoints.best()[0] == 6
    run = start(None, [6, 8])
    assert run.checkpoints.best()[:2] == (6, 0.7)
    assert [record["step"] for record in run.log.read() if "validation" in record] == [2, 4, 6, 8]


def test_the_calibration_is_that_of_the_best_adapter_also_after_an_interruption(tmp_path, fast_vlm):
    by_step = {2: 0.5, 4: 0.3, 6: 0.7, 8: 0.1}
    fitted = {
        step: fit_calibration([(Confidence(-0.1, None, ciou), ciou > 0.4)] * step, [], "val")
        for step, ciou in by_step.items()
    }

    def start(name, stop, *steps):
        left = list(steps)

        def validate():
            step = left.pop(0)
            return Validation(by_step[step], 0.0, 4, fitted[step])

        (tmp_path / name).mkdir(exist_ok=True)
        return run_fit(make_recipe(tmp_path / name, fast_vlm, "training.save_steps=4"), stop=stop, validate=validate)

    with pytest.raises(KeyboardInterrupt):
        start("stopped", StopAt(7), 2, 4, 6)
    assert RunFolder(tmp_path / "stopped/run").calibration is None
    runs = [start("stopped", None, 6, 8), start("uninterrupted", None, 2, 4, 6, 8)]
    assert runs[0].calibration == fitted[6] and runs[0].calibration is not None
    assert len({(run.path / "calibration.json").read_bytes() for run in runs}) == 1


def test_the_last_step_is_validated(tmp_path, fast_vlm):
    recipe = make_recipe(tmp_path, fast_vlm, "training.validate.every_steps=0")
    run = run_fit(recipe, validate=validations(0.4))
    assert list(run.log.validations()) == [8]
    assert run.checkpoints.best()[0] == 8
