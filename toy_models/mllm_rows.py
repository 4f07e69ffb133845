"""Images with their conversations as tensors for the pre-training: what is read, what is learnt, where heads look.

A row is a conversation of one exchange or of several in turn; the rows of an image stand side by side behind it and do
not see each other. This module trains nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from build_tower import CELLS, WIDTHS, owners, pixels, targets
from mllm_text import Exchange, exchanges
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from sam4mllm.synthetic.scenes import Scene, make_scene

SCENE_SEED = 9_000_001
LOOKED_AT_SEED = 9_000_004
IMAGE_TOKENS = CELLS * CELLS
# The last word of a noun phrase looks at its other words, then at the image tokens that they speak of; answers look at
# those last words, then at the image tokens of their object.
PHRASE_LAYER, WORD_LAYER, LINK_LAYER, ANSWER_LAYER = 0, 1, 2, 3
TOLD_LAYERS = (PHRASE_LAYER, WORD_LAYER, LINK_LAYER, ANSWER_LAYER)
ROW_LENGTH, MOST_ROWS = 84, 7
# Half of the rows stand further from the image, as the later turns of a conversation do.
FARTHEST_ROW = 240


@dataclass
class Row:
    """One conversation about an image: its tokens, the token each must predict (-100: none) with its weight.

    `told` holds (layer, place, where) for the heads that are told where to look: places in the prefix, then, counted on
    from its end, in the row itself.
    """

    ids: list[int]
    labels: list[int]
    weights: list[float]
    told: list[tuple[int, int, list[int]]]
    distance: int = 0


@dataclass
class Packed:
    """One image with its conversations, which see the image and not each other."""

    image: Tensor
    seen: dict[str, Tensor]
    rows: list[Row]


class Packer:
    """Turns scenes into token rows; a row is a conversation of one exchange or of several in turn."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        opening = tokenizer.encode("<|im_start|>user\n")
        self.prefix = [*opening, *[tokenizer.convert_tokens_to_ids("<image>")] * IMAGE_TOKENS, *tokenizer.encode("\n")]
        self.first_image = len(opening)
        self.between = tokenizer.encode("<|im_end|>\n<|im_start|>assistant\n")
        self.again = tokenizer.encode("\n<|im_start|>user\n")
        self.open_box = {tokenizer.encode("[0")[0], tokenizer.encode("; [0")[-2]}
        self.comma = tokenizer.encode("1,")[1]

    def pack(self, scene: Scene, said: list[Exchange], rng: np.random.Generator) -> Packed:
        owner, _ = owners(scene)
        cells = [np.flatnonzero(owner.ravel() == index).tolist() for index in range(len(scene.shapes))]
        rows: list[Row] = []
        meant: list[set[tuple[int, ...]]] = []
        for exchange in said:
            row = self._row(exchange, cells)
            # A later turn that means the same could copy its answer from the text; such exchanges go to other rows.
            for have, answers in zip(rows, meant, strict=True):
                fits = len(have.ids) + len(self.again) + len(row.ids) <= ROW_LENGTH
                if fits and (not exchange.answer_shapes or exchange.answer_shapes not in answers):
                    self._append(have, row)
                    answers.add(exchange.answer_shapes)
                    break
            else:
                if len(rows) == MOST_ROWS or len(row.ids) > ROW_LENGTH:
                    continue
                rows.append(row)
                meant.append({exchange.answer_shapes})
        for have in rows:
            have.distance = int(rng.integers(FARTHEST_ROW)) if rng.random() < 0.5 else 0
        return Packed(pixels(scene), targets(scene), rows)

    def _append(self, have: Row, row: Row) -> None:
        shift = len(have.ids) + len(self.again)
        have.ids += [*self.again, *row.ids]
        have.labels += [*[-100] * len(self.again), *row.labels]
        have.weights += [*[0.0] * len(self.again), *row.weights]
        behind = len(self.prefix)
        have.told += [
            (layer, place + shift, [at + shift if at >= behind else at for at in where])
            for layer, place, where in row.told
        ]

    def _row(self, exchange: Exchange, cells: list[list[int]]) -> Row:
        question = self.tokenizer(exchange.question, return_offsets_mapping=True, add_special_tokens=False)
        answer = [*self.tokenizer.encode(exchange.answer, add_special_tokens=False), self.tokenizer.eos_token_id]
        told: list[tuple[int, int, list[int]]] = []

        def tell(layer: int, place: int, shapes: tuple[int, ...]) -> None:
            # Words that fit nothing look at the very first token, so that "nothing" is a place like any other.
            where = [self.first_image + cell for shape in shapes for cell in cells[shape]]
            told.append((layer, place, where or [0]))

        words: list[int] = []
        for a, b, shapes in exchange.spans:
            span = [i for i, (x, y) in enumerate(question["offset_mapping"]) if x < b and y > a]
            last = span[-1]
            told.append((PHRASE_LAYER, last, [len(self.prefix) + i for i in span[:-1] or span]))
            tell(WORD_LAYER, last, shapes)
            words.append(len(self.prefix) + last)
        ids = [*question["input_ids"], *self.between, *answer]
        first_answer = len(ids) - len(answer)
        on = [first_answer <= i + 1 < len(ids) for i in range(len(ids))]
        if words:
            told.append((LINK_LAYER, first_answer - 1, words))
            tell(ANSWER_LAYER, first_answer - 1, exchange.answer_shapes)
        if exchange.answer_shapes:
            which = -1
            for i in range(first_answer, len(ids)):
                which += ids[i] in self.open_box
                if ids[i] in self.open_box or ids[i] == self.comma:
                    tell(ANSWER_LAYER, i, exchange.answer_shapes[which : which + 1])
                    if words:
                        told.append((LINK_LAYER, i, words))
        # "No object" is four tokens against ten of a box, and its first token decides: it weighs more.
        weight = 1.5 if exchange.kind == "nothing" else 1.0
        labels = [token if yes else -100 for token, yes in zip([*ids[1:], -100], on, strict=True)]
        return Row(ids, labels, [weight * yes for yes in on], told)


_PACKER: Packer | None = None


def make_packed(folder: str, index: int) -> Packed:
    """One image of the pre-training series, for a worker process, which keeps its packer."""
    global _PACKER
    if _PACKER is None:
        torch.set_num_threads(1)
        _PACKER = Packer(PreTrainedTokenizerFast.from_pretrained(folder))
    scene = make_scene(SCENE_SEED, index)
    rng = np.random.default_rng([SCENE_SEED, 1, index])
    said = exchanges(scene, rng)
    return _PACKER.pack(scene, [said[i] for i in rng.permutation(len(said))], rng)


def make_seen(index: int) -> tuple[Tensor, dict[str, Tensor]]:
    """One image that is only looked at: pixels, and what the tower's throw-away head must tell of it."""
    torch.set_num_threads(1)
    scene = make_scene(LOOKED_AT_SEED, index)
    return pixels(scene), targets(scene)


@dataclass
class Batch:
    """Images (B, 3, 192, 192) with R rows of T tokens each, one after the other behind the prefix of P tokens.

    `ids` and `positions` (B, P + R * T); `labels` and `weights` (B, R * T); `told[layer]` (places (N, 3) of image,
    row and token; where to look (N, P + T) as 0 or 1).
    """

    images: Tensor
    seen: dict[str, Tensor]
    layout: tuple[int, int, int]
    ids: Tensor
    positions: Tensor
    labels: Tensor
    weights: Tensor
    told: dict[int, tuple[Tensor, Tensor]]


def collate(packed: list[Packed], prefix: list[int], pad: int) -> Batch:
    count, length = max(len(p.rows) for p in packed), max(len(row.ids) for p in packed for row in p.rows)
    shape = (len(packed), count, length)
    ids, labels, weights = torch.full(shape, pad), torch.full(shape, -100), torch.zeros(shape)
    after = torch.arange(len(prefix), len(prefix) + length).repeat(len(packed), count, 1)
    told: dict[int, tuple[Tensor, Tensor]] = {}
    places: dict[int, list[tuple[int, int, int]]] = {layer: [] for layer in TOLD_LAYERS}
    wheres: dict[int, list[list[int]]] = {layer: [] for layer in TOLD_LAYERS}
    for b, p in enumerate(packed):
        for r, row in enumerate(p.rows):
            ids[b, r, : len(row.ids)] = torch.tensor(row.ids)
            labels[b, r, : len(row.ids)] = torch.tensor(row.labels)
            weights[b, r, : len(row.ids)] = torch.tensor(row.weights)
            after[b, r] += row.distance
            for layer, place, where in row.told:
                places[layer].append((b, r, place))
                wheres[layer].append(where)
    for layer, rows in wheres.items():
        marks = torch.zeros(len(rows), len(prefix) + length)
        for n, where in enumerate(rows):
            marks[n, where] = 1.0
        told[layer] = (torch.tensor(places[layer]).reshape(-1, 3), marks)
    start = torch.tensor(prefix).expand(len(packed), -1)
    return Batch(
        torch.stack([p.image for p in packed]).to(memory_format=torch.channels_last),
        {name: torch.stack([p.seen[name] for p in packed]) for name in WIDTHS},
        (len(prefix), count, length),
        torch.cat([start, ids.flatten(1)], 1),
        torch.cat([torch.arange(len(prefix)).expand(len(packed), -1), after.flatten(1)], 1),
        labels.flatten(1),
        weights.flatten(1),
        told,
    )
