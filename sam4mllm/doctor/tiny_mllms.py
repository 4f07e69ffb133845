"""Tiny random MLLMs of transformers' real classes, with real processors and a tokenizer of bytes, saved as real ones.

What a family's code does with a picture and a conversation does not depend on the size of its layers, so a model of
some hundred thousand weights shows it within seconds. This module knows no check.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'][0]['text'] }}<|im_end|>{% endgeneration %}\n"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
IMAGE_TOKEN = "<image>"
QWEN_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
_QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
_VISION = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 8,
    "image_size": 32,
}


def chat_template(image: str = IMAGE_TOKEN, generation: bool = True) -> str:
    """ChatML with `image` where the picture stands; with `generation` it marks the assistant's words."""
    template = CHAT_TEMPLATE.replace("IMAGE", image)
    return template if generation else template.replace("{% generation %}", "").replace("{% endgeneration %}", "")


def byte_tokenizer(*extra: str, named: dict[str, str] | None = None) -> Any:
    """One token a byte, the special tokens behind them; `named` gives some a name, as a processor may ask for."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = dict(named or {})
    tokenizer.add_special_tokens(["<|pad|>", "<|im_start|>", "<|im_end|>", IMAGE_TOKEN, *extra, *names.values()])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|im_end|>", extra_special_tokens=names
    )


def save_fast_vlm(folder: Path, *, generation: bool = True, seed: int = 0) -> Path:
    """FastVLM (timm ResNet, Qwen2 language model); pictures become 64 x 64, 4 tokens."""
    from transformers import (
        FastVlmConfig,
        FastVlmForConditionalGeneration,
        LlavaImageProcessor,
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
        text_config=Qwen2Config(**_text(tokenizer), tie_word_embeddings=False),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=4,
    )
    processor = LlavaProcessor(
        image_processor=LlavaImageProcessor(
            size={"height": 64, "width": 64}, crop_size={"height": 64, "width": 64}, do_center_crop=False
        ),
        tokenizer=tokenizer,
        patch_size=32,
        vision_feature_select_strategy="full",
        chat_template=chat_template(generation=generation),
    )
    return _save(folder, FastVlmForConditionalGeneration, config, processor, seed)


def save_qwen2_vl(folder: Path, *, seed: int = 0) -> Path:
    """Qwen2-VL: pictures keep their shape, so the number of their tokens differs."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor

    tokenizer = byte_tokenizer(*QWEN_TOKENS)
    vision = {"depth": 1, "embed_dim": 64, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14}
    config = Qwen2VLConfig(text_config=_qwen_text(tokenizer), vision_config=vision, **_qwen_ids(tokenizer))
    processor = _qwen_processor(Qwen2VLProcessor, tokenizer, patch_size=14)
    return _save(folder, Qwen2VLForConditionalGeneration, config, processor, seed)


def save_qwen2_5_vl(folder: Path, *, seed: int = 0) -> Path:
    """Qwen2.5-VL, with one block of its tower that sees windows and one that sees all."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

    tokenizer = byte_tokenizer(*QWEN_TOKENS)
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
    processor = _qwen_processor(Qwen2_5_VLProcessor, tokenizer, patch_size=14)
    return _save(folder, Qwen2_5_VLForConditionalGeneration, config, processor, seed)


def save_qwen3_vl(folder: Path, *, seed: int = 0) -> Path:
    """Qwen3-VL, the first layer of its tower going into the first layer of the language model as well."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor

    tokenizer = byte_tokenizer(*QWEN_TOKENS)
    config = Qwen3VLConfig(
        text_config={**_qwen_text(tokenizer), "head_dim": 32},
        vision_config={**_qwen3_vision(), "deepstack_visual_indexes": [0]},
        **_qwen_ids(tokenizer),
    )
    processor = _qwen_processor(Qwen3VLProcessor, tokenizer, patch_size=16)
    return _save(folder, Qwen3VLForConditionalGeneration, config, processor, seed)


def save_qwen3_5(folder: Path, *, seed: int = 0) -> Path:
    """Qwen3.5, whose language model has a layer of linear and a layer of full attention."""
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration, Qwen3VLProcessor

    tokenizer = byte_tokenizer(*QWEN_TOKENS)
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
    config = Qwen3_5Config(text_config=text, vision_config=_qwen3_vision(), **_qwen_ids(tokenizer))
    processor = _qwen_processor(Qwen3VLProcessor, tokenizer, patch_size=16)
    return _save(folder, Qwen3_5ForConditionalGeneration, config, processor, seed)


def save_internvl(folder: Path, *, seed: int = 0) -> Path:
    """InternVL: a picture is cut into up to 4 tiles of 32 x 32 and a thumbnail, 4 tokens each."""
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
        vision_config={**_VISION, "image_size": [32, 32], "patch_size": [8, 8]},
        text_config={"model_type": "qwen2", **_text(tokenizer)},
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
        chat_template=chat_template("<IMG_CONTEXT>", generation=False),
    )
    return _save(folder, InternVLForConditionalGeneration, config, processor, seed)


def save_llava(folder: Path, *, seed: int = 0) -> Path:
    """LLaVA (CLIP, Llama): every picture is 32 x 32, 16 tokens."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaImageProcessor, LlavaProcessor

    tokenizer = byte_tokenizer()
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **_VISION, "projection_dim": 64},
        text_config={"model_type": "llama", **_text(tokenizer)},
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=16,
        tie_word_embeddings=False,
    )
    size = {"height": 32, "width": 32}
    processor = LlavaProcessor(
        image_processor=LlavaImageProcessor(size={"shortest_edge": 32}, crop_size=size),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat_template(generation=False),
    )
    return _save(folder, LlavaForConditionalGeneration, config, processor, seed)


def save_llava_next(folder: Path, *, seed: int = 0) -> Path:
    """LLaVA-NeXT (CLIP, Llama), the paper's: a thumbnail of 32 x 32 and up to 4 tiles, as the picture's shape asks."""
    from transformers import (
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessor,
        LlavaNextProcessor,
    )

    tokenizer = byte_tokenizer()
    pinpoints = [[32, 64], [64, 32], [64, 64], [96, 32], [32, 96]]
    config = LlavaNextConfig(
        vision_config={"model_type": "clip_vision_model", **_VISION, "projection_dim": 64},
        text_config={"model_type": "llama", **_text(tokenizer)},
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
        chat_template=chat_template(generation=False),
    )
    return _save(folder, LlavaNextForConditionalGeneration, config, processor, seed)


def save_llava_onevision(folder: Path, *, seed: int = 0) -> Path:
    """LLaVA-OneVision (SigLIP, Qwen2): a thumbnail of 32 x 32 and up to 9 tiles."""
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
    )

    tokenizer = byte_tokenizer("<video>")
    pinpoints = [[32 * rows, 32 * columns] for rows in range(1, 4) for columns in range(1, 4)]
    config = LlavaOnevisionConfig(
        vision_config={"model_type": "siglip_vision_model", **_VISION, "vision_use_head": False},
        text_config={"model_type": "qwen2", **_text(tokenizer)},
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
        chat_template=chat_template(),
    )
    return _save(folder, LlavaOnevisionForConditionalGeneration, config, processor, seed)


def save_smolvlm(folder: Path, *, seed: int = 0) -> Path:
    """SmolVLM (SigLIP, Llama): pictures grow to a longest side of 64, cut into tiles of 32 x 32, and a thumbnail."""
    from transformers import (
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    tokenizer = _split_picture_tokenizer()
    config = SmolVLMConfig(**_split_picture_config(tokenizer))
    sizes = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}
    processor = SmolVLMProcessor(
        SmolVLMImageProcessor(**sizes),
        tokenizer,
        SmolVLMVideoProcessor(**sizes),
        image_seq_len=4,
        chat_template=chat_template(generation=False),
    )
    return _save(folder, SmolVLMForConditionalGeneration, config, processor, seed)


def save_idefics3(folder: Path, *, seed: int = 0) -> Path:
    """Idefics3 (SigLIP, Llama): pictures grow to a longest side of 64, cut into tiles of 32 x 32, and a thumbnail."""
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3ImageProcessor,
        Idefics3Processor,
    )

    tokenizer = _split_picture_tokenizer()
    config = Idefics3Config(**_split_picture_config(tokenizer))
    processor = Idefics3Processor(
        Idefics3ImageProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32}),
        tokenizer,
        image_seq_len=4,
        chat_template=chat_template(generation=False),
    )
    return _save(folder, Idefics3ForConditionalGeneration, config, processor, seed)


def save_gemma3(folder: Path, *, seed: int = 0) -> Path:
    """Gemma 3 (SigLIP): every picture is 32 x 32, 4 tokens, whose places see each other both ways."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3ImageProcessor, Gemma3Processor

    names = {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    }
    tokenizer = byte_tokenizer(named=names)
    text = {
        **_text(tokenizer),
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "sliding_window": 64,
        "layer_types": ["sliding_attention", "full_attention"],
    }
    ids = {f"{name}_index": tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}
    config = Gemma3Config(
        text_config=text, vision_config={**_VISION, "vision_use_head": False}, mm_tokens_per_image=4, **ids
    )
    processor = Gemma3Processor(
        Gemma3ImageProcessor(size={"height": 32, "width": 32}),
        tokenizer,
        chat_template=chat_template("<start_of_image>", generation=False),
        image_seq_length=4,
    )
    return _save(folder, Gemma3ForConditionalGeneration, config, processor, seed)


BUILDERS: dict[str, Callable[[Path], Path]] = {
    "qwen2_5_vl": save_qwen2_5_vl,
    "qwen3_vl": save_qwen3_vl,
    "qwen3_5": save_qwen3_5,
    "qwen2_vl": save_qwen2_vl,
    "internvl": save_internvl,
    "llava_next": save_llava_next,
    "llava_onevision": save_llava_onevision,
    "llava": save_llava,
    "smolvlm": save_smolvlm,
    "idefics3": save_idefics3,
    "gemma3": save_gemma3,
    "fast_vlm": save_fast_vlm,
}
"""What saves a tiny model of each model type into a folder."""


def _save(folder: Path, model_class: Any, config: Any, processor: Any, seed: int) -> Path:
    """Random weights for `config`, saved with `processor` as a user would save a model."""
    import torch

    torch.manual_seed(seed)
    model = model_class(config)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _text(tokenizer: Any) -> dict[str, Any]:
    """A language model of 64 channels and 2 layers. Weights are drawn wide, so that answers depend on the question.

    64 is also the least that four bits on a CPU take: bitsandbytes packs 64 numbers to a block there.
    """
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 2048,
        "initializer_range": 0.1,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _qwen_text(tokenizer: Any) -> dict[str, Any]:
    rope = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0}
    return {**_text(tokenizer), "rope_parameters": rope}


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


def _qwen_processor(processor_class: Any, tokenizer: Any, patch_size: int) -> Any:
    """Pictures of 1 to 16 tokens, each of 2 x 2 patches."""
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
        chat_template=chat_template(_QWEN_IMAGE, generation=False),
    )


def _split_picture_tokenizer() -> Any:
    cells = [f"<row_{row + 1}_col_{column + 1}>" for row in range(6) for column in range(6)]
    return byte_tokenizer("<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<video>", *cells)


def _split_picture_config(tokenizer: Any) -> dict[str, Any]:
    return {
        "vision_config": _VISION,
        "text_config": {"model_type": "llama", **_text(tokenizer)},
        "image_token_id": tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        "scale_factor": 2,
        "pad_token_id": tokenizer.pad_token_id,
    }
