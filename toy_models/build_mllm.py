"""Pre-train the embedded MLLM: FastVLM's class with the tower of `build_tower.py`, on questions answered by boxes.

    torchrun --nproc-per-node 2 toy_models/build_mllm.py --work runs/build-mllm --tower runs/build-tower/tower.pt
    torchrun --nproc-per-node 2 toy_models/build_mllm.py --work runs/build-mllm --model FOLDER

The loss is the next-token loss on the exchanges of `mllm_pointing.py`; about two dozen of them share one sequence with
their image and do not attend to each other. Auxiliary losses are used in training only: the label of a number is a
Gaussian over neighboring bins, which narrows with time; a few attention heads are supervised to attend to the image
tokens that the words or points refer to; auxiliary heads predict the scene from the tower's and the projector's
features; the last dimensions of an image token hold the sine/cosine code of a place on its shape. Seeded and resumable
like the other scripts. The second command starts from a saved model, which may be narrower, with a new optimizer and
new auxiliary heads. With several processes, each computes its part of a batch.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from build_tower import CELLS, MODEL_ARGS, WIDTHS, Head, load_batch, losses
from building import Checkpoint, Log, Ranks, adamw, begin, build_options, learning_rate
from mllm_attention import SupervisedAttention
from mllm_held_out import held_out
from mllm_model import (
    CODE,
    PLACE_SCALE,
    WIDTH,
    build_model,
    initialize_number_embeddings,
    load_narrower,
    place_code,
    save,
)
from mllm_pointing import exchanges
from mllm_rows import (
    ANSWER_LAYER,
    LINK_LAYER,
    PHRASE_LAYER,
    TOWER_ONLY_SEED,
    WORD_LAYER,
    Batch,
    Packed,
    Packer,
    collate,
    make_packed,
    make_tower_only,
)
from mllm_text import build_tokenizer
from torch import Tensor
from transformers import AttentionInterface, FastVlmForConditionalGeneration, PreTrainedTokenizerFast

_TowerOnly = list[tuple[Tensor, dict[str, Tensor]]]
_Losses = tuple[Tensor, dict[str, Tensor]]


def text_loss(logits: Tensor, labels: Tensor, weights: Tensor, numbers: Tensor, width: float) -> tuple[Tensor, Tensor]:
    """Return the weighted loss, in which a number's label is a Gaussian of `width` bins, and the plain mean loss."""
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


def fit_heads(model: FastVlmForConditionalGeneration, head: Head, inner: Head, steps: int = 60) -> None:
    """Train the auxiliary heads, which are not saved with a model, on a saved model's frozen features."""
    model.eval()
    optimizer = torch.optim.AdamW([*head.parameters(), *inner.parameters()], lr=1e-2)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - step / steps)
        images, truth = load_batch(TOWER_ONLY_SEED, step * 16, 16)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            maps = model.model.vision_tower(images).last_hidden_state
            features = model.model.multi_modal_projector(maps.flatten(2).permute(0, 2, 1))
        inside = features.unflatten(1, (CELLS, CELLS)).permute(0, 3, 1, 2)
        parts = [*losses(head(maps), truth).values(), *losses(inner(inside), truth).values()]
        optimizer.zero_grad()
        torch.stack(parts).sum().backward()
        optimizer.step()


class Pretraining:
    """The model with its auxiliary heads, and the loss of a batch."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        numbers = [tokenizer.encode(f"{n:03d}")[0] for n in range(1000)]
        self.model = build_model(tokenizer)
        initialize_number_embeddings(self.model, numbers)
        self.head = Head(MODEL_ARGS["channels"][-1])
        # Without this head the projector would drop features of the tower that the words do not use yet.
        self.inner = Head(WIDTH)
        self._numbers = torch.tensor(numbers)
        self._tokenizer = tokenizer
        self._attention = SupervisedAttention()
        AttentionInterface.register("supervised", self._attention)
        self.model.model.vision_tower.to(memory_format=torch.channels_last)

    def load_tower(self, path: Path) -> None:
        """Start from the tower and head that build_tower.py saved."""
        saved = torch.load(path, weights_only=True)
        self.model.model.vision_tower.timm_model.load_state_dict(saved["tower"])
        self.head.load_state_dict(saved["head"])

    def load_model(self, folder: Path) -> None:
        """Start from a saved model, which may be narrower, with new auxiliary heads."""
        load_narrower(self.model, self._tokenizer, folder)
        fit_heads(self.model, self.head, self.inner)

    def loss(self, batch: Batch, tower_only: _TowerOnly, progress: float) -> _Losses:
        """Return the total loss and its parts; `progress` (0 to 1) narrows the Gaussian and the heads' supervision."""
        # 1. The forward pass; `tower_only` images go through the vision tower alone.
        model = self.model.train()
        model.set_attn_implementation({"text_config": "supervised"})
        self._attention.layout, self._attention.targets = batch.layout, batch.attention_targets
        with torch.autocast("cpu", torch.bfloat16):
            images = torch.cat([batch.images, *(image[None] for image, _ in tower_only)])
            maps = model.model.vision_tower(images.to(memory_format=torch.channels_last)).last_hidden_state
            with_text = maps[: len(batch.images)]
            features = model.model.multi_modal_projector(with_text.flatten(2).permute(0, 2, 1))
            embeds = model.get_input_embeddings()(batch.ids)
            at = batch.ids == model.config.image_token_id
            embeds = embeds.masked_scatter(at[..., None], features.to(embeds.dtype))
            hidden = model.model.language_model(
                inputs_embeds=embeds,
                # A mask of four dimensions is passed on unchanged; `SupervisedAttention` applies its own.
                attention_mask=torch.zeros(1, 1, 1, 1),
                position_ids=batch.positions,
                use_cache=False,
            ).last_hidden_state
            on = batch.labels >= 0
            logits = model.lm_head(hidden[:, batch.layout[0] :][on]).float()

        # 2. The next-token loss, and the losses of the auxiliary heads and of the supervised attention.
        width = 4.0 if progress < 0.4 else 2.0 if progress < 0.8 else 1.0
        text, plain = text_loss(logits, batch.labels[on], batch.weights[on], self._numbers, width)
        facts = {name: torch.cat([batch.facts[name], *(t[name][None] for _, t in tower_only)]) for name in WIDTHS}
        tower = losses(self.head(maps), facts)
        projector = losses(self.inner(features.unflatten(1, (CELLS, CELLS)).permute(0, 3, 1, 2)), batch.facts)
        codes = place_code(batch.facts["place"]).flatten(1, 2).flatten(2)
        place = F.mse_loss(features[..., -2 * CODE :].float() / PLACE_SCALE, codes)
        attention = self._attention.losses
        self._attention.targets = {}
        attention_sum = torch.stack(list(attention.values())).sum() + attention[WORD_LAYER]
        auxiliary = torch.stack([*tower.values(), *projector.values()]).sum()
        return text + auxiliary + 8 * place + (0.5 if progress < 0.8 else 0.1) * attention_sum, {
            "text": text,
            "plain": plain,
            "sight": torch.stack(list(tower.values())).sum(),
            "name": tower["name"],
            "through": torch.stack(list(projector.values())).sum(),
            "through_colour": projector["colour"],
            "place_code": place,
            "answer_where": attention[ANSWER_LAYER],
            "link_where": attention[LINK_LAYER],
            "word_where": attention[WORD_LAYER],
            "phrase_where": attention[PHRASE_LAYER],
            **{f"point_where_{layer}": loss for layer, loss in self._attention.point_losses.items()},
        }


def training_images(
    folder: Path, steps: range, batch: int, tower_only: int, workers: int, ranks: Ranks
) -> Iterator[tuple[list[Packed], _TowerOnly]]:
    """Yield this process's images of each step, made ahead in worker processes; they depend on the step alone."""
    mine, alone_mine = range(ranks.rank, batch, ranks.count), range(ranks.rank, tower_only, ranks.count)
    with ProcessPoolExecutor(workers) as pool:

        def submit(step: int) -> tuple[list[Future[Any]], list[Future[Any]]]:
            packed = [pool.submit(make_packed, str(folder), step * batch + k) for k in mine]
            return packed, [pool.submit(make_tower_only, step * tower_only + k) for k in alone_mine]

        waiting = [submit(step) for step in steps[:2]]
        for step in steps:
            packed, alone = waiting.pop(0)
            if step + 2 in steps:
                waiting.append(submit(step + 2))
            yield [future.result() for future in packed], [future.result() for future in alone]


def main() -> None:
    """Parse the options, make or load the tokenizer, and train."""
    parser = build_options(__doc__, steps=7400, batch=8, learning_rate=1e-3)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--tower", type=Path, help="tower.pt of build_tower.py, to start from")
    source.add_argument("--model", type=Path, help="a folder that this script saved after --first-step, to resume from")
    parser.add_argument("--first-step", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("sam4mllm/models/mllm"))
    parser.add_argument("--tower-only", type=int, default=8, help="further images per step for the tower alone")
    parser.add_argument("--workers", type=int, default=1, help="processes that generate images")
    parser.add_argument("--stop-after", type=float, default=math.inf, help="seconds after which to save and stop")
    options = parser.parse_args()
    ranks = Ranks()
    begin(options)
    folder = options.work / "tokenizer"
    if ranks.rank == 0 and not folder.exists():
        build_tokenizer(exchanges).save_pretrained(folder)
    ranks.any(False)  # The others wait for the tokenizer.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    train(options, Pretraining(tokenizer), tokenizer, folder, ranks)


def train(
    options: argparse.Namespace,
    pretraining: Pretraining,
    tokenizer: PreTrainedTokenizerFast,
    tokenizer_folder: Path,
    ranks: Ranks,
) -> None:
    """Train from the last checkpoint, the tower or the model, and save the model to `options.output`."""
    # 1. The state to start from.
    trained = [*pretraining.model.parameters(), *pretraining.head.parameters()]
    optimizer = adamw(trained, 0.02, (0.9, 0.98))
    inner_optimizer = torch.optim.AdamW(pretraining.inner.parameters(), lr=2e-3)
    modules = {"model": pretraining.model, "head": pretraining.head, "inner": pretraining.inner}
    optimizers = {"optimiser": optimizer, "inner_optimiser": inner_optimizer}
    checkpoint = Checkpoint(options.work / "last.pt", {**modules, **optimizers})
    start = checkpoint.load()
    if start == 0:
        start = options.first_step
        if options.tower is not None:
            pretraining.load_tower(options.tower)
        else:
            pretraining.load_model(options.model)

    # 2. The training steps.
    prefix = Packer(tokenizer).prefix
    log, start_time = Log(options.work), time.time()
    steps = range(start, options.steps)
    images = training_images(tokenizer_folder, steps, options.batch, options.tower_only, options.workers, ranks)
    for step, (packed, tower_only) in zip(steps, images, strict=True):
        rate = learning_rate(
            step, options.steps, options.learning_rate, warm=200, falling=0.45, first_step=options.first_step
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = collate(packed, prefix, tokenizer.pad_token_id)
        loss, parts = pretraining.loss(batch, tower_only, step / options.steps)
        optimizer.zero_grad()
        inner_optimizer.zero_grad()
        loss.backward()
        ranks.average(p.grad for p in [*trained, *pretraining.inner.parameters()] if p.grad is not None)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        inner_optimizer.step()
        log.count(parts)
        stop = ranks.any(time.time() - start_time > options.stop_after)
        last = step + 1 == options.steps or stop
        if (step + 1) % 250 == 0 or last:
            ranks.average(b for b in pretraining.model.buffers() if b.is_floating_point())
        if ranks.rank == 0 and ((step + 1) % 250 == 0 or last):
            checkpoint.save(step + 1)
        if ranks.rank == 0 and ((step + 1) % 500 == 0 or last):
            log.report(step + 1, held_out=held_out(pretraining.model, tokenizer, 100 if last else 24))
        elif ranks.rank == 0 and (step + 1) % 50 == 0:
            log.report(step + 1)
        if stop:
            break
    if ranks.rank == 0:
        save(pretraining.model, tokenizer, options.output)


if __name__ == "__main__":
    main()
