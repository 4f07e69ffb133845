"""Tiny random models of families whose processors split images into tiles: LFM2-VL, Molmo2 and MiniCPM-V 4.6."""

from __future__ import annotations

from pathlib import Path

from sam4mllm.testing.tiny_parts import VISION, byte_tokenizer, save, text_sizes
from sam4mllm.testing.tiny_templates import LFM2_VL, chat_ml, chat_ml_with_thinking


def save_lfm2_vl(folder: Path, *, seed: int = 0) -> Path:
    """Save an LFM2-VL (SigLIP 2, a convolution and attention); tiles are 32 x 32 pixels, 4 tokens each."""
    from transformers import Lfm2VlConfig, Lfm2VlForConditionalGeneration, Lfm2VlImageProcessor, Lfm2VlProcessor

    cells = [f"<|img_row_{row + 1}_col_{column + 1}|>" for row in range(4) for column in range(4)]
    names = {
        "image_token": "<image>",
        "image_start_token": "<|image_start|>",
        "image_end_token": "<|image_end|>",
        "image_thumbnail_token": "<|img_thumbnail|>",
    }
    tokenizer = byte_tokenizer(*cells, named=names, bos_token="<|startoftext|>")
    text = {
        **text_sizes(tokenizer),
        "model_type": "lfm2",
        "layer_types": ["conv", "full_attention"],
        "block_auto_adjust_ff_dim": False,
    }
    vision = {
        "model_type": "siglip2_vision_model",
        **{name: value for name, value in VISION.items() if name != "image_size"},
        "num_patches": 16,
        "vision_use_head": False,
    }
    config = Lfm2VlConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        projector_hidden_size=64,
    )
    images = Lfm2VlImageProcessor(
        encoder_patch_size=8,
        tile_size=32,
        min_image_tokens=1,
        max_image_tokens=4,
        max_tiles=4,
        size={"height": 32, "width": 32},
    )
    processor = Lfm2VlProcessor(images, tokenizer, chat_template=LFM2_VL)
    return save(folder, Lfm2VlForConditionalGeneration, config, processor, seed)


def save_molmo2(folder: Path, *, seed: int = 0) -> Path:
    """Save a Molmo2; an image is a thumbnail and up to 4 overlapping crops of 32 x 32 pixels."""
    from transformers import Molmo2Config, Molmo2ForConditionalGeneration, Molmo2ImageProcessor, Molmo2Processor
    from transformers.models.molmo2.video_processing_molmo2 import Molmo2VideoProcessor

    names = ("<im_start>", "<im_end>", "<im_patch>", "<im_col>", "<low_res_im_start>", "<im_low>")
    frames = ("<frame_start>", "<frame_end>", "<|video|>")
    tokenizer = byte_tokenizer(*names, *frames, named={"image_token": "<|image|>"})
    ids = {
        "image_start_token_id": "<im_start>",
        "low_res_image_start_token_id": "<low_res_im_start>",
        "image_end_token_id": "<im_end>",
        "image_patch_id": "<im_patch>",
        "frame_start_token_id": "<frame_start>",
        "frame_end_token_id": "<frame_end>",
    }
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32}
    vision = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, **heads}
    adapter = {"hidden_size": 64, "intermediate_size": 128, "text_hidden_size": 64, **heads}
    text = {**text_sizes(tokenizer), "head_dim": 32, "additional_vocab_size": 0}
    config = Molmo2Config(
        text_config={name: value for name, value in text.items() if name != "bos_token_id"},
        vision_config={**vision, "image_size": [32, 32], "patch_size": 4},
        adapter_config={**adapter, "vision_feature_layer": [1, 0]},
        initializer_range=0.1,
        **{name: tokenizer.convert_tokens_to_ids(token) for name, token in ids.items()},
    )
    sizes = {"size": {"height": 32, "width": 32}, "patch_size": 4}
    processor = Molmo2Processor(
        Molmo2ImageProcessor(**sizes, max_crops=4, overlap_margins=[1, 1], pooling_size=[2, 2]),
        Molmo2VideoProcessor(**sizes),
        tokenizer,
        chat_template=chat_ml("<|image|>"),
    )
    return save(folder, Molmo2ForConditionalGeneration, config, processor, seed)


def save_minicpmv4_6(folder: Path, *, seed: int = 0) -> Path:
    """Save a MiniCPM-V 4.6 (Qwen3.5's language model); an image is an overview and up to 4 slices of about 32 x 32."""
    from transformers import (
        MiniCPMV4_6Config,
        MiniCPMV4_6ForConditionalGeneration,
        MiniCPMV4_6ImageProcessor,
        MiniCPMV4_6Processor,
    )
    from transformers.models.minicpmv4_6.video_processing_minicpmv4_6 import MiniCPMV4_6VideoProcessor

    names = {
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "image_start_token": "<image>",
        "image_end_token": "</image>",
        "slice_start_token": "<slice>",
        "slice_end_token": "</slice>",
        "image_id_start_token": "<image_id>",
        "image_id_end_token": "</image_id>",
    }
    tokenizer = byte_tokenizer("<|endoftext|>", named=names, plain=("<think>", "</think>"))
    text = {
        **text_sizes(tokenizer),
        "model_type": "qwen3_5_text",
        "head_dim": 32,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_key_head_dim": 4,
        "linear_value_head_dim": 4,
        "linear_num_key_heads": 32,
        "linear_num_value_heads": 32,
    }
    vision = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 4,
    }
    config = MiniCPMV4_6Config(
        text_config=text,
        vision_config=vision,
        insert_layer_id=0,
        image_size=32,
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
    )
    slices = {"scale_resolution": 32, "patch_size": 4}
    processor = MiniCPMV4_6Processor(
        MiniCPMV4_6ImageProcessor(**slices, max_slice_nums=4),
        MiniCPMV4_6VideoProcessor(**slices),
        tokenizer,
        chat_template=chat_ml_with_thinking("<|image_pad|>\n", thinks=False),
    )
    return save(folder, MiniCPMV4_6ForConditionalGeneration, config, processor, seed, ("<|im_end|>", "<|endoftext|>"))
