"""Parts that the tiny random MLLMs share: a byte-level tokenizer, small sizes, and saving."""

from __future__ import annotations

from collections.abc import Sequence
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


def byte_tokenizer(
    *extra: str,
    named: dict[str, str] | None = None,
    eos_token: str = "<|im_end|>",
    bos_token: str | None = None,
    plain: Sequence[str] = (),
) -> Any:
    """Return a tokenizer with a token for each byte, followed by the special tokens.

    White space is merged with the character after it, as in real tokenizers, so that the tokens of a text depend on
    where it is split.

    Args:
        extra: Further special tokens.
        named: Special tokens by the attribute under which a processor looks them up.
        eos_token: The tokenizer's end token.
        bos_token: The token that begins every text; None for none.
        plain: Further tokens that are kept when a text is decoded without special tokens.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
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
    bos = [] if bos_token is None else [bos_token]
    tokenizer.add_special_tokens(["<|pad|>", "<|im_start|>", "<|im_end|>", IMAGE_TOKEN, *extra, *names.values(), *bos])
    tokenizer.add_tokens(list(plain))
    if bos_token is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos_token} $A", special_tokens=[(bos_token, tokenizer.token_to_id(bos_token))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token=eos_token,
        bos_token=bos_token,
        extra_special_tokens=names,
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


def save(
    folder: Path, model_class: Any, config: Any, processor: Any, seed: int, end_tokens: Sequence[str] = ()
) -> Path:
    """Save a model of `config` with random weights and its processor, and return the folder.

    `end_tokens` are those of the generation config; none for the tokenizer's.
    """
    import torch

    torch.manual_seed(seed)
    model = model_class(config)
    tokenizer = processor.tokenizer
    ends = [tokenizer.convert_tokens_to_ids(token) for token in end_tokens]
    model.generation_config.eos_token_id = ends or tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
