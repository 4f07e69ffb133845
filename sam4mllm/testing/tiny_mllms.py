"""Tiny random MLLMs of transformers' real classes, saved as real checkpoints with real processors.

The processing of images and conversations does not depend on the size of the layers, so a family's code is tested on a
model with some hundred thousand weights within seconds. The tokenizer has a token for each byte.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sam4mllm.testing.tiny_gemma4 import save_gemma4, save_gemma4_unified
from sam4mllm.testing.tiny_glm import save_glm4v, save_glm4v_moe, save_glm46v
from sam4mllm.testing.tiny_llava import save_fast_vlm, save_llava, save_llava_next, save_llava_onevision
from sam4mllm.testing.tiny_parts import IMAGE_TOKEN, VISION, byte_tokenizer, save, text_sizes
from sam4mllm.testing.tiny_qwen import (
    save_qwen2_5_vl,
    save_qwen2_vl,
    save_qwen3_5,
    save_qwen3_5_moe,
    save_qwen3_vl,
    save_qwen3_vl_moe,
)
from sam4mllm.testing.tiny_templates import GEMMA3, IDEFICS3, SMOLVLM, chat_ml
from sam4mllm.testing.tiny_tiled import save_lfm2_vl, save_minicpmv4_6, save_molmo2


def save_internvl(folder: Path, *, seed: int = 0) -> Path:
    """Save an InternVL; an image is a thumbnail and up to 4 tiles of 32 x 32 pixels, 4 tokens each."""
    from transformers import (
        GotOcr2ImageProcessor,
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLProcessor,
        InternVLVideoProcessor,
    )

    tokenizer = byte_tokenizer(
        "<ref>",
        "</ref>",
        "<box>",
        "</box>",
        named={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    )
    config = InternVLConfig(
        vision_config={**VISION, "image_size": [32, 32], "patch_size": [8, 8]},
        text_config={"model_type": "qwen2", **text_sizes(tokenizer)},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    size = {"height": 32, "width": 32}
    processor = InternVLProcessor(
        GotOcr2ImageProcessor(size=size, min_patches=1, max_patches=4),
        tokenizer,
        InternVLVideoProcessor(size=size),
        image_seq_length=4,
        chat_template=chat_ml("<IMG_CONTEXT>\n"),
    )
    return save(folder, InternVLForConditionalGeneration, config, processor, seed)


def save_smolvlm(folder: Path, *, seed: int = 0) -> Path:
    """Save a SmolVLM (SigLIP, Llama); images are resized to a longest side of 64 and split into tiles of 32 x 32."""
    from transformers import (
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    tokenizer = _split_image_tokenizer()
    config = SmolVLMConfig(**_split_image_config(tokenizer))
    sizes = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}
    processor = SmolVLMProcessor(
        SmolVLMImageProcessor(**sizes),
        tokenizer,
        SmolVLMVideoProcessor(**sizes),
        image_seq_len=4,
        chat_template=SMOLVLM,
    )
    return save(folder, SmolVLMForConditionalGeneration, config, processor, seed)


def save_idefics3(folder: Path, *, seed: int = 0) -> Path:
    """Save an Idefics3 (SigLIP, Llama); images are resized to a longest side of 64 and split into tiles of 32 x 32."""
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3ImageProcessor,
        Idefics3Processor,
    )

    # Llama 3's tokenizer.
    ends = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>", "<end_of_utterance>")
    tokenizer = _split_image_tokenizer(*ends[:3], eos_token=ends[0], bos_token="<|begin_of_text|>")
    config = Idefics3Config(**_split_image_config(tokenizer))
    processor = Idefics3Processor(
        Idefics3ImageProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32}),
        tokenizer,
        image_seq_len=4,
        chat_template=IDEFICS3,
    )
    return save(folder, Idefics3ForConditionalGeneration, config, processor, seed, ends)


def save_gemma3(folder: Path, *, seed: int = 1) -> Path:
    """Save a Gemma 3 (SigLIP); every image is resized to 32 x 32 pixels, 4 tokens that attend to each other.

    The default is not seed 0, with which the model gives every question the same answer, so that wrong batches would
    pass unnoticed.
    """
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3ImageProcessor, Gemma3Processor

    names = {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    }
    tokenizer = byte_tokenizer(
        "<eos>", "<start_of_turn>", "<end_of_turn>", named=names, eos_token="<eos>", bos_token="<bos>"
    )
    text = {
        **text_sizes(tokenizer),
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "sliding_window": 64,
        "layer_types": ["sliding_attention", "full_attention"],
    }
    ids = {f"{name}_index": tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}
    config = Gemma3Config(
        text_config=text, vision_config={**VISION, "vision_use_head": False}, mm_tokens_per_image=4, **ids
    )
    processor = Gemma3Processor(
        Gemma3ImageProcessor(size={"height": 32, "width": 32}),
        tokenizer,
        chat_template=GEMMA3,
        image_seq_length=4,
    )
    return save(folder, Gemma3ForConditionalGeneration, config, processor, seed, ("<eos>", "<end_of_turn>"))


TINY_MLLMS: Mapping[str, Callable[..., Path]] = MappingProxyType(
    {
        "qwen2_5_vl": save_qwen2_5_vl,
        "qwen3_vl": save_qwen3_vl,
        "qwen3_vl_moe": save_qwen3_vl_moe,
        "qwen3_5": save_qwen3_5,
        "qwen3_5_moe": save_qwen3_5_moe,
        "qwen2_vl": save_qwen2_vl,
        "internvl": save_internvl,
        "llava_next": save_llava_next,
        "llava_onevision": save_llava_onevision,
        "llava": save_llava,
        "smolvlm": save_smolvlm,
        "idefics3": save_idefics3,
        "gemma3": save_gemma3,
        "fast_vlm": save_fast_vlm,
        "gemma4": save_gemma4,
        "gemma4_unified": save_gemma4_unified,
        "glm4v": save_glm4v,
        "glm4v_moe": save_glm4v_moe,
        "glm46v": save_glm46v,
        "lfm2_vl": save_lfm2_vl,
        "molmo2": save_molmo2,
        "minicpmv4_6": save_minicpmv4_6,
    }
)
"""The function that saves a tiny model, by model type."""


def save_tiny_mllm(model_type: str, folder: Path, *, seed: int | None = None) -> Path:
    """Save a tiny random MLLM with its processor and return the folder.

    Args:
        model_type: A key of `TINY_MLLMS`, which are transformers' `model_type`s ("qwen3_vl", "internvl", ...).
        folder: The folder that the checkpoint is saved to.
        seed: The seed of the weights; None for the family's default.

    Raises:
        KeyError: There is no tiny model of this type.
    """
    save_model = TINY_MLLMS[model_type]
    return save_model(folder) if seed is None else save_model(folder, seed=seed)


def _split_image_tokenizer(*extra: str, eos_token: str = "<end_of_utterance>", bos_token: str | None = None) -> Any:
    cells = [f"<row_{row + 1}_col_{column + 1}>" for row in range(6) for column in range(6)]
    names = ("<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<video>", *cells, *extra)
    return byte_tokenizer(*names, eos_token=eos_token, bos_token=bos_token)


def _split_image_config(tokenizer: Any) -> dict[str, Any]:
    return {
        "vision_config": VISION,
        "text_config": {"model_type": "llama", **text_sizes(tokenizer)},
        "image_token_id": tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        "scale_factor": 2,
        "pad_token_id": tokenizer.pad_token_id,
    }
