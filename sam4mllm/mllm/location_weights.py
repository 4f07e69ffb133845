"""The parts of a model with location heads, and how they are saved and restored; see `locations.py`.

An adapter's file holds the heads with its LoRA weights and the rows of the location token. Beside the weights of a
complete model they have a file of their own, which is no part of the model for other libraries.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam4mllm.errors import ModelError
from sam4mllm.prompts.conversation import LOCATION_TOKEN
from sam4mllm.utils.hub import ADAPTER_CONFIG
from sam4mllm.utils.weight_files import save_weights

if TYPE_CHECKING:
    import torch

    from sam4mllm.mllm.location_heads import LocationHeads

HEADS_MODULE = "location_heads"
"""The name of the heads' module in the transformers model."""
HEADS_FILE = "location_heads.safetensors"
"""The file of the heads in the folder of a complete model."""


def location_heads_of(model: Any) -> LocationHeads | None:
    """Return the location heads of a model, those of its active adapter if it has any; None for a model without."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    heads: Any = getattr(base, HEADS_MODULE, None)
    copies = getattr(heads, "modules_to_save", None)
    if copies is None:
        return heads
    return heads.original_module if heads.disable_adapters else copies[heads.active_adapters[0]]


def hidden_size_of(model: Any) -> int:
    """Return the width of a model's token embeddings."""
    size: int = model.get_input_embeddings().weight.shape[1]
    return size


def add_token(tokenizer: Any) -> int:
    """Return the id of the location token, which is added to the tokenizer if it is no added token yet.

    Raises:
        ModelError: It is a special token, which decoded text would lack.
    """
    from tokenizers import AddedToken

    added = {token.content: token for token in tokenizer.added_tokens_decoder.values()}
    if LOCATION_TOKEN not in added:
        tokenizer.add_tokens([AddedToken(LOCATION_TOKEN, special=False, normalized=False)])
    elif added[LOCATION_TOKEN].special:
        raise ModelError(
            f"the base's tokenizer has {LOCATION_TOKEN!r} as a special token, which decoded answers lack; take another "
            "base, or make it an ordinary added token there"
        )
    token: int = tokenizer.convert_tokens_to_ids(LOCATION_TOKEN)
    return token


def add_rows(model: Any, token: int) -> None:
    """Set the row of a new token in the embedding matrices to the mean of all others; they grow if they lack it.

    Raises:
        ModelError: The output layer has a bias, which peft leaves out of a layer with trained rows.
    """
    import torch

    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        raise ModelError(
            f"{model.config.model_type!r}: the output layer has a bias, so no row of it can be trained for the "
            "location token; take another base"
        )
    rows = len(model.get_input_embeddings().weight)
    if token >= rows:
        with torch.random.fork_rng(devices=[]):
            model.resize_token_embeddings(token + 1, mean_resizing=False)
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    # Some models have further embedding matrices with a row for each token, which grow, too (Gemma 4).
    layers += [
        module
        for module in model.modules()
        if isinstance(module, torch.nn.Embedding) and rows <= token < len(module.weight) == token + 1
    ]
    with torch.no_grad():
        for weight in {id(layer.weight): layer.weight for layer in layers}.values():
            known = min(rows, token)
            weight[known : token + 1] = weight[:known].mean(0, dtype=torch.float32).to(weight.dtype)


def attach_heads(model: Any, heads: LocationHeads) -> None:
    """Make the heads a part of the model, on its device, in float32.

    Raises:
        ModelError: Heads of another width than the model's.
    """
    if heads.hidden_size != hidden_size_of(model):
        raise ModelError(
            f"the location heads are of width {heads.hidden_size}, but the model is of width {hidden_size_of(model)}; "
            "give the base that they were trained on"
        )
    setattr(model, HEADS_MODULE, heads.to(model.get_input_embeddings().weight.device))


def check_complete(source: str) -> None:
    """Check that the folder `source` is not a run with location heads, which transformers would load without them.

    Raises:
        ModelError: It is.
    """
    file = Path(source) / ADAPTER_CONFIG
    if file.is_file() and HEADS_MODULE in (json.loads(file.read_text(encoding="utf-8")).get("modules_to_save") or ()):
        raise ModelError(
            f"{source}: is a run folder of pix2emb with an adapter, and no base model; merge it "
            f"(sam4mllm merge {source} FOLDER), and give that folder"
        )


def attach_saved_heads(model: Any, source: str) -> None:
    """Attach the location heads in the folder or Hub repository `source` to the model, if there are any.

    Raises:
        ModelError: The file is not complete, or not of the model's width.
    """
    from safetensors.torch import load_file
    from transformers.utils import cached_file

    file = cached_file(
        source,
        HEADS_FILE,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if file is not None:
        attach_heads(model, _heads_from(load_file(file), file))


def prepare_for_adapter(model: Any, config: Any, weights: Mapping[str, torch.Tensor]) -> None:
    """Give a base the rows and heads that an adapter's `weights` need, if it was trained with location heads.

    `config` is peft's config of the adapter. The adapter's weights replace all values.

    Raises:
        ModelError: The heads' tensors are not complete, or not of the model's width.
    """
    saved = {
        name.partition(f".{HEADS_MODULE}.")[2]: weight
        for name, weight in weights.items()
        if f".{HEADS_MODULE}." in name
    }
    if not saved:
        return
    for token in _trained_tokens(config):
        if token >= len(model.get_input_embeddings().weight):
            add_rows(model, token)
    if location_heads_of(model) is None:
        attach_heads(model, _heads_from(saved, "the adapter"))


def restore_token(model: Any, processor: Any) -> None:
    """Add the location token to the tokenizer of a model with location heads, if it was saved without.

    Raises:
        ModelError: The token's id is not the one that the model was trained with.
    """
    if location_heads_of(model) is None:
        return
    token = add_token(processor.tokenizer)
    trained = _trained_tokens(getattr(model, "peft_config", {}).get("default"))
    rows = len(model.get_input_embeddings().weight)
    if (trained and token not in trained) or token >= rows:
        raise ModelError(
            f"{LOCATION_TOKEN!r} has the id {token} in the tokenizer, but the model was trained with "
            f"{' or '.join(map(str, trained)) or f'an id below {rows}'}; load the tokenizer that was saved with it"
        )


def save_model(model: Any, folder: Path) -> None:
    """Write a complete model to `folder` by transformers' `save_pretrained`, and its location heads, if any, beside it.

    `model` is a transformers model without an adapter.
    """
    with _without_heads(model) as heads:
        model.save_pretrained(folder)
    if heads is not None:
        save_weights(heads.state_dict(), folder / HEADS_FILE)


@contextmanager
def _without_heads(model: Any) -> Iterator[Any]:
    """Remove the location heads from the model inside the block, and return them; None for a model without."""
    heads = location_heads_of(model)
    if heads is not None:
        delattr(model, HEADS_MODULE)
    try:
        yield heads
    finally:
        if heads is not None:
            setattr(model, HEADS_MODULE, heads)


def _heads_from(weights: Mapping[str, torch.Tensor], source: str) -> LocationHeads:
    """Return the heads with the given weights, whose shapes determine their sizes; `source` is named in errors.

    Raises:
        ModelError: Weights are missing or unknown, or their shapes contradict each other.
    """
    import torch

    from sam4mllm.mllm.location_heads import LocationHeads

    try:
        count, width = weights["prompt_offset"].shape
        with torch.random.fork_rng(devices=[]):
            heads = LocationHeads(len(weights["location_encoder.2.weight"]), count, width)
        heads.load_state_dict(dict(weights))
    except (KeyError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"{source}: its location heads are not complete ({' '.join(str(error).split())[:200]}); copy the file again"
        ) from error
    return heads


def _trained_tokens(config: Any) -> list[int]:
    """Return the ids of the tokens whose rows an adapter with peft's config `config` trains."""
    indices = getattr(config, "trainable_token_indices", None) or []
    return sorted({token for each in indices.values() for token in each} if isinstance(indices, dict) else indices)
