"""What the libraries themselves make of an image and a prompt, through their own processors: to compare ours with.

Both libraries add half a pixel of their input square to a coordinate, because they take it for a whole pixel number.
Ours are continuous, so the half is taken off before they are asked. This module compares nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sam4mllm.geometry import SamPrompt
from sam4mllm.segmenters.segment_anything import SegmentAnything
from sam4mllm.segmenters.transformers_sam import TransformersSam

_PROCESSORS = {
    "sam": ("SamProcessor", "SamImageProcessor"),
    "sam_hq": ("SamHQProcessor", "SamImageProcessor"),
    "sam2": ("Sam2Processor", "Sam2ImageProcessor"),
    "sam3_tracker": ("Sam3TrackerProcessor", "Sam3ImageProcessor"),
    "edgetam": ("Sam2Processor", "Sam2ImageProcessor"),
}
_LONGEST_SIDE = ("sam", "sam_hq")


@dataclass(frozen=True, slots=True)
class LibraryAnswer:
    """What the image encoder saw, (1, 3, side, side); the mask of the highest predicted IoU, (H, W), and that IoU."""

    pixels: torch.Tensor
    logits: torch.Tensor
    iou: float


def library_answer(
    segmenter: SegmentAnything | TransformersSam, image: npt.NDArray[np.uint8], prompt: SamPrompt
) -> LibraryAnswer:
    """The answer of the library's own classes with the segmenter's model, which computes in float32 on the CPU."""
    if isinstance(segmenter, SegmentAnything):
        return _of_predictor(segmenter.sam, image, prompt)
    return _of_processor(segmenter, image, prompt)


def _of_predictor(sam: Any, image: npt.NDArray[np.uint8], prompt: SamPrompt) -> LibraryAnswer:
    from segment_anything import SamPredictor

    predictor = SamPredictor(sam)
    predictor.set_image(image)
    seen = torch.from_numpy(predictor.transform.apply_image(image)).permute(2, 0, 1)[None]
    height, width = image.shape[:2]
    half_xy = np.array([width, height]) / np.array(seen.shape[:1:-1]) / 2
    logits, iou, _ = predictor.predict(
        box=None if prompt.box is None else np.array(prompt.box) - np.tile(half_xy, 2),
        point_coords=_xy(prompt) - half_xy if prompt.points else None,
        point_labels=np.array([point.label for point in prompt.points]) if prompt.points else None,
        multimask_output=True,
        return_logits=True,
    )
    best = int(iou.argmax())
    return LibraryAnswer(sam.preprocess(seen), torch.from_numpy(logits[best]), float(iou[best]))


def _of_processor(segmenter: TransformersSam, image: npt.NDArray[np.uint8], prompt: SamPrompt) -> LibraryAnswer:
    family, model = segmenter.family.name, segmenter.model
    side = int(model.prompt_encoder.input_image_size)
    processor = _processor(family, side)
    height, width = image.shape[:2]
    longest = max(width, height)
    resized_wh = np.array([width, height]) * side / longest if family in _LONGEST_SIDE else np.array([side, side])
    half_xy = np.array([width, height]) / resized_wh.round() / 2
    asked: dict[str, Any] = {}
    if prompt.box is not None:
        asked["input_boxes"] = [[(np.array(prompt.box) - np.tile(half_xy, 2)).tolist()]]
    if prompt.points:
        asked["input_points"] = [[(_xy(prompt) - half_xy).tolist()]]
        asked["input_labels"] = [[[point.label for point in prompt.points]]]
    inputs = processor(images=image, return_tensors="pt", **asked)
    sizes = [inputs.pop(name) for name in ("original_sizes", "reshaped_input_sizes") if name in inputs]
    floats = {name: value.float() if value.is_floating_point() else value for name, value in inputs.items()}
    with torch.inference_mode():
        found = model(**floats, multimask_output=True)
    logits = processor.post_process_masks(found.pred_masks, *sizes, binarize=False)[0][0]
    best = int(found.iou_scores[0, 0].argmax())
    return LibraryAnswer(inputs["pixel_values"], logits[best], float(found.iou_scores[0, 0, best]))


def _processor(family: str, side: int) -> Any:
    """The family's own processor with its defaults, for images of `side` pixels."""
    import transformers

    processor_class, image_processor_class = (getattr(transformers, name) for name in _PROCESSORS[family])
    square = {"height": side, "width": side}
    if family in _LONGEST_SIDE:
        return processor_class(image_processor_class(size={"longest_edge": side}, pad_size=square))
    return processor_class(image_processor_class(size=square))


def _xy(prompt: SamPrompt) -> npt.NDArray[np.float64]:
    return np.array([[point.x, point.y] for point in prompt.points])
