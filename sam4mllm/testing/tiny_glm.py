"""Tiny random models of the GLM-V families, whose processors keep the aspect ratio of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sam4mllm.testing.tiny_parts import byte_tokenizer, save, text_sizes
from sam4mllm.testing.tiny_templates import GLM4V, GLM46V

_TOKENS = {
    "image_token": "<|image|>",
    "video_token": "<|video|>",
}
_BRACKETS = (
    "<|begin_of_image|>",
    "<|end_of_image|>",
    "<|begin_of_video|>",
    "<|end_of_video|>",
    "<|begin_of_box|>",
    "<|end_of_box|>",
)
_ENDS = ("<|endoftext|>", "<|user|>", "<|observation|>")
_PATCH = 8


def save_glm4v(folder: Path, *, seed: int = 0) -> Path:
    """Save a GLM-4.1V; images have 1 to 16 tokens of 2 x 2 patches each."""
    from transformers import Glm4vConfig, Glm4vForConditionalGeneration, Glm4vImageProcessor, Glm4vProcessor
    from transformers.models.glm4v.video_processing_glm4v import Glm4vVideoProcessor

    tokenizer = _tokenizer()
    config = Glm4vConfig(text_config=_text(tokenizer), vision_config=_vision(), **_ids(tokenizer))
    processor = _processor(Glm4vProcessor, Glm4vImageProcessor, Glm4vVideoProcessor, tokenizer, GLM4V)
    return save(folder, Glm4vForConditionalGeneration, config, processor, seed, _ENDS)


def save_glm4v_moe(folder: Path, *, seed: int = 0) -> Path:
    """Save a GLM-4.5V: a dense layer, and one with 4 experts of which each token uses 2, and a shared one."""
    from transformers import Glm4vImageProcessor, Glm4vMoeConfig, Glm4vMoeForConditionalGeneration, Glm4vProcessor
    from transformers.models.glm4v.video_processing_glm4v import Glm4vVideoProcessor

    tokenizer = _tokenizer()
    experts = {
        "moe_intermediate_size": 64,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
    }
    text = {**_text(tokenizer), "head_dim": 32, **experts}
    config = Glm4vMoeConfig(text_config=text, vision_config=_vision(), **_ids(tokenizer))
    processor = _processor(Glm4vProcessor, Glm4vImageProcessor, Glm4vVideoProcessor, tokenizer, GLM46V)
    return save(folder, Glm4vMoeForConditionalGeneration, config, processor, seed, _ENDS)


def save_glm46v(folder: Path, *, seed: int = 0) -> Path:
    """Save a GLM-4.6V, which has the layers of GLM-4.1V and a processor of its own."""
    from transformers import Glm46VConfig, Glm46VForConditionalGeneration, Glm46VImageProcessor, Glm46VProcessor
    from transformers.models.glm46v.video_processing_glm46v import Glm46VVideoProcessor

    tokenizer = _tokenizer()
    config = Glm46VConfig(
        text_config={"model_type": "glm4v_text", **_text(tokenizer)},
        vision_config={"model_type": "glm4v_vision", **_vision()},
        **_ids(tokenizer),
    )
    processor = _processor(Glm46VProcessor, Glm46VImageProcessor, Glm46VVideoProcessor, tokenizer, GLM46V)
    return save(folder, Glm46VForConditionalGeneration, config, processor, seed, _ENDS)


def _tokenizer() -> Any:
    names = ("[gMASK]", "<sop>", "<|system|>", "<|assistant|>", *_ENDS)
    return byte_tokenizer(*_BRACKETS, *names, named=_TOKENS, eos_token=_ENDS[0], plain=("<think>", "</think>"))


def _text(tokenizer: Any) -> dict[str, Any]:
    rope = {
        "rope_type": "default",
        "mrope_section": [4, 6, 6],
        "rope_theta": 10000.0,
        "partial_rotary_factor": 1.0,
    }
    return {**text_sizes(tokenizer), "rope_parameters": rope}


def _vision() -> dict[str, Any]:
    return {
        "depth": 1,
        "hidden_size": 64,
        "num_heads": 2,
        "intermediate_size": 128,
        "out_hidden_size": 64,
        "image_size": 64,
        "patch_size": _PATCH,
    }


def _ids(tokenizer: Any) -> dict[str, int]:
    names = {
        "image_token_id": "<|image|>",
        "video_token_id": "<|video|>",
        "image_start_token_id": "<|begin_of_image|>",
        "image_end_token_id": "<|end_of_image|>",
        "video_start_token_id": "<|begin_of_video|>",
        "video_end_token_id": "<|end_of_video|>",
    }
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}


def _processor(processor_class: Any, image_class: Any, video_class: Any, tokenizer: Any, chat_template: str) -> Any:
    """Return a processor; the bounds of its area count an image as two frames."""
    token_area = (2 * _PATCH) ** 2
    settings = {"patch_size": _PATCH, "size": {"shortest_edge": 2 * token_area, "longest_edge": 2 * 16 * token_area}}
    return processor_class(
        image_processor=image_class(**settings),
        tokenizer=tokenizer,
        video_processor=video_class(**settings),
        chat_template=chat_template,
    )
