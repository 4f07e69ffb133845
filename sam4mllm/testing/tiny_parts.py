"""What the tiny random MLLMs share: a tokenizer of bytes, small sizes, and how they are saved.

This module knows no family.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

IMAGE_TOKEN = "<image>"
# How Qwen2's tokenizer splits text into words.
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
VISION = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 8,
    "image_size": 32,
}


def byte_tokenizer(*extra: str, named: dict[str, str] | None = None, eos_token: str = "<|im_end|>") -> Any:
    """One token a byte, the special tokens behind them; `named` gives some a name, as a processor may ask for.

    White space joins what follows it, as in real tokenizers, so where a text is cut decides its tokens.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    space, newline = "\u0120", "\u010a"
    join_processes = [(newline, newline), (space, newline), *((space, chr(code)) for code in range(33, 127))]
    vocabulary = {token: index for index, token in enumerate([*alphabet, *map("".join, join_processes)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=join_processes))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORD), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    names = dict(named or {})
    tokenizer.add_special_tokens(["<|pad|>", "<|im_start|>", "<|im_end|>", IMAGE_TOKEN, *extra, *names.values()])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token=eos_token, extra_special_tokens=names
    )


def text_sizes(tokenizer: Any) -> dict[str, Any]:
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


def save(folder: Path, model_class: Any, config: Any, processor: Any, seed: int) -> Path:
    """Random weights for `config`, saved with `processor` as a user would save a model."""
    import torch

    torch.manual_seed(seed)
    model = model_class(config)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
