"""The checks of MLLM families: the table of checks, and running them on tiny models or on a checkpoint."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

from sam4mllm.doctor import input_checks, location_checks, training_checks
from sam4mllm.doctor.family_under_test import FamilyUnderTest
from sam4mllm.doctor.result import NOT_APPLICABLE, CheckResult, run_check
from sam4mllm.mllm.families import FAMILIES
from sam4mllm.testing.tiny_mllms import TINY_MLLMS
from sam4mllm.utils.progress import Advance, ignore

FamilyCheck = Callable[[FamilyUnderTest], None]

FAMILY_CHECKS: Mapping[str, FamilyCheck] = MappingProxyType(
    {
        check.__name__: check
        for check in (
            input_checks.loads,
            input_checks.loss_on_answers_only,
            input_checks.prompts_match_training,
            input_checks.chat_without_image,
            training_checks.loss_falls,
            input_checks.batch_equals_singles,
            input_checks.yes_no_probabilities,
            training_checks.lora_in_language_model_only,
            training_checks.loads_with_peft,
            training_checks.merges,
            training_checks.projector_fully_fine_tuned,
            input_checks.coordinates_round_trip,
            input_checks.constrained_decoding,
            input_checks.image_size_limits,
            input_checks.images_not_cropped,
            location_checks.locations,
            training_checks.isolated_phrases,
            training_checks.gradient_checkpointing,
            training_checks.optimizer_8bit,
            training_checks.nf4,
            training_checks.int8,
        )
    }
)
"""The checks by name, in the order of the table. A check returns None if it passes and raises an exception if not."""


def check_family(
    base: str | Path, *, device: str = "cpu", folder: Path | None = None, advance: Advance = ignore
) -> dict[str, CheckResult]:
    """Run all checks of a family on a checkpoint of yours, which should be a small one: it is trained several times.

    Args:
        base: The checkpoint's folder, with config, weights and processor.
        device: The device that it computes on.
        folder: The folder that run folders are written to; None for a temporary one.
        advance: Called after each check.

    Returns:
        The results by check: True, the reason of a failure, or "n/a: ..." with the reason why the check does not apply.
    """
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            return check_family(base, device=device, folder=Path(temporary), advance=advance)
    config = json.loads((Path(base) / "config.json").read_text(encoding="utf-8"))
    with quiet():
        return _run_checks(FamilyUnderTest(config["model_type"], Path(base), folder, device), advance)


def check_families(
    model_types: Sequence[str] | None = None, *, device: str = "cpu", advance: Advance = ignore
) -> dict[str, dict[str, CheckResult]]:
    """Run all checks on tiny random models of `model_types` (None: all families), in the order of `FAMILIES`.

    Returns:
        The results as `check_family`, by model type.
    """
    chosen = [name for name in FAMILIES if model_types is None or name in model_types]
    with quiet():
        return {name: _check_tiny_model(name, device, advance) for name in chosen}


def _check_tiny_model(model_type: str, device: str, advance: Advance) -> dict[str, CheckResult]:
    missing = [package for package in FAMILIES[model_type].needs if find_spec(package) is None]
    if missing:
        advance(len(FAMILY_CHECKS))
        reason = f"{NOT_APPLICABLE}needs {', '.join(missing)}: pip install {' '.join(missing)}"
        return dict.fromkeys(FAMILY_CHECKS, reason)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        saved = run_check(lambda: _save_tiny_model(model_type, base))
        if saved is not True:
            advance(len(FAMILY_CHECKS))
            return dict.fromkeys(FAMILY_CHECKS, saved)
        return _run_checks(FamilyUnderTest(model_type, base, Path(folder), device), advance)


def _save_tiny_model(model_type: str, base: Path) -> None:
    TINY_MLLMS[model_type](base)


def _run_checks(family: FamilyUnderTest, advance: Advance) -> dict[str, CheckResult]:
    results: dict[str, CheckResult] = {}
    for name, check in FAMILY_CHECKS.items():
        results[name] = run_check(lambda check=check: check(family))  # type: ignore[misc]
        advance()
    return results


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the libraries' progress bars and warnings inside the block."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
