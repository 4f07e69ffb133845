"""Build the embedded MLLM: FastVLM's class over the tower of `build_tower.py`, pre-trained to see and to say boxes.

    python tools/build_mllm.py --work runs/build-mllm --tower runs/build-tower/tower.pt --steps 4720

Next-token loss on the exchanges of `mllm_text.py`, a dozen about each picture in one sequence that see the picture and
not each other. Two helps that leave no trace in the model: a number is learnt with its neighbours (a narrow Gaussian
over the bins), and a few attention heads are told which image tokens the words speak of. Seeded and resumable like its
siblings.
"""

from __future__ import annotations

import argparse
import math
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from build_tower import (
    ARCHITECTURE,
    CELLS,
    MEAN,
    MODEL_ARGS,
    SIDE,
    STD,
    WIDTHS,
    Head,
    load_batch,
    losses,
    owners,
    pixels,
    targets,
)
from building import report, save_whole
from mllm_text import Exchange, build_tokenizer, exchanges
from torch import Tensor
from transformers import (
    AttentionInterface,
    AutoModelForImageTextToText,
    AutoTokenizer,
    FastVlmConfig,
    FastVlmForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_clip import CLIPImageProcessor

from sam4mllm.chat.grammar import AnswerGrammar
from sam4mllm.data.shapes.scenes import Scene, make_scene

SCENE_SEED = 9_000_001
HELD_OUT_SEED = 9_000_002
LOOKED_AT_SEED = 9_000_004
IMAGE_TOKENS = CELLS * CELLS
LAYERS, WIDTH, HEADS, MLP = 5, 192, 6, 512
# The last word of a noun phrase looks at its other words, then at the image tokens that they speak of; answers look at
# those last words, then at the image tokens of their object.
PHRASE_LAYER, WORD_LAYER, LINK_LAYER, ANSWER_LAYER = 0, 1, 2, 3
TOLD_LAYERS = (PHRASE_LAYER, WORD_LAYER, LINK_LAYER, ANSWER_LAYER)
TOLD_HEADS = 2
ROW_LENGTH, MOST_ROWS = 84, 7
# Half of the rows stand further from the picture, as the later turns of a conversation do.
FARTHEST_ROW = 240


def build_model(tokenizer: PreTrainedTokenizerFast) -> FastVlmForConditionalGeneration:
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


def order_the_numbers(model: FastVlmForConditionalGeneration, numbers: list[int]) -> None:
    """Start the 1000 number embeddings as smooth codes of their values: near numbers are near from the first step."""
    with torch.no_grad():
        table = model.get_input_embeddings().weight
        table.normal_(0, 0.05)
        values = torch.arange(len(numbers)).float()[:, None] / len(numbers)
        waves = torch.arange(1, WIDTH // 2 // 2 + 1).float()
        rates = 2 * math.pi * 0.5 * (120 ** (waves / len(waves)))
        code = torch.cat([torch.sin(values * rates), torch.cos(values * rates)], dim=1)
        table[numbers, : code.shape[1]] += 0.08 * code


@dataclass
class Row:
    """One conversation about a picture: its tokens, the token each must predict (-100: none) with its weight.

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
    """One picture with its conversations, which see the picture and not each other."""

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
    """One picture of the pre-training series, for a worker process, which keeps its packer."""
    global _PACKER
    if _PACKER is None:
        torch.set_num_threads(1)
        _PACKER = Packer(PreTrainedTokenizerFast.from_pretrained(folder))
    scene = make_scene(SCENE_SEED, index)
    rng = np.random.default_rng([SCENE_SEED, 1, index])
    said = exchanges(scene, rng)
    return _PACKER.pack(scene, [said[i] for i in rng.permutation(len(said))], rng)


def make_seen(index: int) -> tuple[Tensor, dict[str, Tensor]]:
    """One picture that is only looked at: pixels, and what the tower's throw-away head must tell of it."""
    torch.set_num_threads(1)
    scene = make_scene(LOOKED_AT_SEED, index)
    return pixels(scene), targets(scene)


@dataclass
class Batch:
    """Pictures (B, 3, 192, 192) with R rows of T tokens each, one after the other behind the prefix of P tokens.

    `ids` and `positions` (B, P + R * T); `labels` and `weights` (B, R * T); `told[layer]` (places (N, 3) of picture,
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


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention of the last places (..., T, d), whose queries are scaled, to all (..., P + T, d)."""
    asks, seen = query.shape[-2], key.shape[-2]
    hidden = torch.full((asks, seen), -1e4, dtype=query.dtype).triu(seen - asks + 1)
    return (query @ key.transpose(-1, -2) + hidden).softmax(-1) @ value


class Telling:
    """Attention over `Batch`'s layout: the prefix sees itself, a row sees the prefix and itself, all causally.

    In the told layers it also scores how much of a head's attention goes where the words point.
    """

    def __init__(self) -> None:
        self.layout = (0, 0, 0)
        self.told: dict[int, tuple[Tensor, Tensor]] = {}
        self.losses: dict[int, Tensor] = {}

    def __call__(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, _mask: Any, scaling: float, **_unused: Any
    ) -> tuple[Tensor, None]:
        prefix, rows, length = self.layout
        query, key = query.to(value.dtype), key.to(value.dtype)
        pictures, heads, _, width = query.shape

        def by_row(x: Tensor) -> Tensor:
            return x[:, :, prefix:].reshape(pictures, heads, rows, length, width).transpose(1, 2)

        def with_prefix(x: Tensor) -> Tensor:
            start = x[:, None, :, :prefix].expand(-1, rows, -1, -1, -1)
            return torch.cat([start, by_row(x)], 3)

        own_query, all_key = by_row(query), with_prefix(key)
        seen = torch.ones(length, prefix + length, dtype=torch.bool).tril(prefix)
        # On a CPU this beats scaled_dot_product_attention, whose backward pass is slow for such short rows.
        with torch.autocast("cpu", enabled=False):
            first_out = attend(query[:, :, :prefix] * scaling, key[:, :, :prefix], value[:, :, :prefix])
            out = attend((own_query * scaling).flatten(0, 1), all_key.flatten(0, 1), with_prefix(value).flatten(0, 1))
        out = out.unflatten(0, (pictures, rows)).transpose(1, 2).flatten(2, 3)
        if module.layer_idx in self.told:
            (picture, row, token), where = self.told[module.layer_idx][0].T, self.told[module.layer_idx][1]
            asks = own_query[picture, row, :TOLD_HEADS, token]
            scores = torch.einsum("nhd,nhkd->nhk", asks, all_key[picture, row, :TOLD_HEADS]).float() * scaling
            looks = scores.masked_fill(~seen[token][:, None], -torch.inf).softmax(-1)
            self.losses[module.layer_idx] = -torch.log((looks * where[:, None]).sum(-1) + 1e-4).mean()
        return torch.cat([first_out, out], 2).transpose(1, 2).contiguous(), None


def text_loss(logits: Tensor, labels: Tensor, weights: Tensor, numbers: Tensor, width: float) -> tuple[Tensor, Tensor]:
    """Weighted loss and the plain one; a number's label is a Gaussian of `width` bins over its neighbours."""
    plain = F.cross_entropy(logits, labels, reduction="none")
    rank = torch.full((logits.shape[-1],), -1)
    rank[numbers] = torch.arange(len(numbers))
    value = rank[labels]
    is_number = value >= 0
    loss = plain.clone()
    if is_number.any():
        grid = torch.arange(len(numbers))[None]
        soft = torch.softmax(-((grid - value[is_number][:, None]) ** 2) / (2 * width**2), dim=-1)
        loss[is_number] = -(soft * logits[is_number].log_softmax(-1)[:, numbers]).sum(-1)
    return (loss * weights).sum() / weights.sum(), plain.mean().detach()


def fit_heads(model: FastVlmForConditionalGeneration, head: Head, inner: Head, steps: int = 200) -> None:
    """Teach the throw-away heads, which are not saved with a model, what a saved model sees; the model stays."""
    model.eval()
    optimiser = torch.optim.AdamW([*head.parameters(), *inner.parameters()], lr=1e-2)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 1e-2 * (1 - step / steps)
        images, truth = load_batch(LOOKED_AT_SEED, step * 16, 16)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            maps = model.model.vision_tower(images).last_hidden_state
            features = model.model.multi_modal_projector(maps.flatten(2).permute(0, 2, 1))
        inside = features.unflatten(1, (CELLS, CELLS)).permute(0, 3, 1, 2)
        parts = [*losses(head(maps), truth).values(), *losses(inner(inside), truth).values()]
        optimiser.zero_grad()
        torch.stack(parts).sum().backward()
        optimiser.step()


@torch.no_grad()
def held_out(
    model: FastVlmForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, scenes: int
) -> dict[str, float]:
    """By kind: share of answers whose boxes all match the truth at IoU 0.5 (one to one), or rightly say "no object"."""
    model.eval()
    model.set_attn_implementation("sdpa")
    grammar, malformed, total = AnswerGrammar(), 0, 0
    right: dict[str, list[bool]] = {}
    processor = build_processor(tokenizer)
    items = []
    for index in range(scenes):
        scene = make_scene(HELD_OUT_SEED, index)
        for e in exchanges(scene, np.random.default_rng([HELD_OUT_SEED, 1, index])):
            if e.kind not in ("list", "describe", "copy"):
                items.append((scene, e))
    for start in range(0, len(items), 64):
        chunk = items[start : start + 64]
        texts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": e.question}]}],
                add_generation_prompt=True,
                tokenize=False,
            )
            for _, e in chunk
        ]
        inputs = processor(images=[scene.image for scene, _ in chunk], text=texts, padding=True, return_tensors="pt")
        out = model.generate(**inputs, max_new_tokens=48, do_sample=False)
        answers = tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for (scene, e), answer in zip(chunk, answers, strict=True):
            parsed = grammar.parse(answer, scene.size_wh)
            truth = [scene.shapes[i].box for i in e.answer_shapes]
            boxes = [prompt.box for prompt in parsed.prompts if prompt.box is not None]
            ok = parsed.status == ("ok" if truth else "no_object") and len(boxes) == len(truth)
            ok = ok and all(max((t.iou(b) for b in boxes), default=0.0) > 0.5 for t in truth)
            right.setdefault(e.kind, []).append(ok)
            malformed += parsed.status == "malformed"
            total += 1
    figures = {kind: round(float(np.mean(values)), 3) for kind, values in right.items()}
    figures["all"] = round(float(np.mean([v for values in right.values() for v in values])), 3)
    figures["malformed"] = round(malformed / total, 4)
    return figures


def save(model: FastVlmForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    model.set_attn_implementation("sdpa")
    # Half precision halves the package; a copy, so that training goes on in full precision. The head is the embeddings.
    half = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in model.state_dict().items()
    }
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder, state_dict=half)
    build_processor(tokenizer).save_pretrained(folder)
    AutoModelForImageTextToText.from_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    begin = parser.add_mutually_exclusive_group(required=True)
    begin.add_argument("--tower", type=Path, help="tower.pt of build_tower.py, to begin with")
    begin.add_argument("--model", type=Path, help="a folder that this script saved after --first-step, to go on from")
    parser.add_argument("--first-step", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("sam4mllm/models/mllm"))
    parser.add_argument("--steps", type=int, default=4720)
    parser.add_argument("--batch", type=int, default=8, help="pictures a step")
    parser.add_argument("--looked-at", type=int, default=24, help="further pictures a step for the tower alone")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--workers", type=int, default=1, help="processes that make pictures")
    parser.add_argument("--stop-after", type=float, default=math.inf, help="seconds after which to save and stop")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    options.work.mkdir(parents=True, exist_ok=True)
    folder = options.work / "tokenizer"
    if not folder.exists():
        known = build_tokenizer() if options.model is None else AutoTokenizer.from_pretrained(options.model)
        known.save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    numbers = [tokenizer.encode(f"{n:03d}")[0] for n in range(1000)]
    number_ids = torch.tensor(numbers)
    prefix = Packer(tokenizer).prefix
    # A mask of four dimensions is handed on as it is; `Telling` knows what sees what.
    unused_mask = torch.zeros(1, 1, 1, 1)
    telling = Telling()
    AttentionInterface.register("telling", telling)
    model = build_model(tokenizer)
    order_the_numbers(model, numbers)
    tower, head = model.model.vision_tower, Head(MODEL_ARGS["channels"][-1])
    tower.to(memory_format=torch.channels_last)
    eye = {id(p) for p in tower.parameters()}
    learnt = [*model.parameters(), *head.parameters()]
    groups = [
        {
            "params": [p for p in learnt if (p.ndim >= 2) == wide and (id(p) in eye) == seeing],
            "weight_decay": 0.02 * wide,
            "share": 1.0,
        }
        for wide in (True, False)
        for seeing in (True, False)
    ]
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    # What the tower sees must come through the projector: left alone it drops whatever words do not use yet.
    inner = Head(WIDTH)
    inner_optimiser = torch.optim.AdamW(inner.parameters(), lr=2e-3)
    checkpoint, start = options.work / "last.pt", options.first_step
    if options.tower is not None:
        seen = torch.load(options.tower, weights_only=True)
        tower.timm_model.load_state_dict(seen["tower"])
        head.load_state_dict(seen["head"])
    else:
        saved = AutoModelForImageTextToText.from_pretrained(options.model, dtype=torch.float32)
        model.load_state_dict(saved.state_dict())
        if not checkpoint.exists():
            fit_heads(model, head, inner)
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        head.load_state_dict(state["head"])
        optimiser.load_state_dict(state["optimiser"])
        if "inner" in state:
            inner.load_state_dict(state["inner"])
            inner_optimiser.load_state_dict(state["inner_optimiser"])
        for group, fresh in zip(optimiser.param_groups, groups, strict=True):
            group["share"] = fresh["share"]
        start = state["step"]
    log = (options.work / "log.jsonl").open("a")
    began, counted = time.time(), 0
    sums: dict[str, float] = {}
    with ProcessPoolExecutor(options.workers) as pool:

        def ask(step: int) -> tuple[list[Any], list[Any]]:
            said = [pool.submit(make_packed, str(folder), step * options.batch + k) for k in range(options.batch)]
            seen = [pool.submit(make_seen, step * options.looked_at + k) for k in range(options.looked_at)]
            return said, seen

        waiting = [ask(start), ask(start + 1)]
        for step in range(start, options.steps):
            said, seen_only = waiting.pop(0)
            batch = collate([f.result() for f in said], prefix, tokenizer.pad_token_id)
            looked_at = [f.result() for f in seen_only]
            waiting.append(ask(step + 2))
            model.train()
            model.set_attn_implementation({"text_config": "telling"})
            progress = step / options.steps
            warm = min(1.0, (step + 1 - options.first_step) / 200)
            rate = options.learning_rate * warm * min(1.0, max((1 - progress) / 0.35, 0.01))
            for group in optimiser.param_groups:
                group["lr"] = rate * group["share"]
            telling.layout, telling.told = batch.layout, batch.told
            with torch.autocast("cpu", torch.bfloat16):
                images = torch.cat([batch.images, *(image[None] for image, _ in looked_at)])
                maps = tower(images.to(memory_format=torch.channels_last)).last_hidden_state
                spoken_of = maps[: options.batch]
                features = model.model.multi_modal_projector(spoken_of.flatten(2).permute(0, 2, 1))
                embeds = model.get_input_embeddings()(batch.ids)
                at = batch.ids == model.config.image_token_id
                embeds = embeds.masked_scatter(at[..., None], features.to(embeds.dtype))
                hidden = model.model.language_model(
                    inputs_embeds=embeds, attention_mask=unused_mask, position_ids=batch.positions, use_cache=False
                ).last_hidden_state
                on = batch.labels >= 0
                logits = model.lm_head(hidden[:, batch.layout[0] :][on]).float()
            width = 8.0 if progress < 0.5 else 4.0 if progress < 0.7 else 2.0 if progress < 0.9 else 1.0
            text, plain = text_loss(logits, batch.labels[on], batch.weights[on], number_ids, width)
            told = 0.5 if progress < 0.8 else 0.1
            facts = {name: torch.cat([batch.seen[name], *(t[name][None] for _, t in looked_at)]) for name in WIDTHS}
            told_facts = losses(head(maps), facts)
            sight = torch.stack(list(told_facts.values())).sum()
            through = torch.stack(
                list(losses(inner(features.unflatten(1, (CELLS, CELLS)).permute(0, 3, 1, 2)), batch.seen).values())
            )
            loss = text + sight + through.sum() + told * (sum(telling.losses.values()) + telling.losses[WORD_LAYER])
            optimiser.zero_grad()
            inner_optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learnt, 1.0)
            optimiser.step()
            inner_optimiser.step()
            telling.told = {}
            parts = {
                "text": text,
                "plain": plain,
                "sight": sight,
                "name": told_facts["name"],
                "through": through.sum(),
                "through_colour": through[1],
                "answer_where": telling.losses[ANSWER_LAYER],
                "link_where": telling.losses[LINK_LAYER],
                "word_where": telling.losses[WORD_LAYER],
                "phrase_where": telling.losses[PHRASE_LAYER],
            }
            counted += 1
            for name, value in parts.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach())
            stop = time.time() - began > options.stop_after
            last = step + 1 == options.steps or stop
            if (step + 1) % 50 == 0 or last:
                line: dict[str, Any] = {
                    "step": step + 1,
                    "seconds": round(time.time() - began, 1),
                    **{k: round(v / counted, 4) for k, v in sums.items()},
                }
                if (step + 1) % 500 == 0 or last:
                    line["held_out"] = held_out(model, tokenizer, 100 if last else 24)
                if (step + 1) % 250 == 0 or last:
                    state = {
                        "model": model.state_dict(),
                        "head": head.state_dict(),
                        "inner": inner.state_dict(),
                        "inner_optimiser": inner_optimiser.state_dict(),
                        "optimiser": optimiser.state_dict(),
                        "step": step + 1,
                    }
                    save_whole(state, checkpoint)
                report(log, line)
                sums, counted = {}, 0
            if stop:
                break
    save(model, tokenizer, options.output)


if __name__ == "__main__":
    main()
