"""Locations as embeddings: the location token and the location heads, added to a model, and trained with LoRA.

The location token is an ordinary added token, so decoded text keeps it. In an answer the last hidden state at its own
position is the location, which `LocationHeads` decode, and its input embedding is a trained row of the embedding
matrix. In a question its input embedding is that of a box (`location_passes.region_inputs`).

The heads are the submodule `location_heads` of the transformers model; `location_weights.py` saves and restores them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sam4mllm.errors import ModelError
from sam4mllm.geometry import Box
from sam4mllm.mllm.decoding import text_with_ends
from sam4mllm.mllm.engine import DecodedLocation
from sam4mllm.mllm.loading import Mllm
from sam4mllm.mllm.location_weights import (
    HEADS_MODULE,
    add_rows,
    add_token,
    attach_heads,
    hidden_size_of,
    location_heads_of,
)
from sam4mllm.prompts.conversation import LOCATION_TOKEN

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class LocationSettings:
    """The settings of new location heads.

    Attributes:
        sam_tokens: The number K of sparse prompt tokens for SAM per location.
        sam_width: The width C of SAM's prompt tokens; None if it does not matter: the one of the model's heads, or, for
            new heads, segment_anything's.
        not_a_point: SAM's embedding (C,) of "not a point", with which all prompt tokens begin; None for random ones.
    """

    sam_tokens: int = 1
    sam_width: int | None = None
    not_a_point: torch.Tensor | None = None


def add_locations(mllm: Mllm, settings: LocationSettings, seed: int) -> Mllm:
    """Add the location token, its rows in the embedding matrices and location heads to a model, in place.

    Token and heads that the model has, as a merged run or a base trained with them, are kept. The matrices grow only
    if they have no spare row. New rows are the mean of those of all other tokens. The heads' initial values depend on
    `seed` alone.

    Raises:
        ModelError: The model has heads of another number or width of prompt tokens, its tokenizer has the location
            token as a special token, or its output layer has a bias.
    """
    import torch

    from sam4mllm.mllm.location_heads import LocationHeads

    model, hidden_size = mllm.model, hidden_size_of(mllm.model)
    is_new = LOCATION_TOKEN not in mllm.processor.tokenizer.get_vocab()
    token = add_token(mllm.processor.tokenizer)
    if is_new:
        add_rows(model, token)
    heads = location_heads_of(model)
    if heads is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            width = {} if settings.sam_width is None else {"sam_width": settings.sam_width}
            heads = LocationHeads(hidden_size, settings.sam_tokens, **width)
        if settings.not_a_point is not None:
            heads.begin_as_box_prompt(settings.not_a_point)
        attach_heads(model, heads)
    elif heads.sam_token_count != settings.sam_tokens or settings.sam_width not in (None, heads.sam_width):
        raise ModelError(
            f"the base has location heads with {heads.sam_token_count} prompt tokens for SAM, of width "
            f"{heads.sam_width}, but {settings.sam_tokens} of width {settings.sam_width or heads.sam_width} are asked "
            f"for; set method.sam_tokens: {heads.sam_token_count}, and take a segmenter of that width"
        )
    return mllm


def location_adapter_settings(mllm: Mllm) -> dict[str, Any]:
    """Return the settings of peft's config that train a model's location heads and the rows of its location token."""
    model, token = mllm.model, mllm.location_id
    embeddings, output = model.get_input_embeddings(), model.get_output_embeddings()
    layers = [embeddings] if output.weight is embeddings.weight else [embeddings, output]
    names = [name for name, module in model.named_modules() if any(module is layer for layer in layers)]
    return {"modules_to_save": [HEADS_MODULE], "trainable_token_indices": {name: [token] for name in names}}


def decode_locations(mllm: Mllm, tokens: Sequence[int], states: Sequence[torch.Tensor]) -> tuple[DecodedLocation, ...]:
    """Return the locations of the location tokens in a generated answer, of which `states` (d,) has one for each.

    Raises:
        ModelError: A state is not finite, which half precision can cause.
    """
    import torch

    from sam4mllm.mllm.location_heads import ordered

    heads, token = mllm.location_heads, mllm.location_id
    assert heads is not None, "checked by generate_located"
    _, ends = text_with_ends(mllm.processor.tokenizer, tokens)
    ends = [end for end, each in zip(ends, tokens, strict=True) if each == token]
    with torch.no_grad():
        stacked = torch.stack(list(states))
        if not stacked.isfinite().all():
            raise ModelError(
                "the hidden states of location tokens are not finite, so they have no locations; load the model with "
                "dtype bfloat16 or float32, or train it again with a lower learning rate"
            )
        boxes = ordered(heads.decode_boxes(stacked)).clamp(0, 1).tolist()
        sam_tokens = heads.sam_tokens(stacked).cpu()
    return tuple(
        DecodedLocation(Box(*box), prompt, end) for box, prompt, end in zip(boxes, sam_tokens, ends, strict=True)
    )
