"""The embedded MLLM: its configuration, its processor, its number and place codes, and how it is saved."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from build_tower import ARCHITECTURE, CELLS, MEAN, MODEL_ARGS, SIDE, STD
from mllm_rows import IMAGE_TOKENS
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    FastVlmConfig,
    FastVlmForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_clip import CLIPImageProcessor

LAYERS, WIDTH, HEADS, MLP = 5, 256, 8, 512
# The dimensions of the code of x and of y, at the end of the features of image tokens and of number embeddings.
CODE = 32
PLACE_SCALE = 2.0


def build_model(tokenizer: PreTrainedTokenizerFast) -> FastVlmForConditionalGeneration:
    """Return the model with random weights."""
    config = FastVlmConfig(
        vision_config={
            "model_type": "timm_wrapper",
            "architecture": ARCHITECTURE,
            "model_args": MODEL_ARGS,
            "do_pooling": False,
            "hidden_size": MODEL_ARGS["channels"][-1],
            "num_labels": 0,
        },
        text_config={
            "model_type": "qwen2",
            "hidden_size": WIDTH,
            "intermediate_size": MLP,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": HEADS,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 2048,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=IMAGE_TOKENS,
        tie_word_embeddings=True,
    )
    return FastVlmForConditionalGeneration(config)


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """Return the processor, which resizes images to 192 x 192."""
    side = {"height": SIDE, "width": SIDE}
    image_processor = CLIPImageProcessor(
        do_resize=True,
        size=side,
        resample=3,
        do_center_crop=False,
        crop_size=side,
        image_mean=list(MEAN),
        image_std=list(STD),
        do_convert_rgb=True,
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=SIDE // CELLS,
        vision_feature_select_strategy="full",
        chat_template=tokenizer.chat_template,
    )


def place_code(values: Tensor) -> Tensor:
    """Return the sine/cosine code (..., 32) of values in 0..1, with 0.5 to 12 cycles over that range."""
    rates = math.pi * 24 ** (torch.arange(CODE // 2, device=values.device) / (CODE // 2 - 1))
    angles = values[..., None] * rates
    return torch.cat([angles.sin(), angles.cos()], -1)


def initialize_number_embeddings(model: FastVlmForConditionalGeneration, numbers: list[int]) -> None:
    """Initialize the embeddings of the 1000 number tokens by sinusoidal codes of their values.

    The last 64 dimensions hold `place_code` twice: for x and for y, where the image tokens hold the codes of their
    place. A head that attends to an image token can therefore copy its place as a number.
    """
    with torch.no_grad():
        table = model.get_input_embeddings().weight
        table.normal_(0, 0.05)
        values = torch.arange(len(numbers)).float()[:, None] / len(numbers)
        waves = torch.arange(1, WIDTH // 2 // 2 + 1).float()
        rates = 2 * math.pi * 0.5 * (120 ** (waves / len(waves)))
        code = torch.cat([torch.sin(values * rates), torch.cos(values * rates)], dim=1)
        table[numbers, : code.shape[1]] += 0.08 * code
        table[:, -2 * CODE :] = 0.0
        table[numbers, -2 * CODE :] = 0.15 * place_code(values[:, 0] + 0.5 / len(numbers)).repeat(1, 2)


def load_narrower(model: FastVlmForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Copy a saved model of fewer dimensions and heads, and other tokens, into `model`, whose outputs nearly equal its.

    The saved weights become the first rows and columns of the new ones. Tokens are matched by their text; a new token
    gets the mean of the saved embeddings of its pieces, and the codes in the last dimensions stay.
    """
    saved = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    old = saved.state_dict()
    for name, tensor in model.state_dict().items():
        if name.endswith("embed_tokens.weight"):
            _copy_embeddings(tensor, old[name], tokenizer, AutoTokenizer.from_pretrained(folder))
        elif tensor.shape == old[name].shape:
            tensor.copy_(old[name])
        elif name != "lm_head.weight":
            _copy_block(name, tensor, old[name])


def _copy_block(name: str, new: Tensor, old: Tensor) -> None:
    if "norm" in name:  # The root mean square over more dimensions, of which the new ones are nearly 0, is smaller.
        new.fill_(float(old.mean()) * math.sqrt(len(old) / len(new)))
        new[: len(old)] = old * math.sqrt(len(old) / len(new))
    elif new.ndim == 1:
        new[: len(old)] = old
    else:
        rows, columns = old.shape
        new[:rows, columns:] = 0.0
        new[:rows, :columns] = old
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            new[rows:] = 0.0


def _copy_embeddings(
    new: Tensor, old: Tensor, tokenizer: PreTrainedTokenizerFast, old_tokenizer: PreTrainedTokenizerFast
) -> None:
    known = old_tokenizer.get_vocab()
    for token, index in tokenizer.get_vocab().items():
        text = tokenizer.convert_tokens_to_string([token])
        pieces = [known[token]] if token in known else old_tokenizer.encode(text, add_special_tokens=False)
        new[index, : old.shape[1]] = old[pieces].mean(0)


def save(model: FastVlmForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save model and processor in half precision to `folder`, and check that they load."""
    model.set_attn_implementation("sdpa")
    # Half precision halves the package's size; it is a copy, as the training continues in full precision. The output
    # layer is tied to the embeddings and therefore not saved, as by transformers itself without `state_dict`.
    half = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).cpu().contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder, state_dict=half)
    build_processor(tokenizer).save_pretrained(folder)
    AutoModelForImageTextToText.from_pretrained(folder)
