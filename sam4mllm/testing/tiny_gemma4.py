"""Tiny random models of the Gemma 4 families, whose processors resize images to the area of a number of tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sam4mllm.testing.tiny_parts import byte_tokenizer, save, text_sizes
from sam4mllm.testing.tiny_templates import gemma4

_TOKENS = {
    "image_token": "<|image|>",
    "boi_token": "<|image>",
    "eoi_token": "<image|>",
    "audio_token": "<|audio|>",
    "boa_token": "<|audio>",
    "eoa_token": "<audio|>",
}
_ENDS = ("<eos>", "<|tool_response>", "<turn|>")
# A token is 2 x 2 patches of 2 x 2 pixels, and an image has up to 140 tokens.
_IMAGES = {"patch_size": 2, "pooling_kernel_size": 2, "max_soft_tokens": 140}


def save_gemma4(folder: Path, *, seed: int = 0) -> Path:
    """Save a Gemma 4 with a vision tower and an audio tower, of which only the former is used."""
    from transformers import Gemma4Config, Gemma4ForConditionalGeneration, Gemma4ImageProcessor, Gemma4Processor
    from transformers.models.gemma4.feature_extraction_gemma4 import Gemma4AudioFeatureExtractor
    from transformers.models.gemma4.video_processing_gemma4 import Gemma4VideoProcessor

    tokenizer = _tokenizer()
    vision = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "patch_size": 2,
        "pooling_kernel_size": 2,
        "position_embedding_size": 560,
    }
    audio = {
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "subsampling_conv_channels": [8, 4],
        "output_proj_dims": 64,
    }
    text = {
        **_text(tokenizer),
        "vocab_size_per_layer_input": len(tokenizer),
        "hidden_size_per_layer_input": 64,
    }
    config = Gemma4Config(text_config=text, vision_config=vision, audio_config=audio, **_ids(tokenizer))
    processor = Gemma4Processor(
        Gemma4AudioFeatureExtractor(),
        Gemma4ImageProcessor(**_IMAGES),
        tokenizer,
        Gemma4VideoProcessor(patch_size=2, pooling_kernel_size=2),
        chat_template=gemma4(closes_thought=False),
    )
    return save(folder, Gemma4ForConditionalGeneration, config, processor, seed, _ENDS)


def save_gemma4_unified(folder: Path, *, seed: int = 0) -> Path:
    """Save a Gemma 4 without towers, whose language model reads projected patches and audio frames."""
    from transformers import (
        Gemma4UnifiedConfig,
        Gemma4UnifiedForConditionalGeneration,
        Gemma4UnifiedImageProcessor,
        Gemma4UnifiedProcessor,
    )
    from transformers.models.gemma4_unified.feature_extraction_gemma4_unified import (
        Gemma4UnifiedAudioFeatureExtractor,
    )
    from transformers.models.gemma4_unified.video_processing_gemma4_unified import Gemma4UnifiedVideoProcessor

    tokenizer = _tokenizer()
    vision = {
        "patch_size": 2,
        "pooling_kernel_size": 2,
        "mm_embed_dim": 64,
        "mm_posemb_size": 140,
        "output_proj_dims": 64,
    }
    config = Gemma4UnifiedConfig(
        text_config=_text(tokenizer),
        vision_config=vision,
        audio_config={"audio_embed_dim": 64},
        **_ids(tokenizer),
    )
    processor = Gemma4UnifiedProcessor(
        Gemma4UnifiedAudioFeatureExtractor(),
        Gemma4UnifiedImageProcessor(**_IMAGES),
        tokenizer,
        Gemma4UnifiedVideoProcessor(patch_size=2, pooling_kernel_size=2),
        chat_template=gemma4(closes_thought=True),
    )
    return save(folder, Gemma4UnifiedForConditionalGeneration, config, processor, seed, _ENDS)


def _tokenizer() -> Any:
    names = ("<|video|>", "<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|think|>", "<|tool_response>", "<eos>")
    return byte_tokenizer(*names, named=_TOKENS, eos_token="<eos>", bos_token="<bos>")


def _text(tokenizer: Any) -> dict[str, Any]:
    return {
        **text_sizes(tokenizer),
        "head_dim": 32,
        "global_head_dim": 32,
        "sliding_window": 64,
        "layer_types": ["sliding_attention", "full_attention"],
    }


def _ids(tokenizer: Any) -> dict[str, int]:
    names = {
        "image_token_id": "<|image|>",
        "boi_token_id": "<|image>",
        "eoi_token_id": "<image|>",
        "audio_token_id": "<|audio|>",
        "boa_token_id": "<|audio>",
        "eoa_token_index": "<audio|>",
        "video_token_id": "<|video|>",
    }
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}
