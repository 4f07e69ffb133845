"""The SAM family in transformers, as a table: what differs between its models stands here and nowhere else.

This module imports no transformers, reads no file and does not know what a prompt is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from sam4mllm.errors import ModelError
from sam4mllm.segmenters.frame import InputFrame, SquareFrame

Features = tuple[torch.Tensor, ...]
"""What is kept of P embedded images: tensors (P, ...)."""


@dataclass(frozen=True, slots=True)
class EmbeddingForm:
    """In which form a model gives embeddings, and in which form its mask decoder takes them."""

    keep: Callable[[Any], Features]
    """What is kept of the result of `model.get_image_embeddings`."""
    decoder_arguments: Callable[[Features], dict[str, Any]]
    """The same as keyword arguments of `model.mask_decoder`."""


TENSOR = EmbeddingForm(
    keep=lambda embedding: (embedding,),
    decoder_arguments=lambda features: {"image_embeddings": features[0]},
)
# Of the image encoder's intermediate embeddings, SAM-HQ's mask decoder reads the first alone.
TENSOR_AND_LIST = EmbeddingForm(
    keep=lambda embeddings: (embeddings[0], *embeddings[1][:1]),
    decoder_arguments=lambda features: {
        "image_embeddings": features[0],
        "intermediate_embeddings": list(features[1:]),
        "hq_token_only": False,
    },
)
# From fine to coarse.
PYRAMID = EmbeddingForm(
    keep=tuple,
    decoder_arguments=lambda features: {
        "image_embeddings": features[-1],
        "high_resolution_features": list(features[:-1]),
    },
)

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True, slots=True)
class SamFamily:
    """One of transformers' model classes that turn prompts into masks.

    `pixel_statistics` are mean and standard deviation of the channels on the scale of 0 to 1: those of the family's
    own image processor, for checkpoints without a processor's file.
    """

    name: str
    model_types: tuple[str, ...]
    """What a checkpoint's config.json may say. Those of video models hold the image's model among other weights."""
    model_class: str
    frame: type[InputFrame]
    pixel_statistics: tuple[tuple[float, float, float], tuple[float, float, float]]
    embeddings: EmbeddingForm


FAMILIES = (
    SamFamily("sam", ("sam",), "SamModel", InputFrame, _IMAGENET, TENSOR),
    SamFamily("sam_hq", ("sam_hq",), "SamHQModel", InputFrame, _IMAGENET, TENSOR_AND_LIST),
    SamFamily("sam2", ("sam2", "sam2_video"), "Sam2Model", SquareFrame, _IMAGENET, PYRAMID),
    SamFamily("sam3_tracker", ("sam3_tracker", "sam3_video"), "Sam3TrackerModel", SquareFrame, _HALF, PYRAMID),
    SamFamily("edgetam", ("edgetam", "edgetam_video"), "EdgeTamModel", SquareFrame, _IMAGENET, PYRAMID),
)


def family_of(model_type: str) -> SamFamily:
    """The family whose checkpoints say `model_type`.

    Raises:
        ModelError: a type that is no segmenter of ours.
    """
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    known = ", ".join(kind for family in FAMILIES for kind in family.model_types)
    raise ModelError(f"model type {model_type!r} is no segmenter that is known here; known are {known}")
