"""Parts that the tiny random MLLMs share: a byte-level tokenizer, small sizes, and saving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

IMAGE_TOKEN = "<image>"
# The regular expression by which Qwen2's tokenizer splits text into words.
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
    """Return a tokenizer with a token for each byte, followed by the special tokens.

    White space is merged with the character after it, as in real tokenizers, so that the tokens of a text depend on
    where it is split.

    Args:
        extra: Further special tokens.
        named: Special tokens by the attribute under which a processor looks them up.
        eos_token: The token that ends an answer.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    space, newline = "\u0120", "\u010a"
    merges = [(newline, newline), (space, newline), *((space, chr(code)) for code in range(33, 127))]
    vocabulary = {token: index for index, token in enumerate([*alphabet, *map("".join, merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
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
    """Return the sizes of a language model with 64 channels and 2 layers.

    The initial weights have a large range, so that answers depend on the question. 64 is the smallest width that
    bitsandbytes quantizes to 4 bits on a CPU, in blocks of 64 values.
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
    """Save a model of `config` with random weights and its processor, and return the folder."""
    import torch

    torch.manual_seed(seed)
    model = model_class(config)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
