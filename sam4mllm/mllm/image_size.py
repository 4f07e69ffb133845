"""Image size limits: the recipe's `min_pixels`, `max_pixels` and `longest_side` as settings of each image processor.

Every image processor resizes an image to a size that its settings allow, so an image above the limit is downscaled
and needs no more memory than an image at the limit. The table in `families.py` assigns one of the rules at the end of
this file to each family; for a model type without a row, `image_size_rule` derives it from the image processor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

from sam4mllm.errors import RecipeError
from sam4mllm.geometry import ResizedGrid
from sam4mllm.prompts.coordinates import Coordinates

GEMMA4_TOKENS = (70, 140, 280, 560, 1120)
"""The numbers of tokens of an image that Gemma 4's processors accept."""

Limits = Mapping[str, int]
"""Those of `min_pixels`, `max_pixels` (areas) and `longest_side` that a recipe sets, in pixels of the resized image."""


@dataclass(frozen=True, slots=True)
class ImageSizeRule:
    """The way in which a kind of image processor limits the size of images.

    `description` states what the processor does with an image, to be read after the model's name. `limits` are the
    names of the limits that it supports. `apply` sets limits in an image processor.
    """

    description: str
    limits: tuple[str, ...]
    apply: Callable[[Any, Limits], None]


def limit_images(processor: Any, rule: ImageSizeRule, limits: Limits, model_type: str) -> None:
    """Set the limits in `processor`; limits that are not given stay as in the checkpoint.

    Raises:
        RecipeError: A limit that this family's processor does not support, or that allows no size.
    """
    for name in limits:
        if name not in rule.limits:
            supported = " and ".join(f"model.{limit}" for limit in rule.limits) or "no key of model; leave it out"
            raise RecipeError(f"model.{name}: {model_type!r} {rule.description}; its images are limited by {supported}")
    if limits:
        rule.apply(processor.image_processor, limits)


def image_size_rule(images: Any) -> ImageSizeRule:
    """Return the rule of an image processor by its settings, for a model type without a row in the table."""
    size = dict(getattr(images, "size", None) or {})
    if getattr(images, "image_grid_pinpoints", None):
        return TILE_SHAPES
    for rule, names in _SETTINGS.items():
        if _has(images, *names):
            return rule
    if {"height", "width"} <= set(size) and _has(images, "min_patches", "max_patches"):
        return TILES
    # Of the processors with both edges, those that merge patches bound the area; others, such as Idefics2's, the sides.
    if {"shortest_edge", "longest_edge"} <= set(size) and _has(images, "patch_size", "merge_size"):
        return AREA
    if set(size) == {"longest_edge"} and "longest_edge" in dict(getattr(images, "max_image_size", None) or {}):
        return LONGEST_SIDE
    return UNKNOWN


def _has(images: Any, *names: str) -> bool:
    return all(getattr(images, name, None) is not None for name in names)


def pad_instead_of_crop(processor: Any) -> None:
    """Change an image processor that crops the center square of an image so that it pads to a square instead.

    The processors of LLaVA 1.5 and FastVLM crop, although the models were trained on padded images, and objects outside
    the crop could not be found. Their checkpoints name CLIP's processor, which cannot pad; LLaVA's replaces it.
    """
    from transformers import LlavaImageProcessor

    images = processor.image_processor
    if not getattr(images, "do_center_crop", False):
        return
    settings = images.to_dict()
    if settings.pop("image_processor_type") == "CLIPImageProcessor" and "shortest_edge" in images.size:
        processor.image_processor = LlavaImageProcessor(**{**settings, "do_pad": True})
    elif getattr(images, "do_pad", None) is False:
        images.do_pad = True


def sync_tile_shapes(config: Any, processor: Any) -> None:
    """Copy the processor's tile shapes, if it has any, to the model's config: both compute the number of tokens."""
    shapes = getattr(processor.image_processor, "image_grid_pinpoints", None)
    if shapes is not None and hasattr(config, "image_grid_pinpoints"):
        config.image_grid_pinpoints = [list(shape) for shape in shapes]


def native_coordinates(coordinates: Coordinates | None, processor: Any) -> Coordinates | None:
    """Return a family's coordinate convention; one in pixels of the resized image gets this processor's bounds."""
    if coordinates is None or not isinstance(coordinates.frame, ResizedGrid):
        return coordinates
    images = processor.image_processor
    multiple = images.patch_size * images.merge_size
    return replace(coordinates, frame=ResizedGrid(multiple, images.size["shortest_edge"], images.size["longest_edge"]))


def _set_area(images: Any, limits: Limits) -> None:
    """Set the bounds of the resized area, which these processors call `shortest_edge` and `longest_edge`."""
    frames = _frames_in_bounds(images)
    minimum = limits.get("min_pixels", images.size["shortest_edge"] // frames)
    maximum = limits.get("max_pixels", images.size["longest_edge"] // frames)
    one_token = (images.patch_size * images.merge_size) ** 2
    if maximum < max(minimum, one_token):
        raise RecipeError(
            f"model.max_pixels: {maximum} is below the smallest size of an image, {max(minimum, one_token)} pixels; "
            "raise it, or lower model.min_pixels"
        )
    images.size = {"shortest_edge": frames * minimum, "longest_edge": frames * maximum}


def _frames_in_bounds(images: Any) -> int:
    """Return how many times the bounds of the area count an image: GLM's processors count it as several frames."""
    # The bounds are tried on an image of 8 x 8 tokens, which a processor that counts one frame leaves as it is.
    probe, side = deepcopy(images), 8 * images.patch_size * images.merge_size
    probe.size = {"shortest_edge": side * side, "longest_edge": side * side}
    patches = probe.get_number_of_image_patches(side, side)
    return 1 if patches * images.patch_size**2 == side * side else int(images.temporal_patch_size)


def _set_tiles(images: Any, limits: Limits) -> None:
    """Set the bounds of the number of tiles."""
    tile = images.size["height"] * images.size["width"]
    minimum = math.ceil(limits["min_pixels"] / tile) if "min_pixels" in limits else images.min_patches
    maximum = limits["max_pixels"] // tile if "max_pixels" in limits else images.max_patches
    if maximum < max(minimum, 1):
        raise RecipeError(
            f"model.max_pixels: allows {maximum} tiles of {tile} pixels, but an image has at least {max(minimum, 1)} "
            "tiles; raise it, or lower model.min_pixels"
        )
    images.min_patches, images.max_patches = minimum, maximum


def _set_tile_shapes(images: Any, limits: Limits) -> None:
    """Keep the tile layouts (height, width in pixels) whose area is within the limits."""
    shapes = [list(shape) for shape in images.image_grid_pinpoints]
    minimum, maximum = limits.get("min_pixels", 0), limits.get("max_pixels", math.inf)
    kept = [shape for shape in shapes if minimum <= shape[0] * shape[1] <= maximum]
    if not kept:
        areas = sorted(height * width for height, width in shapes)
        raise RecipeError(
            f"model.max_pixels: no tile layout of this model has {minimum} to {maximum} pixels; its layouts have "
            f"{areas[0]} to {areas[-1]}, so change model.min_pixels or model.max_pixels"
        )
    images.image_grid_pinpoints = kept


def _set_longest_side(images: Any, limits: Limits) -> None:
    """Set the length to which the longest side is resized before the image is cut into tiles."""
    tile = images.max_image_size["longest_edge"]
    if limits["longest_side"] < tile:
        raise RecipeError(f"model.longest_side: {limits['longest_side']} is below one tile of {tile} pixels; raise it")
    images.size = {"longest_edge": limits["longest_side"]}


def _set_soft_tokens(images: Any, limits: Limits) -> None:
    """Set the number of tokens of an image to the largest that Gemma 4 was trained on and the limit allows."""
    token_area = (images.patch_size * images.pooling_kernel_size) ** 2
    allowed = [tokens for tokens in GEMMA4_TOKENS if tokens * token_area <= limits["max_pixels"]]
    if not allowed:
        raise RecipeError(
            f"model.max_pixels: {limits['max_pixels']} is below the smallest size of an image, "
            f"{GEMMA4_TOKENS[0] * token_area} pixels ({GEMMA4_TOKENS[0]} tokens); raise it"
        )
    images.max_soft_tokens = allowed[-1]


def _set_tokens_and_tiles(images: Any, limits: Limits) -> None:
    """Set LFM2-VL's bounds: the tokens of an image in one piece, and the tiles that a larger one is split into."""
    token_area, tile = (images.encoder_patch_size * images.downsample_factor) ** 2, images.tile_size**2
    if "min_pixels" in limits:
        images.min_image_tokens = math.ceil(limits["min_pixels"] / token_area)
    if "max_pixels" in limits:
        tiles = limits["max_pixels"] // tile
        if tiles < images.min_tiles:
            # With one tile images are not split.
            images.min_tiles = images.max_tiles = 1
            images.do_image_splitting = False
            images.max_image_tokens = min(images.max_image_tokens, limits["max_pixels"] // token_area)
        else:
            images.max_tiles = tiles
    if images.max_image_tokens < max(images.min_image_tokens, 1):
        raise RecipeError(
            f"model.max_pixels: allows {images.max_image_tokens} tokens of {token_area} pixels, but an image has at "
            f"least {max(images.min_image_tokens, 1)}; raise it, or lower model.min_pixels"
        )
    # The length to which the patches of an image are padded; the processor computes it when it is created.
    in_tile = (images.tile_size // images.encoder_patch_size) ** 2 if images.do_image_splitting else 0
    images.max_num_patches = max(images.max_image_tokens * images.downsample_factor**2, in_tile)


def _set_crops(images: Any, limits: Limits) -> None:
    """Set the number of Molmo2's overlapping crops to the largest whose layouts all have an area within the limit."""
    margin = sum(images.overlap_margins) * images.patch_size
    side = images.size["height"]
    window = side - margin

    def area(crops: int) -> int:
        """Return the largest area of the layouts of up to `crops` crops."""
        return max((rows * window + margin) * (crops // rows * window + margin) for rows in range(1, crops + 1))

    if area(1) > limits["max_pixels"]:
        raise RecipeError(f"model.max_pixels: {limits['max_pixels']} is below one crop of {area(1)} pixels; raise it")
    crops = 1
    while area(crops + 1) <= limits["max_pixels"]:
        crops += 1
    images.max_crops = crops


def _set_slices(images: Any, limits: Limits) -> None:
    """Set the number of MiniCPM-V's slices; their sides are rounded, so their area is a slice's only about."""
    area = images.scale_resolution**2
    if limits["max_pixels"] < area:
        raise RecipeError(f"model.max_pixels: {limits['max_pixels']} is below one slice of {area} pixels; raise it")
    images.max_slice_nums = limits["max_pixels"] // area


def _set_nothing(images: Any, limits: Limits) -> None:
    """Do nothing: `limit_images` refuses every limit of these rules."""


AREA = ImageSizeRule("keeps the aspect ratio, and the area between two bounds", ("min_pixels", "max_pixels"), _set_area)
TILES = ImageSizeRule("splits an image into tiles of one size", ("min_pixels", "max_pixels"), _set_tiles)
TILE_SHAPES = ImageSizeRule(
    "resizes an image to the best of its tile layouts", ("min_pixels", "max_pixels"), _set_tile_shapes
)
LONGEST_SIDE = ImageSizeRule("resizes the longest side to a fixed length", ("longest_side",), _set_longest_side)
SOFT_TOKENS = ImageSizeRule("resizes every image to the area of a number of tokens", ("max_pixels",), _set_soft_tokens)
TOKENS_AND_TILES = ImageSizeRule(
    "bounds the area of an image, and splits larger ones into tiles",
    ("min_pixels", "max_pixels"),
    _set_tokens_and_tiles,
)
CROPS = ImageSizeRule("splits an image into overlapping crops of one size", ("max_pixels",), _set_crops)
SLICES = ImageSizeRule("splits an image into slices of about one area", ("max_pixels",), _set_slices)
FIXED = ImageSizeRule("resizes every image to a fixed size", (), _set_nothing)
UNKNOWN = ImageSizeRule("limits the size of images by settings that are not supported here", (), _set_nothing)

_SETTINGS = {
    SOFT_TOKENS: ("max_soft_tokens", "pooling_kernel_size"),
    TOKENS_AND_TILES: ("max_image_tokens", "max_tiles", "tile_size", "encoder_patch_size", "downsample_factor"),
    CROPS: ("max_crops", "overlap_margins"),
    SLICES: ("max_slice_nums", "scale_resolution"),
}
"""Settings of image processors that occur with one rule only."""
