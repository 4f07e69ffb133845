"""Training with locations: equal however a step is divided, resumed to equal bytes, with all weights that it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sam4mllm.prompts.conversation import Conversation
from sam4mllm.runs.run_folder import RunFolder
from sam4mllm.segmenters.mask_decoder import with_mask_decoder
from sam4mllm.segmenters.segment_anything import SegmentAnything
from sam4mllm.testing import tiny_sam
from sam4mllm.training.checked_trainer import CheckedTrainer
from sam4mllm.training.location_losses import LOSS_MODULES
from sam4mllm.training.loss_parts import PARTS
from sam4mllm.utils.hub import ADAPTER_WEIGHTS, MASK_DECODER
from tests.launch import torchrun
from tests.training.helpers import (
    StopAt,
    adapter_of,
    largest_difference,
    make_conversations,
    run_killed,
    validations,
)
from tests.training.located import boxes_in_text, fit_located, located_conversations
from tests.training.test_checked_trainer import Patch, refuse_forward

STEPS = ("training.max_steps=3", "training.save_steps=1", "lora.lora_dropout=0", "training.warmup_steps=0")
MASKS = "method.train_mask_decoder=true"
TWICE = (*STEPS, MASKS, "training.max_steps=6", "training.optim=sgd", "training.max_grad_norm=0")
"""Settings of a training in one process and in two: each step is proportional to its gradient.

Adam would scale a gradient that is rounding, as that of the bias of keys in attention, to a step of full size, and hide
a wrong factor of all gradients, as clipping would.
"""


def mixed_conversations() -> list[Conversation]:
    """Every second conversation has no location, so that some batches have none."""
    pairs = zip(make_conversations(), located_conversations(), strict=True)
    return [each for pair in pairs for each in pair]


def sizes(batch: int, accumulation: int) -> tuple[str, str]:
    keys = ("per_device_train_batch_size", "gradient_accumulation_steps")
    return tuple(f"training.{key}={size}" for key, size in zip(keys, (batch, accumulation), strict=True))  # type: ignore[return-value]


def logs(run: RunFolder) -> list[dict[str, float]]:
    return [{name: value for name, value in record.items() if name != "epoch"} for record in run.log.read()]


def assert_equal(run: RunFolder, other: RunFolder, tolerance: float = 1e-5) -> None:
    assert largest_difference(adapter_of(run.path), adapter_of(other.path)) <= tolerance
    ours, theirs = logs(run), logs(other)
    assert len(ours) == len(theirs) > 0
    for first, second in zip(ours, theirs, strict=True):
        assert first == pytest.approx(second, rel=1e-3, abs=1e-4)


def test_accumulated_batches_train_as_one_and_the_log_has_the_means_of_the_parts(tmp_path: Path, fast_vlm: str) -> None:
    runs = [
        fit_located(
            tmp_path / f"{batch}x{accumulation}",
            fast_vlm,
            *STEPS,
            *sizes(batch, accumulation),
            conversations=mixed_conversations(),
        )
        for batch, accumulation in ((8, 1), (1, 8), (2, 4))
    ]
    assert_equal(runs[0], runs[1])
    assert_equal(runs[0], runs[2])
    for record in logs(runs[0]):
        assert {*PARTS, "text_loss"} <= record.keys()
        of_locations = 2 * record["box_l1"] + 0.8 * record["box_giou"] + record["cycle_box"] + record["cycle_state"]
        of_masks = record["mask_bce"] + record["mask_dice"]
        assert record["loss"] == pytest.approx(record["text_loss"] + of_locations + of_masks, rel=1e-5)


def test_a_divided_batch_trains_as_smaller_batches(tmp_path: Path, fast_vlm: str) -> None:
    """Dropout is on, and the parts of the failed attempt are not logged."""
    overrides = [each for each in STEPS if "dropout" not in each]
    divided = fit_located(tmp_path / "divided", fast_vlm, *overrides, *sizes(2, 2), stop=Patch(refuse_forward(1)))
    smaller = fit_located(tmp_path / "smaller", fast_vlm, *overrides, *sizes(1, 4))
    assert_equal(divided, smaller)


def test_a_model_that_averages_its_loss_itself_gets_equal_sums_of_locations(
    tmp_path: Path, fast_vlm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = CheckedTrainer.__init__

    def construct(self: Any, **options: Any) -> None:
        original(self, **options)
        self.model_accepts_loss_kwargs = False

    monkeypatch.setattr(CheckedTrainer, "__init__", construct)
    runs = []
    for name, patch in (("whole", None), ("divided", Patch(refuse_forward(1)))):
        runs.append(fit_located(tmp_path / name, fast_vlm, *STEPS, *sizes(2, 2), stop=patch))
    assert_equal(*runs)


@pytest.fixture(scope="module")
def uninterrupted_masks(tmp_path_factory: pytest.TempPathFactory, fast_vlm: str) -> RunFolder:
    """A run that trains SAM's mask decoder, too, with dropout."""
    return fit_located(tmp_path_factory.mktemp("masks"), fast_vlm, *STEPS[:2], MASKS)


def weights_of(run: RunFolder) -> dict[str, bytes]:
    return {name: (run.path / name).read_bytes() for name in (ADAPTER_WEIGHTS, MASK_DECODER)}


def test_a_killed_run_is_resumed_to_equal_bytes(tmp_path: Path, fast_vlm: str, uninterrupted_masks: RunFolder) -> None:
    settings = (*STEPS[:2], MASKS)
    run_killed(f"fit_located(Path({str(tmp_path)!r}), {fast_vlm!r}, *{settings!r}, stop=KillAt(3))")
    assert (tmp_path / "run/checkpoints/checkpoint-2" / LOSS_MODULES).is_file()
    run = fit_located(tmp_path, fast_vlm, *STEPS[:2], MASKS)
    assert weights_of(run) == weights_of(uninterrupted_masks)
    assert logs(run) == logs(uninterrupted_masks)


def test_a_run_resumed_at_its_last_step_has_all_its_weights(
    tmp_path: Path, fast_vlm: str, uninterrupted_masks: RunFolder
) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit_located(tmp_path, fast_vlm, *STEPS[:2], MASKS, stop=StopAt(None))
    assert weights_of(fit_located(tmp_path, fast_vlm, *STEPS[:2], MASKS)) == weights_of(uninterrupted_masks)


def test_a_trained_mask_decoder_is_another_one_and_kept_with_the_best_adapter(
    tmp_path: Path, fast_vlm: str, uninterrupted_masks: RunFolder
) -> None:
    segmenter = SegmentAnything(tiny_sam())
    weights = load_file(uninterrupted_masks.path / MASK_DECODER)
    before = segmenter.sam.mask_decoder.state_dict()
    assert weights.keys() == before.keys() and largest_difference(weights, before) > 1e-4
    assert with_mask_decoder(segmenter, uninterrupted_masks.path / MASK_DECODER).fingerprint != segmenter.fingerprint
    assert not any("mask_decoder" in name or "location_losses" in name for name in adapter_of(uninterrupted_masks.path))
    # The first validation is the best, so its weights are kept, which are not those of the last step.
    options = (*STEPS[:2], MASKS, "training.validate.every_steps=1")
    run = fit_located(tmp_path, fast_vlm, *options, validate=validations(0.5, 0.4))
    first = load_file(run.path / "checkpoints/checkpoint-2" / LOSS_MODULES)
    best = load_file(run.path / "checkpoints/best-1" / MASK_DECODER)
    kept = load_file(run.path / MASK_DECODER)
    assert all(torch.equal(kept[name], best[name]) for name in best)
    second = {name.removeprefix("masks.decoder."): weight for name, weight in first.items()}
    assert second.keys() <= kept.keys() and not torch.equal(second["iou_token.weight"], kept["iou_token.weight"])


def test_a_run_without_a_trained_mask_decoder_has_none(tmp_path: Path, fast_vlm: str) -> None:
    run = fit_located(tmp_path, fast_vlm, *STEPS)
    assert not (run.path / MASK_DECODER).exists() and not list(run.path.rglob(LOSS_MODULES))


def test_a_box_loss_of_text_trains_the_adapter_and_leaves_nothing_else(tmp_path: Path, fast_vlm: str) -> None:
    def train(name: str, *overrides: str, stop: Any = None) -> RunFolder:
        options = ("method={name: ppg, box_loss: 1.0}", *STEPS, *overrides)
        return fit_located(tmp_path / name, fast_vlm, *options, conversations=boxes_in_text(), stop=stop, heads=False)

    run, plain = train("with"), train("without", "method={name: ppg}")
    with_loss, without = adapter_of(run.path), adapter_of(plain.path)
    assert with_loss.keys() == without.keys() and largest_difference(with_loss, without) > 1e-5
    assert {"box_l1", "box_giou", "box_iou", "text_loss"} <= logs(run)[0].keys()
    assert "cycle_box" not in logs(run)[0] and "text_loss" not in logs(plain)[0]
    files = {path.name for path in plain.path.iterdir()}
    assert {path.name for path in run.path.iterdir()} == files
    with pytest.raises(KeyboardInterrupt):
        train("resumed", stop=StopAt(2))
    resumed = train("resumed")
    assert (resumed.path / ADAPTER_WEIGHTS).read_bytes() == (run.path / ADAPTER_WEIGHTS).read_bytes()


def test_two_processes_train_as_one(tmp_path: Path, fast_vlm: str) -> None:
    """The processes have different numbers of locations and masks, and in some steps one of them has none."""
    script = str(Path(__file__).with_name("located_job.py"))
    done = torchrun(script, str(tmp_path / "two"), fast_vlm)
    assert done.returncode == 0, done.stderr
    one = fit_located(tmp_path / "one", fast_vlm, *TWICE, *sizes(2, 1), conversations=mixed_conversations())
    two = RunFolder.open(tmp_path / "two/run")
    assert_equal(one, two, tolerance=1e-6)
    assert largest_difference(*(load_file(run.path / MASK_DECODER) for run in (one, two))) <= 1e-6


def test_gradient_checkpointing_and_workers_that_load_data_change_nothing(
    tmp_path: Path, fast_vlm: str, uninterrupted_masks: RunFolder
) -> None:
    options = ("training.gradient_checkpointing=true", "training.dataloader_num_workers=1")
    assert_equal(fit_located(tmp_path, fast_vlm, *STEPS[:2], MASKS, *options), uninterrupted_masks)
