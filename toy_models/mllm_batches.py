"""Batches for the pre-training, made in worker processes: rows are padded, and follow their image in one sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from build_tower import WIDTHS
from mllm_rows import SUPERVISED_LAYERS, Packed, Packer, make_packed, make_tower_only
from torch import Tensor
from transformers import PreTrainedTokenizerFast

Arrays = dict[str, npt.NDArray[np.generic]]
_PACKER: Packer | None = None


def make_batch(folder: str, indexes: Sequence[int], tower_only: Sequence[int]) -> Arrays:
    """Return the arrays of a `Batch` of the images `indexes`, in a worker process, which keeps its packer."""
    global _PACKER
    if _PACKER is None:
        torch.set_num_threads(1)
        _PACKER = Packer(PreTrainedTokenizerFast.from_pretrained(folder))
    packed = [make_packed(_PACKER, index) for index in indexes]
    return collate(packed, [make_tower_only(index) for index in tower_only], _PACKER)


@dataclass
class Batch:
    """Images (B + A, 3, 192, 192); the first B have R rows of T tokens each, one after the other after P prefix tokens.

    `facts` are the targets of the auxiliary head for all images. `layout` is (P, R, T); `ids` and `positions` are
    (B, P + R * T), `labels` and `weights` (B, R * T). `attention_targets[layer]` are the supervised positions (N, 4),
    as image, row, token and heads (REGION or POINT), and the positions to attend to (N, P + T), as 0 or 1.
    """

    images: Tensor
    facts: dict[str, Tensor]
    layout: tuple[int, int, int]
    ids: Tensor
    positions: Tensor
    labels: Tensor
    weights: Tensor
    attention_targets: dict[int, tuple[Tensor, Tensor]]

    @classmethod
    def of_arrays(cls, arrays: Arrays, device: torch.device) -> Batch:
        """Copy the arrays of `collate` to a device."""
        on = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
        prefix, rows, length = arrays["layout"].tolist()
        attention_targets = {}
        for layer in SUPERVISED_LAYERS:
            supervised, attend_to = on[f"supervised_{layer}"].long(), on[f"attend_to_{layer}"].long()
            is_target = torch.zeros(len(supervised), prefix + length, device=device)
            is_target[attend_to[:, 0], attend_to[:, 1]] = 1.0
            attention_targets[layer] = (supervised, is_target)
        return cls(
            on["images"].float().contiguous(memory_format=torch.channels_last),
            {name: on[name] for name in WIDTHS},
            (prefix, rows, length),
            on["ids"].long(),
            on["positions"].long(),
            on["labels"].long(),
            on["weights"],
            attention_targets,
        )


def collate(packed: list[Packed], tower_only: list[Packed], packer: Packer) -> Arrays:
    """Return the arrays of a `Batch`: rows are padded to the same length, images to the same number of rows."""
    # 1. The rows' tokens, labels and weights.
    prefix = len(packer.prefix)
    count, length = max(len(p.rows) for p in packed), max(len(row.ids) for p in packed for row in p.rows)
    shape = (len(packed), count, length)
    ids = np.full(shape, packer.tokenizer.pad_token_id, dtype=np.int16)
    labels, weights = np.full(shape, -100, dtype=np.int16), np.zeros(shape, dtype=np.float32)
    after = np.tile(np.arange(prefix, prefix + length, dtype=np.int16), (len(packed), count, 1))
    # 2. The targets of the supervised attention, as indexes.
    supervised: dict[int, list[tuple[int, int, int, int]]] = {layer: [] for layer in SUPERVISED_LAYERS}
    attend_to: dict[int, list[tuple[int, int]]] = {layer: [] for layer in SUPERVISED_LAYERS}
    for b, p in enumerate(packed):
        for r, row in enumerate(p.rows):
            ids[b, r, : len(row.ids)] = row.ids
            labels[b, r, : len(row.ids)] = row.labels
            weights[b, r, : len(row.ids)] = row.weights
            after[b, r] += row.distance
            for layer, heads, position, targets_of_position in row.attention_targets:
                attend_to[layer] += [(len(supervised[layer]), target) for target in targets_of_position]
                supervised[layer].append((b, r, position, heads))
    start = np.tile(np.array(packer.prefix, dtype=np.int16), (len(packed), 1))
    before = np.tile(np.arange(prefix, dtype=np.int16), (len(packed), 1))
    every = [*packed, *tower_only]
    return {
        # Half precision halves what the worker processes send.
        "images": torch.stack([p.image for p in every]).half().numpy(),
        **{name: torch.stack([p.facts[name] for p in every]).numpy() for name in WIDTHS},
        "layout": np.array([prefix, count, length]),
        "ids": np.concatenate([start, ids.reshape(len(packed), -1)], 1),
        "positions": np.concatenate([before, after.reshape(len(packed), -1)], 1),
        "labels": labels.reshape(len(packed), -1),
        "weights": weights.reshape(len(packed), -1),
        **{f"supervised_{layer}": np.array(each, dtype=np.int32).reshape(-1, 4) for layer, each in supervised.items()},
        **{f"attend_to_{layer}": np.array(each, dtype=np.int32).reshape(-1, 2) for layer, each in attend_to.items()},
    }
