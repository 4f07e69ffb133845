"""Load a segmenter from a checkpoint: a `.pth` file, a folder of transformers, a Hub id, or the embedded "shapes".

A file is read as a segment_anything checkpoint; for a folder or a Hub id, config.json decides the family.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sam4mllm.errors import ModelError
from sam4mllm.segmenters.base import Segmenter
from sam4mllm.segmenters.families import SamFamily, family_of
from sam4mllm.segmenters.segment_anything import error_summary, load_checkpoint
from sam4mllm.segmenters.transformers_sam import TransformersSam
from sam4mllm.utils.hub import MODEL_CONFIG, use_cache_if_unreachable
from sam4mllm.utils.library_logging import transformers_bars_on_terminals_only
from sam4mllm.utils.paths import with_start

logger = logging.getLogger(__name__)

EMBEDDED = "shapes"
"""The name of the small segmenter that is part of the package."""

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_FILE_SUFFIXES = {".pth", ".pt", ".bin", ".safetensors"}
_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")


def load_segmenter(checkpoint: str | Path, device: torch.device | str = "cpu", dtype: str = "float32") -> Segmenter:
    """Load a segmenter.

    Args:
        checkpoint: A segment_anything `.pth` file (see `segment_anything.load_checkpoint`); a folder written by
            transformers' `save_pretrained`, or a Hub id, with a model type of `families.FAMILIES`; or "shapes".
        device: The device that it computes on.
        dtype: "float32", "bfloat16", "float16", or "auto": bfloat16 on GPUs that support it, else float32. Weights of
            other dtypes are cast to it.

    Raises:
        ModelError: The checkpoint does not exist or the Hub cannot be reached; the model is not a supported segmenter;
            weights are missing or of other shapes; the dtype is unknown.
    """
    torch_dtype = _dtype(dtype, torch.device(device))
    path = find_checkpoint(checkpoint)
    if path is not None and path.is_file():
        return load_checkpoint(path, device, torch_dtype)
    if path is None:
        use_cache_if_unreachable()
    return _load_transformers(str(checkpoint if path is None else path), device, torch_dtype)


def find_checkpoint(checkpoint: str | Path) -> Path | None:
    """Return the local file or folder of a checkpoint, without reading it; None for a Hub id.

    Raises:
        ModelError: There is no such file, or a folder has no config.json.
    """
    name = str(checkpoint)
    if name == EMBEDDED:
        from sam4mllm import models

        return models.path("segmenter")
    path = Path(checkpoint).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        if not (path / MODEL_CONFIG).is_file():
            raise ModelError(f"{path} has no {MODEL_CONFIG}; give a folder written by transformers' save_pretrained")
        return path
    if not _HUB_ID.fullmatch(name) or path.suffix in _FILE_SUFFIXES or path.parent.is_dir():
        raise ModelError(
            f"no segmenter checkpoint at {with_start(path)}; give a segment_anything .pth, a folder written by "
            f"save_pretrained, a Hub id (owner/name) or {EMBEDDED!r}"
        )
    return None


def _dtype(name: str, device: torch.device) -> torch.dtype:
    has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    auto = torch.bfloat16 if has_bfloat16 else torch.float32
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "auto": auto}
    if name not in known:
        raise ModelError(f"unknown dtype {name!r} for the segmenter; use one of {', '.join(known)}")
    return known[name]


def _load_transformers(name_or_path: str, device: torch.device | str, dtype: torch.dtype) -> TransformersSam:
    """Load a model of transformers from a folder or from the Hub."""
    import transformers

    try:
        with silence_transformers():
            configuration, _ = transformers.PreTrainedConfig.get_config_dict(name_or_path)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"the segmenter {name_or_path!r} does not load: {error_summary(error)}; check its name, and the connection "
            "if it is a Hub id"
        ) from error
    try:
        family = family_of(str(configuration.get("model_type")))
    except ModelError as error:
        raise ModelError(f"the segmenter {name_or_path!r}: {error}") from None
    try:
        with silence_transformers():
            # Weights of other shapes are reported like missing ones, so that `_check_report` raises one clear error.
            model, report = getattr(transformers, family.model_class).from_pretrained(
                name_or_path, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
            )
            statistics = _pixel_statistics(name_or_path, family)
    # Damaged weights and impossible sizes may raise nearly any error.
    except Exception as error:
        raise ModelError(
            f"the segmenter {name_or_path!r} does not load as a {family.model_class}: {error_summary(error)}"
        ) from error
    _check_report(name_or_path, family, report)
    return TransformersSam(model, family, device, dtype, statistics)


def _check_report(name_or_path: str, family: SamFamily, report: dict[str, Any]) -> None:
    """Refuse a model with weights that `from_pretrained` initialized at random, and warn about unused weights."""
    mismatched = [name for name, *_ in report["mismatched_keys"]]
    for problem, names in (("missing", report["missing_keys"]), ("mismatched", mismatched)):
        if names:
            raise ModelError(
                f"the segmenter {name_or_path!r}: {problem} weights {sorted(names)[:3]} ({len(names)} in all); "
                f"is it a complete {family.model_class}?"
            )
    unused = sorted(report["unexpected_keys"])
    if unused:
        logger.warning(
            "%s: a %s does not use %d weights: %s", name_or_path, family.model_class, len(unused), unused[:3]
        )


def _pixel_statistics(name_or_path: str, family: SamFamily) -> tuple[Sequence[float], Sequence[float]]:
    """Read mean and standard deviation from the checkpoint's image processor; the family's for folders without one."""
    from transformers.image_processing_base import ImageProcessingMixin

    folder = Path(name_or_path)
    if folder.is_dir() and not any((folder / name).is_file() for name in _PROCESSOR_FILES):
        return family.pixel_statistics
    settings, _ = ImageProcessingMixin.get_image_processor_dict(name_or_path)
    mean, std = family.pixel_statistics
    return settings.get("image_mean") or mean, settings.get("image_std") or std


@contextmanager
def silence_transformers() -> Iterator[None]:
    """Suppress transformers' report about loaded weights, and its progress bars where the output is not a terminal."""
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        with transformers_bars_on_terminals_only():
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
