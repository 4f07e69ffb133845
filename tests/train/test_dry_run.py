"""A dry run: its counts are those of the training, and it loads no weights and writes nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sam4mllm.cli.main import main
from sam4mllm.data.mixture import read_mixture
from sam4mllm.errors import DataError, ModelError, RecipeError
from sam4mllm.methods.of_recipe import method_of
from sam4mllm.mllm.loading import Mllm, load_mllm
from sam4mllm.mllm.lora import attach_lora
from sam4mllm.recipe.loading import Recipe, load_recipe
from sam4mllm.segmenters.fake import BoxSegmenter
from sam4mllm.synthetic.writer import write_dataset
from sam4mllm.targets.placeholders import placeholder_targets
from sam4mllm.targets.prepare import compute_targets
from sam4mllm.targets.settings import TargetSettings
from sam4mllm.testing.tiny_mllms import BUILDERS
from sam4mllm.train.collator import Collator
from sam4mllm.train.dataset import make_training_set
from sam4mllm.train.dry_run import DryRun, dry_run
from sam4mllm.train.dry_run_report import as_text
from tests.mllm import tiny


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory in which `shapes_ppg` finds its data."""
    write_dataset(tmp_path / "runs/demo/shapes", scenes=3, seed=0)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def qwen2_vl(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.save_qwen2_vl(tmp_path_factory.mktemp("qwen2_vl")))


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def really(recipe: Recipe) -> tuple[Mllm, dict[str, tuple[int, int]]]:
    """The model with its weights and adapter; tokens in all and learned by the image of each first conversation."""
    model = recipe.model
    mllm = load_mllm(model.base, dtype=model.dtype, image_size=model.image_size)
    mllm = attach_lora(mllm, recipe.lora, recipe.seed, tune_projector=model.tune_projector)
    mixture = read_mixture(recipe.data, recipe.seed)
    targets = placeholder_targets(mixture.samples, TargetSettings.from_recipe(recipe), recipe.targets.store).targets
    counts: dict[str, tuple[int, int]] = {}
    for conversation in make_training_set(mixture, targets, method_of(recipe)).conversations:
        batch = Collator(mllm)([conversation])
        counted = int(batch["attention_mask"].sum()), int((batch["labels"] >= 0).sum())
        counts.setdefault(f"{conversation.image}: {conversation.turns[-1].text}", counted)
    return mllm, counts


def check(recipe: Recipe, found: DryRun) -> None:
    mllm, counts = really(recipe)
    assert found.model is not None
    assert found.model["parameters"] == sum(p.numel() for n, p in mllm.model.named_parameters() if not p.requires_grad)
    assert found.model["trained"] == sum(p.numel() for p in mllm.model.parameters() if p.requires_grad)
    assert found.shown
    for seen in found.shown:
        (same,) = [
            counted
            for key, counted in counts.items()
            if key.startswith(f"{seen.image}: ") and key.removeprefix(f"{seen.image}: ") in seen.text[-len(key) :]
        ]
        assert (seen.tokens, seen.learned) == same
    assert found.tokens["counted_by"] == "processor"
    if found.tokens["looked_at"] == found.conversations:
        tokens = [tokens for tokens, _ in counts.values()]
        assert found.tokens["longest"] == max(tokens)


def test_the_embedded_models_counts_are_those_of_the_training(here: Path) -> None:
    before = files(here)
    recipe = load_recipe("shapes_ppg")
    found = dry_run(recipe, tflops=1)
    assert files(here) == before
    check(recipe, found)
    assert [each["set"] for each in found.sets] == ["refcoco train", "grefcoco train", "reasonseg train"]
    assert found.conversations == found.phrases == sum(each["drawn"] for each in found.sets)
    assert found.targets["stored"] == 0 and found.targets["stand_ins"] > 0
    assert found.steps["conversations_per_step"] == 8 and found.steps["in_all"] == 200
    assert found.memory is not None and found.memory["segmenter"]
    text = as_text(found)
    assert f"{found.shown[0].tokens} tokens, {found.shown[0].learned} of them learned" in text
    assert "Box each object" in text


@pytest.mark.parametrize(
    ("model_type", "overrides"),
    [
        ("qwen2_5_vl", ["model.tune_projector=true", "model.max_pixels=7000", "method.phrases=3"]),
        ("internvl", []),
        ("llava_next", ["training.bf16=true"]),
    ],
)
def test_the_counts_of_a_familys_model_are_those_of_the_training(
    here: Path, tmp_path_factory: pytest.TempPathFactory, model_type: str, overrides: list[str]
) -> None:
    base = BUILDERS[model_type](tmp_path_factory.mktemp(model_type))
    recipe = load_recipe("shapes_ppg", [f"model.base={base}", *overrides])
    found = dry_run(recipe, tflops=1)
    check(recipe, found)
    assert found.seconds_per_epoch is not None and found.seconds_per_epoch > 0
    assert not found.notes
    twice = dry_run(recipe, tflops=2)
    assert twice.seconds_per_epoch == pytest.approx(found.seconds_per_epoch / 2)


def test_a_hub_id_out_of_reach_is_told_and_tokens_are_estimated(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    found = dry_run(load_recipe("shapes_ppg", ["model.base=owner/no-such-model"]), tflops=1)
    assert found.tokens["counted_by"] == "characters" and found.tokens["mean"] > 10
    assert found.memory is None and found.seconds_per_epoch is None and found.model is None
    (note,) = found.notes
    assert "'owner/no-such-model' is no folder here" in note and "memory and time are not known" in note
    assert found.shown[0].learned is None and "user: Where is" in found.shown[0].text
    assert "GiB" not in as_text(found) and note in as_text(found)


def test_a_hub_id_is_read_from_the_cache(here: Path, qwen2_vl: str) -> None:
    """In a process of its own, because the Hub's library reads its settings when it is imported."""
    repository = here / "hub/models--some--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("0123")
    without_weights = shutil.ignore_patterns("*.safetensors")
    shutil.copytree(qwen2_vl, repository / "snapshots/0123", ignore=without_weights)
    variables = os.environ | {"HF_HOME": str(here), "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "sam4mllm", "train", "shapes_ppg", "model.base=some/model", "--dry-run"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True, timeout=120)
    assert "by processor" in done.stdout and "memory of one GPU, estimated" in done.stdout


def test_targets_of_a_store_are_taken_and_only_the_rest_are_stand_ins(here: Path) -> None:
    recipe = load_recipe("shapes_ppg", ["data.train=[{dataset: refcoco, root: runs/demo/shapes, split: train}]"])
    samples = read_mixture(recipe.data, recipe.seed).samples
    settings = TargetSettings.from_recipe(recipe)
    half = [sample for sample in samples if sample.image == samples[0].image]
    stored = compute_targets(half, BoxSegmenter(), settings, recipe.targets.store).read()
    at_hand = placeholder_targets(samples, settings, recipe.targets.store)
    assert at_hand.stored == len(stored) > 0 and at_hand.made > 0
    assert all(at_hand.targets[name].prompts == target.prompts for name, target in stored.items())
    shapes = {
        (len(each.prompts), len(each.prompts[0].positives), len(each.prompts[0].negatives))
        for each in at_hand.targets.values()
    }
    assert shapes == {(1, 2, 1)}
    # The mask of this segmenter is the box, whatever the points, so they win nowhere.
    winning = placeholder_targets(samples, settings, recipe.targets.store, only_winning=True)
    assert (winning.stored, winning.made) == (at_hand.stored, at_hand.made)
    assert {name for name, each in winning.targets.items() if not each.prompts[0].points} == stored.keys()
    other = TargetSettings.from_recipe(load_recipe("shapes_ppg", ["targets.groups=5"]))
    assert placeholder_targets(samples, other, recipe.targets.store).stored == 0


def test_what_the_training_would_stumble_over_is_an_error(here: Path) -> None:
    with pytest.raises(ModelError, match=r"no segmenter checkpoint at none\.pth"):
        dry_run(load_recipe("shapes_ppg", ["segmenter.checkpoint=none.pth"]), tflops=1)
    with pytest.raises(ModelError, match=r"'\./none': no such folder"):
        dry_run(load_recipe("shapes_ppg", ["model.base=./none"]), tflops=1)
    with pytest.raises(RecipeError, match="lora: peft refuses"):
        dry_run(load_recipe("shapes_ppg", ["lora.target_modules=[none]"]), tflops=1)
    with pytest.raises(RecipeError, match=r"training\.eval_strategy"):
        dry_run(load_recipe("shapes_ppg", ["training.eval_strategy=steps"]), tflops=1)
    image = sorted(here.glob("runs/demo/shapes/images/mscoco/images/train2014/*.jpg"))[0]
    image.write_bytes(b"not an image")
    with pytest.raises(DataError, match=image.name):
        dry_run(load_recipe("shapes_ppg"), tflops=1)


def test_keys_for_many_gpus_are_left_out_and_told(here: Path) -> None:
    found = dry_run(load_recipe("shapes_ppg", ["training.fsdp=true"]), tflops=1)
    assert any(note.startswith("training.fsdp: not looked at") for note in found.notes)


def test_the_command_writes_json_and_no_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "shapes_ppg", "--dry-run", "--json", "-", "--tflops", "10"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["tflops"] == 10 and record["memory"]["total"] > 0
    assert not (here / "runs/demo/recipe.yaml").exists()
    assert main(["train", "shapes_ppg", "--json", "-"]) == 2
    assert "add --dry-run" in capsys.readouterr().err
