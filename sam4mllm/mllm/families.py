"""What is known of each family of multimodal LLMs, as a table: one row a model type, no branches elsewhere.

A row holds facts that cannot be read from a checkpoint: how the family was taught to write places, by what its
processor limits images, which of its modules LoRA may touch and which lead from the eyes to the language model. This
module loads nothing.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from sam4mllm.geometry import Grid, ResizedGrid
from sam4mllm.mllm.image_size import AREA, FIXED, LONGEST_SIDE, TILE_SHAPES, TILES, ImageSizeRule
from sam4mllm.prompts.coordinates import Coordinates

ALL_LINEAR = "all-linear"
"""peft's word for every linear layer; in every family it names the vision tower's too, so it wants an exclusion."""

OUTSIDE_THE_LANGUAGE_MODEL = r".*(vision|visual|multi_modal|connector|projector|lm_head).*"
"""Full-match pattern of the modules beside the language model; tried on every family of the table."""


@dataclass(frozen=True, slots=True)
class Family:
    """The facts of one family.

    `title` is what people call it. `coordinates` is the convention of its own grounding data (None: not published, or
    in units that text does not carry well); the bounds of a `ResizedGrid` in it are the family's usual ones, and a
    model's own processor decides (`image_size.own_coordinates`). `image_size` is how its processor limits images.
    `lora_targets` and `lora_exclude` are the defaults of peft's `target_modules` and `exclude_modules`. `projector`
    names the small modules between the eyes and the language model, for peft's `modules_to_save`. `needs` are packages
    that its processor wants beside ours.
    """

    model_type: str
    title: str
    coordinates: Coordinates | None = None
    image_size: ImageSizeRule = FIXED
    projector: tuple[str, ...] = ()
    lora_targets: str = ALL_LINEAR
    lora_exclude: str = OUTSIDE_THE_LANGUAGE_MODEL
    needs: tuple[str, ...] = ()


# Qwen2-VL and Qwen3-VL speak of 0 to 1000 each way, in bare numbers (Qwen3-VL's cookbook of 2D grounding); Qwen3.5 is
# of the same line.
_THOUSANDTHS = Coordinates(Grid((1000, 1000)), separator=", ", padded=False, far_edge=True)
# Qwen2.5-VL (arXiv 2502.13923, section 2.2.1): pixels of the resized image, whose sides are multiples of 28.
_PIXELS = Coordinates(ResizedGrid(28, 56 * 56, 28 * 28 * 16384), separator=", ", padded=False, far_edge=True)
# InternVL (its documentation of grounding data): <box>[[x1, y1, x2, y2]]</box>, 0 to 1000. It was taught no points.
_DOUBLE_BRACKETS = Coordinates(
    Grid((1000, 1000)), ("[[", "]]"), tags=("<box>", "</box>"), separator=", ", padded=False, far_edge=True
)

_MERGER = ("visual.merger",)
_PROJECTOR = ("multi_modal_projector",)
_CONNECTOR = ("connector",)

# LLaVA speaks of shares of the padded square, in decimals, which cost twice the tokens; SmolVLM, Idefics3, Gemma 3 and
# FastVLM do not say.
FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family("qwen2_5_vl", "Qwen2.5-VL", _PIXELS, AREA, _MERGER),
        Family("qwen3_vl", "Qwen3-VL", _THOUSANDTHS, AREA, _MERGER),
        Family("qwen3_5", "Qwen3.5", _THOUSANDTHS, AREA, _MERGER),
        Family("qwen2_vl", "Qwen2-VL", _THOUSANDTHS, AREA, _MERGER),
        Family("internvl", "InternVL", _DOUBLE_BRACKETS, TILES, _PROJECTOR),
        Family("llava_next", "LLaVA-NeXT", None, TILE_SHAPES, _PROJECTOR),
        Family("llava_onevision", "LLaVA-OneVision", None, TILE_SHAPES, _PROJECTOR),
        Family("llava", "LLaVA", None, FIXED, _PROJECTOR),
        Family("smolvlm", "SmolVLM", None, LONGEST_SIDE, _CONNECTOR, needs=("num2words",)),
        Family("idefics3", "Idefics3", None, LONGEST_SIDE, _CONNECTOR),
        Family("gemma3", "Gemma 3", None, FIXED, _PROJECTOR),
        Family("fast_vlm", "FastVLM", None, FIXED, _PROJECTOR),
    )
}


def family_of(model_type: str) -> Family:
    """The row of `model_type`; for a type without one the defaults, with a warning."""
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    warnings.warn(
        f"model type {model_type!r} was not tried; the defaults are used, so check that LoRA touches the language "
        f"model only (tried: {', '.join(sorted(FAMILIES))})",
        stacklevel=2,
    )
    return Family(model_type, model_type)
