"""A dry run reports the counts of the training, loads no weights and writes nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sam4mllm.cli.main import main
from sam4mllm.data.mixture import read_mixture
from sam4mllm.errors import DataError, ModelError, RecipeError
from sam4mllm.methods.registry import method_of_recipe
from sam4mllm.mllm.loading import Mllm, load_mllm
from sam4mllm.mllm.lora import attach_lora
from sam4mllm.recipe.loading import Recipe, load_recipe, shipped_recipes
from sam4mllm.segmenters.fake import BoxSegmenter
from sam4mllm.synthetic.writer import write_dataset
from sam4mllm.targets.placeholders import placeholder_targets
from sam4mllm.targets.prepare import compute_targets
from sam4mllm.targets.settings import TargetSettings
from sam4mllm.testing import TINY_MLLMS, save_tiny_mllm
from sam4mllm.training.collator import Collator
from sam4mllm.training.dataset import make_training_set
from sam4mllm.training.dry_run import DryRun, dry_run
from sam4mllm.training.preview import rendered_text


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory in which `shapes_ppg` finds its data."""
    write_dataset(tmp_path / "runs/demo/shapes", scenes=3, seed=0)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def qwen2_vl(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_mllm("qwen2_vl", tmp_path_factory.mktemp("qwen2_vl")))


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def count_for_real(recipe: Recipe) -> tuple[Mllm, dict[tuple[str, str], tuple[int, int]]]:
    """The model with its weights and adapter; all tokens and supervised ones by a conversation's image and text."""
    model = recipe.model
    mllm = load_mllm(model.base, dtype=model.dtype, image_size=model.image_size)
    mllm = attach_lora(mllm, recipe.lora, recipe.seed, tune_projector=model.tune_projector)
    mixture = read_mixture(recipe.data, recipe.seed)
    targets = placeholder_targets(mixture.samples, TargetSettings.from_recipe(recipe), recipe.targets.store).targets
    counts: dict[tuple[str, str], tuple[int, int]] = {}
    for conversation in make_training_set(mixture, targets, method_of_recipe(recipe)).conversations:
        batch = Collator(mllm)([conversation])
        counted = int(batch["attention_mask"].sum()), int((batch["labels"] >= 0).sum())
        counts[str(conversation.image), rendered_text(mllm.processor, conversation)] = counted
    return mllm, counts


def check(recipe: Recipe, report: DryRun) -> None:
    mllm, counts = count_for_real(recipe)
    assert report.model is not None
    assert report.model["parameters"] == sum(p.numel() for n, p in mllm.model.named_parameters() if not p.requires_grad)
    assert report.model["trained"] == sum(p.numel() for p in mllm.model.parameters() if p.requires_grad)
    assert report.shown
    for preview in report.shown:
        assert (preview.tokens, preview.supervised) == counts[preview.image, preview.text]
    assert report.tokens["counted_by"] == "processor"
    if report.tokens["conversations"] == report.conversations:
        tokens = [tokens for tokens, _ in counts.values()]
        assert report.tokens["longest"] == max(tokens)


def test_the_counts_of_the_embedded_model_are_those_of_the_training(here: Path) -> None:
    before = files(here)
    recipe = load_recipe("shapes_ppg")
    report = dry_run(recipe, tflops=1)
    assert files(here) == before
    check(recipe, report)
    assert [each["set"] for each in report.sets] == ["refcoco train", "grefcoco train", "reasonseg train"]
    assert report.conversations == report.phrases == sum(each["sampled"] for each in report.sets)
    assert report.targets["stored"] == 0 and report.targets["placeholders"] > 0
    assert report.steps["conversations_per_step"] == 8 and report.steps["total"] == recipe.training.max_steps
    assert report.memory is not None and report.memory["segmenter"]
    text = report.summary()
    assert f"{report.shown[0].tokens} tokens, {report.shown[0].supervised} of them supervised" in text
    assert "Box each object" in text


@pytest.mark.parametrize(
    ("model_type", "overrides"),
    [
        ("qwen2_5_vl", ["model.tune_projector=true", "model.max_pixels=7000", "method.phrases=3"]),
        ("internvl", []),
        ("llava_next", ["training.bf16=true"]),
    ],
)
def test_the_counts_of_a_family_are_those_of_the_training(
    here: Path, tmp_path_factory: pytest.TempPathFactory, model_type: str, overrides: list[str]
) -> None:
    base = TINY_MLLMS[model_type](tmp_path_factory.mktemp(model_type))
    recipe = load_recipe("shapes_ppg", [f"model.base={base}", *overrides])
    report = dry_run(recipe, tflops=1)
    check(recipe, report)
    assert report.seconds_per_epoch is not None and report.seconds_per_epoch > 0
    assert not report.notes
    twice = dry_run(recipe, tflops=2)
    assert twice.seconds_per_epoch == pytest.approx(report.seconds_per_epoch / 2)


def test_the_vision_tower_is_counted_as_it_is_loaded(here: Path, qwen2_vl: str) -> None:
    settings = [f"model.base={qwen2_vl}", "model.quantization=4bit"]
    kept, quantized = (
        dry_run(load_recipe("shapes_ppg", [*settings, f"model.quantize_vision={value}"]), tflops=1)
        for value in ("false", "true")
    )
    assert kept.model is not None and quantized.model is not None
    assert kept.model["weight_bytes"] > quantized.model["weight_bytes"]
    for report, state in ((kept, "not quantized"), (quantized, "quantized, too")):
        assert f"model.quantize_vision: the vision tower is {state}" in report.summary()


def test_for_an_unreachable_hub_id_tokens_are_estimated(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    report = dry_run(load_recipe("shapes_ppg", ["model.base=owner/no-such-model"]), tflops=1)
    assert report.tokens["counted_by"] == "characters" and report.tokens["mean"] > 10
    assert report.memory is None and report.seconds_per_epoch is None and report.model is None
    (note,) = report.notes
    assert "'owner/no-such-model' is not a folder" in note and "memory and time are not known" in note
    assert report.shown[0].supervised is None and "user: Where is" in report.shown[0].text
    assert "GiB" not in report.summary() and note in report.summary()


def test_a_hub_id_is_read_from_the_cache(here: Path, qwen2_vl: str) -> None:
    """In another process, because the Hub's library reads its settings when it is imported."""
    repository = here / "hub/models--some--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("0123")
    without_weights = shutil.ignore_patterns("*.safetensors")
    shutil.copytree(qwen2_vl, repository / "snapshots/0123", ignore=without_weights)
    variables = os.environ | {"HF_HOME": str(here), "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "sam4mllm", "train", "shapes_ppg", "model.base=some/model", "--dry-run"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True, timeout=120)
    assert "by processor" in done.stdout and "memory of one GPU, estimated" in done.stdout


def test_stored_targets_are_used_and_only_the_others_are_placeholders(here: Path) -> None:
    recipe = load_recipe("shapes_ppg", ["data.train=[{dataset: refcoco, root: runs/demo/shapes, split: train}]"])
    samples = read_mixture(recipe.data, recipe.seed).samples
    settings = TargetSettings.from_recipe(recipe)
    half = [sample for sample in samples if sample.image == samples[0].image]
    stored = compute_targets(half, BoxSegmenter(), settings, recipe.targets.store).read()
    known = placeholder_targets(samples, settings, recipe.targets.store)
    assert known.stored == len(stored) > 0 and known.made > 0
    assert all(known.targets[name].prompts == target.prompts for name, target in stored.items())
    shapes = {
        (len(each.prompts), len(each.prompts[0].positives), len(each.prompts[0].negatives))
        for each in known.targets.values()
    }
    assert shapes == {(1, 2, 1)}
    other = TargetSettings.from_recipe(load_recipe("shapes_ppg", ["targets.groups=5"]))
    assert placeholder_targets(samples, other, recipe.targets.store).stored == 0


def test_errors_of_the_training_are_errors_of_the_dry_run(here: Path) -> None:
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


def test_keys_for_several_gpus_are_left_out_with_a_note(here: Path) -> None:
    report = dry_run(load_recipe("shapes_ppg", ["training.fsdp=true"]), tflops=1)
    assert any(note.startswith("training.fsdp: not checked") for note in report.notes)


def test_the_command_writes_json_and_no_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "shapes_ppg", "--dry-run", "--json", "-", "--tflops", "10"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["tflops"] == 10 and record["memory"]["total"] > 0
    assert not (here / "runs/demo/recipe.yaml").exists()
    assert main(["train", "shapes_ppg", "--json", "-"]) == 2
    assert "add --dry-run" in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name in sorted(shipped_recipes()) if name.startswith("shapes_")])
def test_recipes_of_generated_data_state_the_memory_that_is_estimated(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_dataset("runs/demo/shapes", scenes=4, seed=0)
    comment = shipped_recipes()[name].read_text(encoding="utf-8")
    (stated,) = re.findall(r"The dry run's formula, an ESTIMATE, gives ([\d.]+) GiB", comment)
    memory = dry_run(name).memory
    assert memory is not None and memory["total"] is not None
    # The longest conversation about these few scenes is shorter than that of the comment's data.
    assert float(stated) == pytest.approx(memory["total"] / 2**30, rel=0.3)
