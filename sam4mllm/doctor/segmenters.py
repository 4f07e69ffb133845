"""The checks of segmenters: the table of checks, and running them on tiny models or on a segmenter of yours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType

import torch

from sam4mllm.doctor import segmenter_checks
from sam4mllm.doctor.result import CheckResult, run_check
from sam4mllm.doctor.segmenter_checks import SegmenterUnderTest
from sam4mllm.segmenters.base import Segmenter
from sam4mllm.segmenters.families import FAMILIES
from sam4mllm.testing.tiny_segmenters import SEGMENT_ANYTHING, save_tiny_segmenter

SegmenterCheck = Callable[[SegmenterUnderTest], None]

SEGMENTER_CHECKS: Mapping[str, SegmenterCheck] = MappingProxyType(
    {
        check.__name__: check
        for check in (
            segmenter_checks.loads,
            segmenter_checks.refuses_missing_weights,
            segmenter_checks.batch_equals_singles,
            segmenter_checks.masks_have_image_size,
            segmenter_checks.pixels_match_library,
            segmenter_checks.masks_match_library,
            segmenter_checks.bfloat16,
            segmenter_checks.float16,
        )
    }
)
"""The checks of every segmenter by name, in the order of the table."""


def check_segmenter(segmenter: Segmenter) -> dict[str, CheckResult]:
    """Check a segmenter of yours: a batch equals single prompts, and masks have the right dtype, size and device.

    Returns:
        The results by check: True or the reason of a failure.
    """
    with _exact_convolutions():
        return {
            "batch_equals_singles": run_check(lambda: segmenter_checks.expect_batch_equals_singles(segmenter)),
            "masks_have_image_size": run_check(lambda: segmenter_checks.expect_masks_of_image_size(segmenter)),
        }


def check_segmenters(device: str = "cpu") -> dict[str, dict[str, CheckResult]]:
    """Run all checks on tiny random models of all segmenters.

    Returns:
        The results by segmenter, then by check: True or the reason of a failure. `builds` alone is reported where no
        model could be built.
    """
    with TemporaryDirectory() as folder, _exact_convolutions():
        names = (SEGMENT_ANYTHING, *(family.name for family in FAMILIES))
        return {name: _check_tiny_model(name, Path(folder) / name, device) for name in names}


def checks_of(name: str) -> Mapping[str, SegmenterCheck]:
    """Return the checks of the segmenter `name`, by their names."""
    if name != SEGMENT_ANYTHING:
        return SEGMENTER_CHECKS
    return {**SEGMENTER_CHECKS, "matches_sam_model": segmenter_checks.matches_sam_model}


def _check_tiny_model(name: str, folder: Path, device: str) -> dict[str, CheckResult]:
    checkpoints: list[Path] = []
    saved = run_check(lambda: checkpoints.append(save_tiny_segmenter(name, folder)))
    if saved is not True:
        return {"builds": saved}
    under_test = SegmenterUnderTest(name, checkpoints[0], device)
    return {
        title: run_check(lambda check=check: check(under_test))  # type: ignore[misc]
        for title, check in checks_of(name).items()
    }


def _exact_convolutions() -> AbstractContextManager[None]:
    """Compute convolutions on a GPU in full float32: by default cuDNN uses TF32 with 10 bits, too few for 1e-4."""
    return torch.backends.cudnn.flags(allow_tf32=False)
