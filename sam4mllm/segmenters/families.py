"""The table of transformers' SAM models that can be segmenters: all that differs between them is in its rows.

To add a family:
1. Append a row to `FAMILIES`: its model types in config.json, its class, frame, pixel statistics and processors.
2. Add an `EmbeddingFormat` if its mask decoder takes image features in another form than the three below.
3. Add a tiny random model of it to `sam4mllm/testing/tiny_segmenters.py`; `sam4mllm doctor` and the tests use it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from sam4mllm.errors import ModelError
from sam4mllm.segmenters.frame import InputFrame, SquareFrame

Features = tuple[torch.Tensor, ...]
"""The features of P embedded images: tensors (P, ...)."""


@dataclass(frozen=True, slots=True)
class EmbeddingFormat:
    """The form in which a model returns image embeddings, and the form in which its mask decoder takes them."""

    keep: Callable[[Any], Features]
    """Selects the features that are kept from the result of `model.get_image_embeddings`."""
    decoder_arguments: Callable[[Features], dict[str, Any]]
    """Returns these features as keyword arguments of `model.mask_decoder`."""


TENSOR = EmbeddingFormat(
    keep=lambda embedding: (embedding,),
    decoder_arguments=lambda features: {"image_embeddings": features[0]},
)
# SAM-HQ's mask decoder uses only the first of the image encoder's intermediate embeddings.
TENSOR_AND_LIST = EmbeddingFormat(
    keep=lambda embeddings: (embeddings[0], *embeddings[1][:1]),
    decoder_arguments=lambda features: {
        "image_embeddings": features[0],
        "intermediate_embeddings": list(features[1:]),
        "hq_token_only": False,
    },
)
# SAM2's feature pyramid, from fine to coarse.
PYRAMID = EmbeddingFormat(
    keep=tuple,
    decoder_arguments=lambda features: {
        "image_embeddings": features[-1],
        "high_resolution_features": list(features[:-1]),
    },
)

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

# Names of transformers' processor and image processor.
_SAM = ("SamProcessor", "SamImageProcessor")
_SAM_HQ = ("SamHQProcessor", "SamImageProcessor")
_SAM2 = ("Sam2Processor", "Sam2ImageProcessor")
_SAM3 = ("Sam3TrackerProcessor", "Sam3ImageProcessor")


@dataclass(frozen=True, slots=True)
class SamFamily:
    """A row of the table: one promptable segmentation model of transformers."""

    name: str
    model_types: tuple[str, ...]
    """Values of `model_type` in config.json; checkpoints of video models contain the image model's weights."""
    model_class: str
    frame: type[InputFrame]
    pixel_statistics: tuple[tuple[float, float, float], tuple[float, float, float]]
    """Mean and standard deviation of the channels, from 0 to 1, for checkpoints without an image processor's file."""
    embeddings: EmbeddingFormat
    processors: tuple[str, str]
    """Names of transformers' processor and image processor, with which the doctor compares our pixels and masks."""
    takes_tokens: bool = False
    """Whether prompts may be embeddings (`Segmenter.decode_embedded`), of the form of segment_anything's."""


FAMILIES = (
    SamFamily("sam", ("sam",), "SamModel", InputFrame, _IMAGENET, TENSOR, _SAM, takes_tokens=True),
    SamFamily("sam_hq", ("sam_hq",), "SamHQModel", InputFrame, _IMAGENET, TENSOR_AND_LIST, _SAM_HQ),
    SamFamily("sam2", ("sam2", "sam2_video"), "Sam2Model", SquareFrame, _IMAGENET, PYRAMID, _SAM2),
    SamFamily("sam3_tracker", ("sam3_tracker", "sam3_video"), "Sam3TrackerModel", SquareFrame, _HALF, PYRAMID, _SAM3),
    SamFamily("edgetam", ("edgetam", "edgetam_video"), "EdgeTamModel", SquareFrame, _IMAGENET, PYRAMID, _SAM2),
)


def family_of(model_type: str) -> SamFamily:
    """Return the family of checkpoints with this `model_type`.

    Raises:
        ModelError: No family has it.
    """
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    known = ", ".join(kind for family in FAMILIES for kind in family.model_types)
    raise ModelError(f"model type {model_type!r} is not a supported segmenter; supported are {known}")
