"""From the name of a segmenter's checkpoint to the Segmenter: the file or folder itself says what it is.

A file is a segment_anything `.pth`; a folder with a config.json, or a Hub id, is a model of transformers' SAM family;
"shapes" is the small one that travels with the package. This module knows no prompts and no masks.
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
from sam4mllm.segmenters.segment_anything import first_line, load_checkpoint
from sam4mllm.segmenters.transformers_sam import TransformersSam
from sam4mllm.utils.progress import no_bar_in_a_log

logger = logging.getLogger(__name__)

EMBEDDED = "shapes"
"""The name of the segmenter that travels with the package."""

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_FILE_SUFFIXES = {".pth", ".pt", ".bin", ".safetensors"}
_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")


def load_segmenter(checkpoint: str | Path, device: torch.device | str = "cpu", dtype: str = "float32") -> Segmenter:
    """Loads the segmenter that `checkpoint` names.

    Args:
        checkpoint: A segment_anything `.pth` (see `segment_anything.load_checkpoint`); a folder made by transformers'
            `save_pretrained` or a Hub id, of a model type in `families.FAMILIES`; or "shapes".
        device: Where it computes.
        dtype: "float32", "bfloat16", "float16", or "auto": bfloat16 on a GPU that has it, else float32. Weights are
            brought to it from whatever type they are stored in.

    Raises:
        ModelError: nothing there, an unreachable Hub, a model of another kind, missing or misshapen weights, or an
            unknown number type.
    """
    number_type = _dtype(dtype, torch.device(device))
    path = find_checkpoint(checkpoint)
    if path is not None and path.is_file():
        return load_checkpoint(path, device, number_type)
    return _load_transformers(str(checkpoint if path is None else path), device, number_type)


def find_checkpoint(checkpoint: str | Path) -> Path | None:
    """The file or folder of a segmenter on this machine; None for an id of the Hub. Nothing is opened.

    Raises:
        ModelError: nothing is there, or a folder without a model.
    """
    name = str(checkpoint)
    if name == EMBEDDED:
        from sam4mllm import models

        return models.path("segmenter")
    path = Path(checkpoint).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{path} holds no config.json; give a folder made by transformers' save_pretrained")
        return path
    if not _HUB_ID.fullmatch(name) or path.suffix in _FILE_SUFFIXES or path.parent.is_dir():
        raise ModelError(
            f"no segmenter checkpoint at {path}; give a segment_anything .pth, a folder made by save_pretrained, "
            f"a Hub id (owner/name) or {EMBEDDED!r}"
        )
    return None


def _dtype(name: str, device: torch.device) -> torch.dtype:
    halves = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    auto = torch.bfloat16 if halves else torch.float32
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "auto": auto}
    if name not in known:
        raise ModelError(f"unknown number type {name!r} for the segmenter; use one of {', '.join(known)}")
    return known[name]


def _load_transformers(place: str, device: torch.device | str, dtype: torch.dtype) -> TransformersSam:
    """The model in the folder or of the Hub id `place`."""
    import transformers

    try:
        with quiet():
            configuration, _ = transformers.PreTrainedConfig.get_config_dict(place)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"the segmenter {place!r} does not load: {first_line(error)}; is the name right, and the Hub in reach?"
        ) from error
    try:
        family = family_of(str(configuration.get("model_type")))
    except ModelError as error:
        raise ModelError(f"the segmenter {place!r}: {error}") from None
    try:
        with quiet():
            # Misshapen weights are listed like missing ones, so that both are told in one line of ours.
            model, report = getattr(transformers, family.model_class).from_pretrained(
                place, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
            )
            statistics = _pixel_statistics(place, family)
    # Damaged weights and impossible sizes may raise nearly anything.
    except Exception as error:
        raise ModelError(
            f"the segmenter {place!r} does not load as a {family.model_class}: {first_line(error)}"
        ) from error
    _check_report(place, family, report)
    return TransformersSam(model, family, device, dtype, statistics)


def _check_report(place: str, family: SamFamily, report: dict[str, Any]) -> None:
    """Refuses a model of which some weights were made up, as `from_pretrained` does where a checkpoint has none."""
    misshapen = [name for name, *_ in report["mismatched_keys"]]
    for what, found in (("no", report["missing_keys"]), ("misshapen", misshapen)):
        if found:
            raise ModelError(
                f"the segmenter {place!r}: {what} weights {sorted(found)[:3]} ({len(found)} in all); "
                f"is it a whole {family.model_class}?"
            )
    unused = sorted(report["unexpected_keys"])
    if unused:
        logger.warning("%s: %d weights have no place in a %s: %s", place, len(unused), family.model_class, unused[:3])


def _pixel_statistics(place: str, family: SamFamily) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation of the checkpoint's image processor; the family's for a folder without one."""
    from transformers.image_processing_base import ImageProcessingMixin

    if Path(place).is_dir() and not any((Path(place) / name).is_file() for name in _PROCESSOR_FILES):
        return family.pixel_statistics
    settings, _ = ImageProcessingMixin.get_image_processor_dict(place)
    mean, std = family.pixel_statistics
    return settings.get("image_mean") or mean, settings.get("image_std") or std


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' own report, which is checked here instead; its progress bar on a terminal alone."""
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        with no_bar_in_a_log():
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
