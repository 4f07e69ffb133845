"""The table of multimodal LLM families: one row per model type, and no branches on a family elsewhere.

A row holds facts that cannot be read from a checkpoint: the coordinate convention of the family's grounding data, how
its processor limits image sizes, which modules LoRA adapts, and which modules are the projector.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from sam4mllm.geometry import Grid, ResizedGrid
from sam4mllm.mllm.image_size import (
    AREA,
    CROPS,
    FIXED,
    LONGEST_SIDE,
    SLICES,
    SOFT_TOKENS,
    TILE_SHAPES,
    TILES,
    TOKENS_AND_TILES,
    ImageSizeRule,
)
from sam4mllm.prompts.coordinates import Coordinates

ALL_LINEAR = "all-linear"
"""peft's name for all linear layers; `attach_lora` excludes those outside the decoder."""


@dataclass(frozen=True, slots=True)
class Family:
    """The facts about one family.

    `model_type` is the one in transformers' config, `title` the family's display name. `coordinates` is the convention
    of its grounding data; None if it is unpublished or costs too many tokens. The bounds of a `ResizedGrid` in it are
    the family's defaults, which `image_size.native_coordinates` replaces by those of a model's processor. `image_size`
    is how the processor limits image sizes. `projector` names the modules between vision tower and language model, for
    peft's `modules_to_save`; `frozen_projectors` names others, which `tune_projector` leaves frozen. `lora_targets` is
    the default of peft's `target_modules`. `needs` are optional packages that the processor imports.
    """

    model_type: str
    title: str
    coordinates: Coordinates | None = None
    image_size: ImageSizeRule = FIXED
    projector: tuple[str, ...] = ()
    frozen_projectors: tuple[str, ...] = ()
    lora_targets: str = ALL_LINEAR
    needs: tuple[str, ...] = ()


# Qwen3-VL (its cookbook on 2D grounding), Qwen3.5 and the mixtures of experts of both: 0 to 1000 in both directions, in
# bare unpadded numbers. Other families were trained on the same scale in a form that `Coordinates` does not have:
# Qwen2-VL on <|box_start|>(x1,y1),(x2,y2)<|box_end|>, MiniCPM-V on <box>x1 y1 x2 y2</box>, and Molmo2 on points alone,
# as numbered triples ("ID X Y") without commas.
_THOUSANDTHS = Coordinates(Grid((1000, 1000)), separator=", ", padded=False, far_edge=True)
# Qwen2.5-VL (arXiv 2502.13923, section 2.2.1): pixels of the resized image, whose sides are multiples of 28.
_PIXELS = Coordinates(ResizedGrid(28, 56 * 56, 28 * 28 * 16384), separator=", ", padded=False, far_edge=True)
# InternVL (its documentation of grounding data): <box>[[x1, y1, x2, y2]]</box>, 0 to 1000; no format for points.
_DOUBLE_BRACKETS = Coordinates(
    Grid((1000, 1000)), ("[[", "]]"), tags=("<box>", "</box>"), separator=", ", padded=False, far_edge=True
)
# Gemma 4: JSON with "box_2d": [y1, x1, y2, x2], 0 to 1000, as Gemini; of it the numbers in brackets.
_Y_FIRST = Coordinates(Grid((1000, 1000)), separator=", ", padded=False, far_edge=True, axis_order="yx")
# GLM-4.1V, GLM-4.5V and GLM-4.6V (glmv-grounding of zai-org's skills): 0 to 1000 in double brackets between tags.
_BOX_TAGS = Coordinates(
    Grid((1000, 1000)), ("[[", "]]"), tags=("<|begin_of_box|>", "<|end_of_box|>"), padded=False, far_edge=True
)

_MERGER = ("visual.merger",)
_DEEPSTACK = ("visual.deepstack_merger_list",)
_PROJECTOR = ("multi_modal_projector",)
_CONNECTOR = ("connector",)

# LLaVA was trained on decimal shares of the padded square, which cost twice the tokens. LFM2.5-VL was trained on boxes
# in JSON, whose scale is not known here. For SmolVLM, Idefics3, Gemma 3 and FastVLM no convention is published.
FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        family.model_type: family
        for family in (
            Family("qwen2_5_vl", "Qwen2.5-VL", _PIXELS, AREA, _MERGER),
            Family("qwen3_vl", "Qwen3-VL", _THOUSANDTHS, AREA, _MERGER, _DEEPSTACK),
            Family("qwen3_vl_moe", "Qwen3-VL MoE", _THOUSANDTHS, AREA, _MERGER, _DEEPSTACK),
            Family("qwen3_5", "Qwen3.5", _THOUSANDTHS, AREA, _MERGER),
            Family("qwen3_5_moe", "Qwen3.5 MoE", _THOUSANDTHS, AREA, _MERGER),
            Family("qwen2_vl", "Qwen2-VL", _THOUSANDTHS, AREA, _MERGER),
            Family("internvl", "InternVL", _DOUBLE_BRACKETS, TILES, _PROJECTOR),
            Family("llava_next", "LLaVA-NeXT", None, TILE_SHAPES, _PROJECTOR),
            Family("llava_onevision", "LLaVA-OneVision", None, TILE_SHAPES, _PROJECTOR),
            Family("llava", "LLaVA", None, FIXED, _PROJECTOR),
            Family("smolvlm", "SmolVLM", None, LONGEST_SIDE, _CONNECTOR, needs=("num2words",)),
            Family("idefics3", "Idefics3", None, LONGEST_SIDE, _CONNECTOR),
            Family("gemma3", "Gemma 3", None, FIXED, _PROJECTOR),
            Family("fast_vlm", "FastVLM", None, FIXED, _PROJECTOR),
            Family("gemma4", "Gemma 4", _Y_FIRST, SOFT_TOKENS, ("embed_vision",), ("embed_audio",)),
            Family(
                "gemma4_unified",
                "Gemma 4 Unified",
                _Y_FIRST,
                SOFT_TOKENS,
                ("embed_vision.multimodal_embedder",),
                ("embed_audio",),
            ),
            Family("glm4v", "GLM-4.1V", _BOX_TAGS, AREA, _MERGER),
            Family("glm4v_moe", "GLM-4.5V", _BOX_TAGS, AREA, _MERGER),
            Family("glm46v", "GLM-4.6V", _BOX_TAGS, AREA, _MERGER),
            Family("lfm2_vl", "LFM2.5-VL", None, TOKENS_AND_TILES, _PROJECTOR),
            Family("molmo2", "Molmo2", _THOUSANDTHS, CROPS, _PROJECTOR),
            # Not "merger", with which peft's suffix match would also select the vision tower's `vit_merger`.
            Family("minicpmv4_6", "MiniCPM-V 4.6", _THOUSANDTHS, SLICES, ("model.merger",)),
        )
    }
)
"""The families by model type.

To add a family:
1. Add a row; without further values it has the defaults of `Family`.
2. Add a tiny random model of its classes to `sam4mllm/testing/tiny_mllms.py`, under the same model type.
3. Run `sam4mllm doctor --only MODEL_TYPE`, which checks prompts, labels, LoRA's modules and the image size limits.
"""


def family_of(model_type: str) -> Family:
    """Return the row of `model_type`; for a type without a row the defaults, with a warning."""
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    warnings.warn(
        f"model type {model_type!r} is not in the table of families: coordinates are written on method.grid, and "
        f"model.tune_projector is not available (known: {', '.join(sorted(FAMILIES))})",
        stacklevel=2,
    )
    return Family(model_type, model_type)
