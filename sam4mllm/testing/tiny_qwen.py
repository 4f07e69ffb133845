"""Tiny random models of the Qwen families, whose processors keep the aspect ratio of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sam4mllm.testing.tiny_parts import byte_tokenizer, save, text_sizes
from sam4mllm.testing.tiny_templates import QWEN2_VL, chat_ml, chat_ml_with_thinking

QWEN_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
_QWEN_ENDS = ("<|im_end|>", "<|endoftext|>")
_QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
_EXPERTS = {"moe_intermediate_size": 64, "num_experts": 4, "num_experts_per_tok": 2}


def save_qwen2_vl(folder: Path, *, seed: int = 0) -> Path:
    """Save a Qwen2-VL; images keep their aspect ratio, so the number of their tokens differs."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor

    tokenizer = _qwen_tokenizer()
    vision = {"depth": 1, "embed_dim": 64, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14}
    config = Qwen2VLConfig(text_config=_qwen_text(tokenizer), vision_config=vision, **_qwen_ids(tokenizer))
    processor = _qwen_processor(Qwen2VLProcessor, tokenizer, 14, QWEN2_VL)
    return save(folder, Qwen2VLForConditionalGeneration, config, processor, seed, _QWEN_ENDS)


def save_qwen2_5_vl(folder: Path, *, seed: int = 0) -> Path:
    """Save a Qwen2.5-VL whose vision tower has a block of window attention and a block of full attention."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

    tokenizer = _qwen_tokenizer()
    vision = {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 2,
        "out_hidden_size": 64,
        "window_size": 56,
        "fullatt_block_indexes": [1],
    }
    config = Qwen2_5_VLConfig(text_config=_qwen_text(tokenizer), vision_config=vision, **_qwen_ids(tokenizer))
    processor = _qwen_processor(Qwen2_5_VLProcessor, tokenizer, 14, QWEN2_VL)
    return save(folder, Qwen2_5_VLForConditionalGeneration, config, processor, seed, _QWEN_ENDS)


def save_qwen3_vl(folder: Path, *, seed: int = 0) -> Path:
    """Save a Qwen3-VL; deepstack adds its vision tower's first layer to the language model's first layer."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor

    tokenizer = _qwen_tokenizer()
    config = Qwen3VLConfig(
        text_config={**_qwen_text(tokenizer), "head_dim": 32},
        vision_config={**_qwen3_vision(), "deepstack_visual_indexes": [0]},
        **_qwen_ids(tokenizer),
    )
    processor = _qwen_processor(Qwen3VLProcessor, tokenizer, 16, chat_ml(_QWEN_IMAGE))
    return save(folder, Qwen3VLForConditionalGeneration, config, processor, seed, _QWEN_ENDS)


def save_qwen3_vl_moe(folder: Path, *, seed: int = 0) -> Path:
    """Save a mixture of experts of Qwen3-VL, with 4 experts of which each token uses 2."""
    from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration, Qwen3VLProcessor

    tokenizer = _qwen_tokenizer()
    config = Qwen3VLMoeConfig(
        text_config={**_qwen_text(tokenizer), "head_dim": 32, **_EXPERTS},
        vision_config={**_qwen3_vision(), "deepstack_visual_indexes": [0]},
        **_qwen_ids(tokenizer),
    )
    processor = _qwen_processor(Qwen3VLProcessor, tokenizer, 16, chat_ml(_QWEN_IMAGE))
    return save(folder, Qwen3VLMoeForConditionalGeneration, config, processor, seed, _QWEN_ENDS)


def save_qwen3_5(folder: Path, *, seed: int = 0) -> Path:
    """Save a Qwen3.5 whose language model has a layer of linear attention and a layer of full attention."""
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration, Qwen3VLProcessor

    tokenizer = _qwen_tokenizer()
    config = Qwen3_5Config(text_config=_qwen3_5_text(tokenizer), vision_config=_qwen3_vision(), **_qwen_ids(tokenizer))
    processor = _qwen_processor(Qwen3VLProcessor, tokenizer, 16, chat_ml_with_thinking(_QWEN_IMAGE, thinks=True))
    return save(folder, Qwen3_5ForConditionalGeneration, config, processor, seed, _QWEN_ENDS)


def save_qwen3_5_moe(folder: Path, *, seed: int = 0) -> Path:
    """Save a mixture of experts of Qwen3.5, with 4 experts of which each token uses 2, and a shared one."""
    from transformers import Qwen3_5MoeConfig, Qwen3_5MoeForConditionalGeneration, Qwen3VLProcessor

    tokenizer = _qwen_tokenizer()
    text = {**_qwen3_5_text(tokenizer), **_EXPERTS, "shared_expert_intermediate_size": 64}
    config = Qwen3_5MoeConfig(text_config=text, vision_config=_qwen3_vision(), **_qwen_ids(tokenizer))
    processor = _qwen_processor(Qwen3VLProcessor, tokenizer, 16, chat_ml_with_thinking(_QWEN_IMAGE, thinks=True))
    return save(folder, Qwen3_5MoeForConditionalGeneration, config, processor, seed, _QWEN_ENDS)


def _qwen_tokenizer() -> Any:
    return byte_tokenizer("<|endoftext|>", *QWEN_TOKENS, plain=("<think>", "</think>"))


def _qwen3_5_text(tokenizer: Any) -> dict[str, Any]:
    text = {
        **_qwen_text(tokenizer),
        "head_dim": 32,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_key_head_dim": 4,
        "linear_value_head_dim": 4,
        "linear_num_key_heads": 32,
        "linear_num_value_heads": 32,
    }
    text["rope_parameters"] = {**text["rope_parameters"], "partial_rotary_factor": 1.0}
    return text


def _qwen_text(tokenizer: Any) -> dict[str, Any]:
    rope = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0}
    return {**text_sizes(tokenizer), "rope_parameters": rope}


def _qwen_ids(tokenizer: Any) -> dict[str, int]:
    names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    return dict(zip(names, tokenizer.convert_tokens_to_ids(list(QWEN_TOKENS)), strict=True))


def _qwen3_vision() -> dict[str, Any]:
    return {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 2,
        "out_hidden_size": 64,
        "num_position_embeddings": 16,
    }


def _qwen_processor(processor_class: Any, tokenizer: Any, patch_size: int, chat_template: str) -> Any:
    """Return a processor whose images have 1 to 16 tokens of 2 x 2 patches each."""
    from transformers import Qwen2VLImageProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    token_area = (2 * patch_size) ** 2
    settings = {"patch_size": patch_size, "size": {"shortest_edge": token_area, "longest_edge": 16 * token_area}}
    video_class = Qwen3VLVideoProcessor if patch_size == 16 else Qwen2VLVideoProcessor
    return processor_class(
        image_processor=Qwen2VLImageProcessor(**settings),
        tokenizer=tokenizer,
        video_processor=video_class(**settings),
        chat_template=chat_template,
    )
