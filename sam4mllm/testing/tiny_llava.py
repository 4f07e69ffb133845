"""Tiny random models of the LLaVA families and FastVLM."""

from __future__ import annotations

from pathlib import Path

from sam4mllm.testing.tiny_parts import IMAGE_TOKEN, VISION, byte_tokenizer, save, text_sizes
from sam4mllm.testing.tiny_templates import FAST_VLM, LLAVA, LLAVA_NEXT, LLAVA_ONEVISION


def save_fast_vlm(folder: Path, *, seed: int = 0) -> Path:
    """Save a FastVLM (timm ResNet, Qwen2); images are resized to 64 x 64 pixels, 4 tokens."""
    from transformers import (
        CLIPImageProcessor,
        FastVlmConfig,
        FastVlmForConditionalGeneration,
        LlavaProcessor,
        Qwen2Config,
        TimmWrapperConfig,
    )

    tokenizer = byte_tokenizer()
    vision = TimmWrapperConfig(
        architecture="resnet10t",
        do_pooling=False,
        num_features=64,
        hidden_size=64,
        model_args={"channels": [8, 16, 32, 64], "stem_width": 8, "features_only": False},
    )
    config = FastVlmConfig(
        vision_config=vision,
        text_config=Qwen2Config(**text_sizes(tokenizer), tie_word_embeddings=False),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=4,
    )
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}),
        tokenizer=tokenizer,
        patch_size=32,
        vision_feature_select_strategy="full",
        chat_template=FAST_VLM,
    )
    return save(folder, FastVlmForConditionalGeneration, config, processor, seed)


def save_llava(folder: Path, *, seed: int = 0) -> Path:
    """Save a LLaVA (CLIP, Llama); every image is resized to 32 x 32 pixels, 16 tokens."""
    from transformers import CLIPImageProcessor, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    tokenizer = byte_tokenizer("</s>", eos_token="</s>", bos_token="<s>")
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **VISION, "projection_dim": 64},
        text_config={"model_type": "llama", **text_sizes(tokenizer)},
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=16,
        tie_word_embeddings=False,
    )
    size = {"height": 32, "width": 32}
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA,
    )
    return save(folder, LlavaForConditionalGeneration, config, processor, seed)


def save_llava_next(folder: Path, *, seed: int = 0) -> Path:
    """Save a LLaVA-NeXT (CLIP, Llama 3), the paper's; an image is a thumbnail of 32 x 32 pixels and up to 4 tiles."""
    from transformers import (
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessor,
        LlavaNextProcessor,
    )

    names = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>")
    # The end token of the chat template is in neither the tokenizer nor the generation config.
    tokenizer = byte_tokenizer(*names, eos_token="<|end_of_text|>", bos_token="<|begin_of_text|>")
    pinpoints = [[32, 64], [64, 32], [64, 64], [96, 32], [32, 96]]
    config = LlavaNextConfig(
        vision_config={"model_type": "clip_vision_model", **VISION, "projection_dim": 64},
        text_config={"model_type": "llama", **text_sizes(tokenizer)},
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_grid_pinpoints=pinpoints,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    size = {"height": 32, "width": 32}
    processor = LlavaNextProcessor(
        LlavaNextImageProcessor(size={"shortest_edge": 32}, crop_size=size, image_grid_pinpoints=pinpoints),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_NEXT,
    )
    return save(folder, LlavaNextForConditionalGeneration, config, processor, seed)


def save_llava_onevision(folder: Path, *, seed: int = 0) -> Path:
    """Save a LLaVA-OneVision (SigLIP, Qwen2); an image is a thumbnail of 32 x 32 pixels and up to 9 tiles."""
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
    )

    tokenizer = byte_tokenizer("<video>", "<|endoftext|>")
    pinpoints = [[32 * rows, 32 * columns] for rows in range(1, 4) for columns in range(1, 4)]
    config = LlavaOnevisionConfig(
        vision_config={"model_type": "siglip_vision_model", **VISION, "vision_use_head": False},
        text_config={"model_type": "qwen2", **text_sizes(tokenizer)},
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=pinpoints,
    )
    size = {"height": 32, "width": 32}
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=pinpoints),
        tokenizer,
        LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=LLAVA_ONEVISION,
    )
    return save(
        folder, LlavaOnevisionForConditionalGeneration, config, processor, seed, ("<|im_end|>", "<|endoftext|>")
    )
