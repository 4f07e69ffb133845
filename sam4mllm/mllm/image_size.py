"""How large a model sees an image: the recipe's limits, in the words of each family's image processor.

Every processor brings an image to the size that its settings allow, so an image above the limit is shrunk, and costs
no more memory than the limit does. Here those settings are changed, and read. This module knows no family by name; the
table in `families.py` says which rule is whose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sam4mllm.errors import RecipeError
from sam4mllm.geometry import ResizedGrid
from sam4mllm.prompts.coordinates import Coordinates

Limits = Mapping[str, int]
"""`min_pixels`, `max_pixels` (areas) and `longest_side`, in pixels of the resized image; those that are asked for."""


@dataclass(frozen=True, slots=True)
class ImageSizeRule:
    """A way to limit images: `takes` are the limits that it knows, `set` puts them into an image processor.

    `text` says in a few words what the processor does with an image.
    """

    text: str
    takes: tuple[str, ...]
    set: Callable[[Any, Limits], None]


def limit_images(processor: Any, rule: ImageSizeRule, limits: Limits, model_type: str) -> None:
    """Put `limits` into `processor`; what is not asked for stays as the checkpoint has it.

    Raises:
        RecipeError: a limit that this family's processor does not have, or that leaves no size.
    """
    for name in limits:
        if name not in rule.takes:
            what = " and ".join(f"model.{taken}" for taken in rule.takes) or "no setting; leave it out"
            raise RecipeError(f"model.{name}: {model_type!r} {rule.text}; its images are limited by {what}")
    if limits:
        rule.set(processor.image_processor, limits)


def keep_whole(processor: Any) -> None:
    """Let an image processor that would cut the middle square out of an image pad it to a square instead.

    LLaVA 1.5's and FastVLM's do so, although the models were taught padded images; what is cut off could not be
    found. Their checkpoints name CLIP's processor, which cannot pad, so LLaVA's own takes its place.
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
    """Tell the model the tile shapes that its processor cuts images into, where it has such: both count by them."""
    shapes = getattr(processor.image_processor, "image_grid_pinpoints", None)
    if shapes is not None and hasattr(config, "image_grid_pinpoints"):
        config.image_grid_pinpoints = [list(shape) for shape in shapes]


def own_coordinates(coordinates: Coordinates | None, processor: Any) -> Coordinates | None:
    """A family's convention with the bounds of this very processor, where its frame is the resized image."""
    if coordinates is None or not isinstance(coordinates.frame, ResizedGrid):
        return coordinates
    images = processor.image_processor
    multiple = images.patch_size * images.merge_size
    return replace(coordinates, frame=ResizedGrid(multiple, images.size["shortest_edge"], images.size["longest_edge"]))


def _set_area(images: Any, limits: Limits) -> None:
    least = limits.get("min_pixels", images.size["shortest_edge"])
    most = limits.get("max_pixels", images.size["longest_edge"])
    one_token = (images.patch_size * images.merge_size) ** 2
    if most < max(least, one_token):
        raise RecipeError(
            f"model.max_pixels: {most} is below the least size of an image, {max(least, one_token)} pixels; "
            "raise it, or lower model.min_pixels"
        )
    images.size = {"shortest_edge": least, "longest_edge": most}


def _set_tiles(images: Any, limits: Limits) -> None:
    tile = images.size["height"] * images.size["width"]
    least = math.ceil(limits["min_pixels"] / tile) if "min_pixels" in limits else images.min_patches
    most = limits["max_pixels"] // tile if "max_pixels" in limits else images.max_patches
    if most < max(least, 1):
        raise RecipeError(
            f"model.max_pixels: leaves {most} tiles of {tile} pixels, and an image has {max(least, 1)} or more; "
            "raise it, or lower model.min_pixels"
        )
    images.min_patches, images.max_patches = least, most


def _set_tile_shapes(images: Any, limits: Limits) -> None:
    shapes = [list(shape) for shape in images.image_grid_pinpoints]
    least, most = limits.get("min_pixels", 0), limits.get("max_pixels", math.inf)
    kept = [shape for shape in shapes if least <= shape[0] * shape[1] <= most]
    if not kept:
        areas = sorted(height * width for height, width in shapes)
        raise RecipeError(
            f"model.max_pixels: no shape of tiles has {least} to {most} pixels; the model's own have {areas[0]} to "
            f"{areas[-1]}"
        )
    images.image_grid_pinpoints = kept


def _set_longest_side(images: Any, limits: Limits) -> None:
    tile = images.max_image_size["longest_edge"]
    if limits["longest_side"] < tile:
        raise RecipeError(f"model.longest_side: {limits['longest_side']} is below one tile of {tile} pixels; raise it")
    images.size = {"longest_edge": limits["longest_side"]}


def _set_nothing(images: Any, limits: Limits) -> None:
    """A fixed size has nothing to set; `limit_images` has refused every limit."""


AREA = ImageSizeRule("keeps the shape, and an area between bounds", ("min_pixels", "max_pixels"), _set_area)
TILES = ImageSizeRule("cuts an image into tiles of one size", ("min_pixels", "max_pixels"), _set_tiles)
TILE_SHAPES = ImageSizeRule("takes the best of some shapes of tiles", ("min_pixels", "max_pixels"), _set_tile_shapes)
LONGEST_SIDE = ImageSizeRule("brings the longest side to one length", ("longest_side",), _set_longest_side)
FIXED = ImageSizeRule("brings every image to one size", (), _set_nothing)
