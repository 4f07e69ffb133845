"""References for the checks of segmenters: the libraries' own processors, and segment_anything's Sam as a SamModel.

Both libraries interpret a coordinate as the index of a pixel in their input square and add half a pixel to it. Our
coordinates are continuous (`sam4mllm.geometry`), so half a pixel is subtracted before the libraries are called.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sam4mllm.geometry import SamPrompt
from sam4mllm.segmenters.architecture import SamArchitecture
from sam4mllm.segmenters.families import SamFamily
from sam4mllm.segmenters.frame import SquareFrame
from sam4mllm.segmenters.segment_anything import SegmentAnything
from sam4mllm.segmenters.transformers_sam import TransformersSam

# Applied in order. Source: the module names of segment_anything's `modeling/` and of transformers' `modeling_sam.py`.
_SAM_MODEL_NAMES = [
    (r"^image_encoder\.", "vision_encoder."),
    (r"^(vision_encoder\.)blocks\.", r"\1layers."),
    (r"patch_embed\.proj\.", "patch_embed.projection."),
    (r"(layers\.\d+\.)norm(\d)\.", r"\1layer_norm\2."),
    (r"neck\.0\.", "neck.conv1."),
    (r"neck\.1\.", "neck.layer_norm1."),
    (r"neck\.2\.", "neck.conv2."),
    (r"neck\.3\.", "neck.layer_norm2."),
    (r"pe_layer\.positional_encoding_gaussian_matrix", "shared_embedding.positional_embedding"),
    (r"point_embeddings\.", "point_embed."),
    (r"mask_downscaling\.0\.", "mask_embed.conv1."),
    (r"mask_downscaling\.1\.", "mask_embed.layer_norm1."),
    (r"mask_downscaling\.3\.", "mask_embed.conv2."),
    (r"mask_downscaling\.4\.", "mask_embed.layer_norm2."),
    (r"mask_downscaling\.6\.", "mask_embed.conv3."),
    (r"norm_final_attn\.", "layer_norm_final_attn."),
    (r"output_upscaling\.0\.", "upscale_conv1."),
    (r"output_upscaling\.1\.", "upscale_layer_norm."),
    (r"output_upscaling\.3\.", "upscale_conv2."),
    # Heads of three layers: the first and the last have names, the one between has a number.
    (r"((?:iou_prediction_head|output_hypernetworks_mlps\.\d+)\.)layers\.0\.", r"\1proj_in."),
    (r"((?:iou_prediction_head|output_hypernetworks_mlps\.\d+)\.)layers\.2\.", r"\1proj_out."),
    (r"((?:iou_prediction_head|output_hypernetworks_mlps\.\d+)\.)layers\.1\.", r"\1layers.0."),
]


@dataclass(frozen=True, slots=True)
class LibraryAnswer:
    """The image encoder's input (1, 3, side, side), and the mask logits (H, W) with the highest predicted IoU."""

    pixels: torch.Tensor
    logits: torch.Tensor
    iou: float


def library_answer(
    segmenter: SegmentAnything | TransformersSam, image: npt.NDArray[np.uint8], prompt: SamPrompt
) -> LibraryAnswer:
    """Segment with the library's own classes and the segmenter's model, which computes in float32 on the CPU.

    Args:
        segmenter: The segmenter, on the CPU and in float32.
        image: (H, W, 3) uint8 RGB.
        prompt: The prompt, in pixels of the image.
    """
    if isinstance(segmenter, SegmentAnything):
        return _predictor_answer(segmenter.sam, image, prompt)
    return _processor_answer(segmenter, image, prompt)


def _predictor_answer(sam: Any, image: npt.NDArray[np.uint8], prompt: SamPrompt) -> LibraryAnswer:
    from segment_anything import SamPredictor

    predictor = SamPredictor(sam)
    predictor.set_image(image)
    resized = torch.from_numpy(predictor.transform.apply_image(image)).permute(2, 0, 1)[None]
    height, width = image.shape[:2]
    half_xy = np.array([width, height]) / np.array(resized.shape[:1:-1]) / 2
    logits, iou, _ = predictor.predict(
        box=None if prompt.box is None else np.array(prompt.box) - np.tile(half_xy, 2),
        point_coords=_xy(prompt) - half_xy if prompt.points else None,
        point_labels=np.array([point.label for point in prompt.points]) if prompt.points else None,
        multimask_output=True,
        return_logits=True,
    )
    best = int(iou.argmax())
    return LibraryAnswer(sam.preprocess(resized), torch.from_numpy(logits[best]), float(iou[best]))


def _processor_answer(segmenter: TransformersSam, image: npt.NDArray[np.uint8], prompt: SamPrompt) -> LibraryAnswer:
    family, model = segmenter.family, segmenter.model
    side = int(model.prompt_encoder.input_image_size)
    processor = _processor(family, side)
    height, width = image.shape[:2]
    longest = max(width, height)
    resized_wh = np.array([side, side]) if family.frame is SquareFrame else np.array([width, height]) * side / longest
    half_xy = np.array([width, height]) / resized_wh.round() / 2
    prompts: dict[str, Any] = {}
    if prompt.box is not None:
        prompts["input_boxes"] = [[(np.array(prompt.box) - np.tile(half_xy, 2)).tolist()]]
    if prompt.points:
        prompts["input_points"] = [[(_xy(prompt) - half_xy).tolist()]]
        prompts["input_labels"] = [[[point.label for point in prompt.points]]]
    inputs = processor(images=image, return_tensors="pt", **prompts)
    sizes = [inputs.pop(name) for name in ("original_sizes", "reshaped_input_sizes") if name in inputs]
    floats = {name: value.float() if value.is_floating_point() else value for name, value in inputs.items()}
    with torch.inference_mode():
        outputs = model(**floats, multimask_output=True)
    logits = processor.post_process_masks(outputs.pred_masks, *sizes, binarize=False)[0][0]
    best = int(outputs.iou_scores[0, 0].argmax())
    return LibraryAnswer(inputs["pixel_values"], logits[best], float(outputs.iou_scores[0, 0, best]))


def _processor(family: SamFamily, side: int) -> Any:
    """Return the family's own processor with its defaults, for input squares of `side` pixels."""
    import transformers

    processor_class, image_processor_class = (getattr(transformers, name) for name in family.processors)
    square = {"height": side, "width": side}
    if family.frame is SquareFrame:
        return processor_class(image_processor_class(size=square))
    return processor_class(image_processor_class(size={"longest_edge": side}, pad_size=square))


def _xy(prompt: SamPrompt) -> npt.NDArray[np.float64]:
    """Return the points of a prompt as (n, 2) float64, in pixels."""
    return np.array([[point.x, point.y] for point in prompt.points])


def to_sam_model(sam: Any, architecture: SamArchitecture) -> Any:
    """Convert a `segment_anything.modeling.Sam` into transformers' SamModel with the same weights.

    Raises:
        RuntimeError: A weight has no counterpart.
    """
    from transformers import SamConfig, SamModel

    width, size = architecture.prompt_embed_dim, architecture.image_size
    config = SamConfig(
        vision_config={
            "hidden_size": architecture.embed_dim,
            "output_channels": width,
            "num_hidden_layers": architecture.depth,
            "num_attention_heads": architecture.num_heads,
            "image_size": size,
            "patch_size": architecture.patch_size,
            "window_size": architecture.window_size,
            "global_attn_indexes": list(architecture.global_attn_indexes),
            "mlp_dim": int(architecture.embed_dim * architecture.mlp_ratio),
            "num_pos_feats": width // 2,
        },
        prompt_encoder_config={
            "hidden_size": width,
            "image_size": size,
            "patch_size": architecture.patch_size,
            "image_embedding_size": size // architecture.patch_size,
            "mask_input_channels": architecture.mask_in_chans,
        },
        mask_decoder_config={
            "hidden_size": width,
            "num_hidden_layers": architecture.decoder_depth,
            "num_attention_heads": architecture.decoder_heads,
            "mlp_dim": architecture.decoder_mlp_dim,
            "attention_downsample_rate": architecture.attention_downsample_rate,
            "num_multimask_outputs": architecture.num_multimask_outputs,
            "iou_head_depth": architecture.iou_head_depth,
            "iou_head_hidden_dim": architecture.iou_head_hidden_dim,
        },
    )
    model = SamModel(config)
    weights = {
        _sam_model_name(name): weight for name, weight in sam.state_dict().items() if not name.startswith("pixel_")
    }
    shared = weights["prompt_encoder.shared_embedding.positional_embedding"]
    model.load_state_dict(weights | {"shared_image_embedding.positional_embedding": shared})
    return model.eval()


def _sam_model_name(name: str) -> str:
    """Return the name of a weight in transformers' SamModel."""
    for pattern, replacement in _SAM_MODEL_NAMES:
        name = re.sub(pattern, replacement, name)
    return name
