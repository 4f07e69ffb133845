"""The code that a user would write from the libraries' own examples: the baselines of the benchmarks of inference.

Sources: the README and model pages of transformers (processor, `generate`, one conversation at a time) and the README
of segment_anything (`SamPredictor`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from segment_anything import SamPredictor

from sam4mllm.geometry import SamPrompt
from sam4mllm.prompts.conversation import Conversation


def model_inputs_of(model: Any, processor: Any, conversation: Conversation) -> Any:
    """Return the inputs of one conversation, whose image is an array."""
    assert isinstance(conversation.image, np.ndarray), "the benchmarks' images are arrays"
    messages = conversation.messages()
    messages[0]["content"][0] = {"type": "image", "image": Image.fromarray(conversation.image)}
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    return inputs.to(model.device, model.dtype)


def generate_one(model: Any, processor: Any, conversation: Conversation, max_new_tokens: int) -> str:
    """Generate the answer to one conversation greedily."""
    inputs = model_inputs_of(model, processor, conversation)
    with torch.no_grad():
        tokens = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    text: str = processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return text.strip()


def yes_probability(model: Any, processor: Any, conversation: Conversation) -> tuple[float, float]:
    """Return the probabilities of yes and of no as the next word of one conversation."""
    yes, no = (processor.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ("yes", "no"))
    with torch.no_grad():
        logits = model(**model_inputs_of(model, processor, conversation)).logits[0, -1]
    probabilities = logits.float().softmax(dim=-1)
    return float(probabilities[yes]), float(probabilities[no])


def half_pixel_xy(predictor: SamPredictor) -> npt.NDArray[np.float64]:
    """Return half a pixel of SAM's input, in pixels of the image.

    segment_anything takes coordinates as pixel indices, and adds this half after scaling; ours contain it already.
    """
    half_xy: npt.NDArray[np.float64] = 0.5 * np.divide(predictor.original_size, predictor.input_size)[::-1]
    return half_xy


def predict_mask(predictor: SamPredictor, prompt: SamPrompt) -> npt.NDArray[np.bool_]:
    """Return the mask (H, W) with the highest predicted IoU of one prompt, for the image that is set."""
    half_xy = half_pixel_xy(predictor)
    box = None if prompt.box is None else np.array(prompt.box) - np.tile(half_xy, 2)
    points = np.array([[point.x, point.y] for point in prompt.points]) - half_xy if prompt.points else None
    labels = np.array([point.label for point in prompt.points]) if prompt.points else None
    masks, scores, _ = predictor.predict(point_coords=points, point_labels=labels, box=box)
    mask: npt.NDArray[np.bool_] = masks[scores.argmax()]
    return mask
