"""Run folders: what training records, what may resume, and what is refused."""

import json
import re

import pytest

from sam4mllm.data.predictions import Confidence
from sam4mllm.errors import ModelError, RecipeError
from sam4mllm.methods.ppg import Ppg
from sam4mllm.recipe.compare import differences
from sam4mllm.recipe.loading import load_recipe
from sam4mllm.runs.calibration import fit_calibration
from sam4mllm.runs.run_folder import RunFolder, TrainLog
from sam4mllm.utils.hub import ADAPTER_CONFIG
from tests.training.helpers import make_recipe


def test_a_new_folder_records_recipe_method_and_versions(tmp_path):
    recipe = make_recipe(tmp_path, "some/base", "method.positives=1")
    run = RunFolder.create(recipe)
    assert run.recipe == recipe
    assert run.method == Ppg(positives=1, negatives=1, grid=1000, phrases=5, packing="isolated")
    assert not run.is_finished and run.checkpoints.complete() == [] and run.checkpoints.best() is None
    assert json.loads((run.path / "versions.json").read_text()).keys() >= {"python", "torch", "transformers", "peft"}


def create_with_checkpoint(recipe):
    run = RunFolder.create(recipe)
    (run.checkpoints.folder / "checkpoint-2").mkdir()
    return run


@pytest.mark.parametrize("trained", ["checkpoints/checkpoint-2", "checkpoints/best-2", ADAPTER_CONFIG, "config.json"])
def test_a_folder_gets_another_recipe_only_if_nothing_was_trained_in_it(tmp_path, trained):
    run = RunFolder.create(make_recipe(tmp_path, "some/base", "method.positives=1", "segmenter.checkpoint=wrong"))
    corrected = make_recipe(tmp_path, "some/base", "method.positives=2")
    assert not run.is_trained and not run.keeps_method(corrected) and run.keeps_method(run.recipe)
    assert RunFolder.create(corrected).recipe == corrected and run.method.settings()["positives"] == 2
    if trained.startswith("checkpoints"):
        (run.path / trained).mkdir()
        (run.path / trained / "validation.json").write_text('{"ciou": 0.5}')
    else:
        (run.path / trained).write_text("{}")
    other = make_recipe(tmp_path, "some/base", "method.positives=3")
    assert run.is_trained and run.keeps_method(other)
    with pytest.raises(RecipeError, match=r"method\.positives is 2 there, 3 here"):
        RunFolder.create(other)
    assert run.recipe == corrected


def test_the_same_recipe_resumes_and_another_is_refused(tmp_path):
    recipe = make_recipe(tmp_path, "some/base")
    create_with_checkpoint(recipe)
    assert RunFolder.create(recipe).recipe == recipe
    changed = make_recipe(tmp_path, "some/base", "training.learning_rate=0.5", "seed=4")
    with pytest.raises(
        RecipeError, match=r"seed is 3 there, 4 here; training\.learning_rate is 0\.01 there, 0\.5 here"
    ):
        RunFolder.create(changed)
    many = make_recipe(tmp_path, "b", "seed=4", "method.grid=10", "method.positives=0", "lora.r=9", "targets.groups=2")
    with pytest.raises(RecipeError, match="and 3 more"):
        RunFolder.create(many)


def test_a_run_resumes_with_other_generation_batches_and_workers(tmp_path):
    create_with_checkpoint(make_recipe(tmp_path, "some/base"))
    free = ["generation.batch_size=1", "training.validate.batch_size=1", "training.dataloader_num_workers=2"]
    recipe = make_recipe(tmp_path, "some/base", *free)
    assert RunFolder.create(recipe).recipe == recipe


@pytest.mark.parametrize(
    ("before", "after", "resumes"),
    [
        (["training.max_steps=8"], ["training.max_steps=12"], True),
        (["training.max_steps=8"], ["training.max_steps=6"], False),
        (["training.max_steps=-1"], ["training.max_steps=-1", "training.num_train_epochs=4"], True),
        (["training.max_steps=-1"], ["training.max_steps=-1", "training.num_train_epochs=2"], False),
        (["training.max_steps=-1"], ["training.max_steps=100"], False),
        (["training.max_steps=8"], ["training.max_steps=12", "seed=4"], False),
    ],
)
def test_a_run_may_be_trained_for_longer(tmp_path, before, after, resumes):
    create_with_checkpoint(make_recipe(tmp_path, "some/base", *before))
    recipe = make_recipe(tmp_path, "some/base", *after)
    if resumes:
        assert RunFolder.create(recipe).recipe == recipe
    else:
        with pytest.raises(RecipeError, match="holds a run of another recipe"):
            RunFolder.create(recipe)


def test_a_run_of_a_version_before_packing_and_constraints_goes_on_without_them(tmp_path):
    recipe = make_recipe(tmp_path, "some/base", "method.phrases=2")
    run = create_with_checkpoint(recipe)
    file = run.path / "recipe.yaml"
    lines = [line for line in file.read_text().splitlines(True) if not re.match(r" +(packing|constrained):", line)]
    file.write_text("".join(lines))
    assert (recipe.method.packing, recipe.generation.constrained) == ("isolated", True)
    assert (run.recipe.method.packing, run.recipe.generation.constrained) == ("turns", False)
    different = r"method\.packing is 'turns' there, 'isolated' here; generation\.constrained is False there, True here"
    with pytest.raises(RecipeError, match=different):
        RunFolder.create(recipe)
    before = ("method.packing=turns", "generation.constrained=false")
    RunFolder.create(make_recipe(tmp_path, "some/base", "method.phrases=2", *before))


def test_packing_is_no_difference_between_conversations_of_one_phrase(tmp_path):
    one = make_recipe(tmp_path, "some/base", "method.phrases=1")
    assert not differences(one, make_recipe(tmp_path, "some/base", "method.phrases=1", "method.packing=turns"))


def test_a_finished_run_is_reopened_only_for_more_steps_and_with_a_checkpoint(tmp_path):
    recipe = make_recipe(tmp_path, "some/base")
    run = RunFolder.create(recipe)
    (run.path / ADAPTER_CONFIG).write_text("{}")
    longer = make_recipe(tmp_path, "some/base", "training.max_steps=12")
    assert run.is_finished_for(recipe) and not run.is_finished_for(longer)
    with pytest.raises(RecipeError, match="its checkpoints were removed, so it cannot be continued"):
        RunFolder.create(longer)
    assert run.is_finished and run.recipe == recipe
    (run.checkpoints.folder / "checkpoint-8").mkdir()
    assert RunFolder.create(recipe).is_finished
    assert not RunFolder.create(longer).is_finished and run.recipe == longer


@pytest.mark.parametrize(
    ("batch", "accumulation", "resumes"), [(1, 2, True), (2, 1, True), (2, 2, False), (1, 1, False)]
)
def test_a_run_resumes_with_another_division_of_the_same_step(tmp_path, batch, accumulation, resumes):
    recipe = make_recipe(tmp_path, "some/base")
    assert recipe.training.arguments["per_device_train_batch_size"] == 2
    sizes = [
        f"training.per_device_train_batch_size={batch}",
        f"training.gradient_accumulation_steps={accumulation}",
    ]
    create_with_checkpoint(recipe)
    divided = make_recipe(tmp_path, "some/base", *sizes)
    if resumes:
        assert RunFolder.create(divided).recipe == divided
    else:
        expected = r"per_device_train_batch_size \* training\.gradient_accumulation_steps is 2 there"
        with pytest.raises(RecipeError, match=expected):
            RunFolder.create(divided)
    last = "training.dataloader_drop_last=true"
    assert differences(make_recipe(tmp_path, "b", last), make_recipe(tmp_path, "b", last, *sizes))


def test_a_trained_run_can_be_used_when_the_libraries_have_other_keys(tmp_path):
    run = RunFolder.create(make_recipe(tmp_path, "some/base"))
    written = (run.path / "recipe.yaml").read_text()
    (run.path / "recipe.yaml").write_text(written.replace("warmup_steps: 2", "warmed_up_steps: 2"))
    assert run.recipe.training.arguments["warmed_up_steps"] == 2
    with pytest.raises(RecipeError, match=r"training\.warmed_up_steps: unknown key"):
        load_recipe(run.path / "recipe.yaml")


def test_a_finished_run_is_refused_if_the_data_have_changed(tmp_path):
    run = RunFolder.create(make_recipe(tmp_path, "some/base"))
    run.checkpoints.record_data_digest("few", is_finished=False)
    run.checkpoints.record_data_digest("more", is_finished=False)
    run.checkpoints.record_data_digest("more", is_finished=True)
    with pytest.raises(RecipeError, match="training has finished, and the data have changed since; set another output"):
        run.checkpoints.record_data_digest("still more", is_finished=True)


def test_checkpoints_of_other_conversations_are_refused(tmp_path):
    run = RunFolder.create(make_recipe(tmp_path, "some/base"))
    run.checkpoints.check_resumable("these")
    run.checkpoints.check_resumable("others")
    (run.checkpoints.folder / "checkpoint-2").mkdir()
    run.checkpoints.check_resumable("others")
    with pytest.raises(RecipeError, match="its checkpoints were trained on other conversations"):
        run.checkpoints.check_resumable("these")


def test_a_moved_run_resumes(tmp_path):
    create_with_checkpoint(make_recipe(tmp_path, "some/base"))
    (tmp_path / "run").rename(tmp_path / "moved")
    moved = f"output={tmp_path / 'moved'}"
    assert RunFolder.create(make_recipe(tmp_path, "some/base", moved)).path == tmp_path / "moved"


@pytest.mark.parametrize(
    ("left", "message"),
    [
        (None, "no such run folder"),
        ([], r"not a run folder \(recipe.yaml is missing\)"),
        (["recipe.yaml"], r"has no adapter \(adapter_config.json is missing\); finish its training"),
    ],
)
def test_a_folder_that_cannot_be_opened(tmp_path, left, message):
    path = tmp_path / "run"
    if left is not None:
        path.mkdir()
        for name in left:
            (path / name).write_text("")
    with pytest.raises(ModelError, match=message) as caught:
        RunFolder.open(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[1]", "{"])
def test_a_damaged_method_file(tmp_path, text):
    run = RunFolder.create(make_recipe(tmp_path, "some/base"))
    (run.path / "method.json").write_text(text)
    with pytest.raises(ModelError, match=r"method\.json"):
        _ = run.method


def test_a_removed_method_is_refused_with_the_file_that_names_it(tmp_path):
    run = RunFolder.create(make_recipe(tmp_path, "some/base"))
    settings = json.loads((run.path / "method.json").read_text())
    (run.path / "method.json").write_text(json.dumps({**settings, "name": "both"}))
    with pytest.raises(RecipeError, match=r"method\.json: method both was removed, because .*; use method: ppg$"):
        _ = run.method


def test_the_log_drops_records_after_a_step_and_ignores_a_truncated_line(tmp_path):
    log = TrainLog(tmp_path / "train_log.jsonl")
    assert log.read() == [] and log.validations() == {}
    for step in (2, 4, 6):
        log.append({"step": step, "loss": 1.0 / step})
    log.append({"step": 6, "validation": {"ciou": 0.5}})
    with log.file.open("a") as file:
        file.write('{"step": 8, "lo')
    assert [record["step"] for record in log.read()] == [2, 4, 6, 6]
    assert log.validations() == {6: {"ciou": 0.5}}
    log.truncate(4)
    assert log.file.read_text() == '{"step": 2, "loss": 0.5}\n{"step": 4, "loss": 0.25}\n'


def test_a_calibration_is_written_replaced_and_removed(tmp_path):
    run = RunFolder.create(make_recipe(tmp_path, "some/base"))
    assert run.calibration is None
    for right in (True, False):
        made = fit_calibration([(Confidence(-0.1, None, 0.9), right)], [], "val")
        run.write_calibration(made)
        assert run.calibration == made
    run.write_calibration(None)
    run.write_calibration(None)
    assert run.calibration is None and not (run.path / "calibration.json").exists()


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"objects": null}', '{"objects": {"bias": 1}, "no_object": null}'])
def test_a_damaged_calibration(tmp_path, text):
    run = RunFolder.create(make_recipe(tmp_path, "some/base"))
    (run.path / "calibration.json").write_text(text)
    with pytest.raises(ModelError, match=r"calibration\.json: not a calibration: .*; remove it") as caught:
        _ = run.calibration
    assert "\n" not in str(caught.value)
