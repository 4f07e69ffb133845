"""Pre-train the embedded MLLM: FastVLM's class with the tower of `build_tower.py`, on questions answered by boxes.

    torchrun --nproc-per-node 2 toy_models/build_mllm.py --work runs/build-mllm --tower runs/build-tower/tower.pt
    python toy_models/build_mllm.py --work runs/build-mllm --model FOLDER --device cuda --batch 128 --seconds 360 \
        --workers 15 --passes 2 --falling 0.8

The loss is the next-token loss on the exchanges of `mllm_pointing.py`; about two dozen of them share one sequence with
their image and do not attend to each other. Auxiliary losses are used in training only: the label of a number is a
Gaussian over neighboring bins, which narrows with time; a few attention heads are supervised to attend to the image
tokens that the words or points refer to; auxiliary heads predict the scene from the tower's and the projector's
features; the last dimensions of an image token hold the sine/cosine code of a place on its shape. Seeded and resumable
like the other scripts. The second command starts a further stage from a saved model, which may be narrower, with a new
optimizer and new auxiliary heads; its schedule lasts a given time. With several processes, each computes its part of a
batch.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

import torch
import torch.nn.functional as F
from build_tower import CELLS, MODEL_ARGS, Head, load_batch, losses
from building import Checkpoint, Log, Ranks, adamw, begin, build_options, learning_rate
from mllm_attention import SupervisedAttention
from mllm_batches import Arrays, Batch, make_batch
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
from mllm_rows import ANSWER_LAYER, LINK_LAYER, PHRASE_LAYER, TOWER_ONLY_SEED, WORD_LAYER
from mllm_text import build_tokenizer
from torch import Tensor
from transformers import AttentionInterface, FastVlmForConditionalGeneration, PreTrainedTokenizerFast

_Losses = tuple[Tensor, dict[str, Tensor]]


def text_loss(logits: Tensor, labels: Tensor, weights: Tensor, numbers: Tensor, width: float) -> tuple[Tensor, Tensor]:
    """Return the weighted loss, in which a number's label is a Gaussian of `width` bins, and the plain mean loss."""
    plain = F.cross_entropy(logits, labels, reduction="none")
    grid = torch.arange(len(numbers), device=logits.device)
    rank = torch.full((logits.shape[-1],), -1, device=logits.device)
    rank[numbers] = grid
    value = rank[labels]
    is_number = value >= 0
    loss = plain.clone()
    if is_number.any():
        soft = torch.softmax(-((grid[None] - value[is_number][:, None]) ** 2) / (2 * width**2), dim=-1)
        loss[is_number] = -(soft * logits[is_number].log_softmax(-1)[:, numbers]).sum(-1)
    return (loss * weights).sum() / weights.sum(), plain.mean().detach()


def fit_heads(model: FastVlmForConditionalGeneration, head: Head, inner: Head, steps: int = 60) -> None:
    """Train the auxiliary heads, which are not saved with a model, on a saved model's frozen features."""
    model.eval()
    device = model.device
    optimizer = torch.optim.AdamW([*head.parameters(), *inner.parameters()], lr=1e-2)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - step / steps)
        images, facts = load_batch(TOWER_ONLY_SEED, step * 16, 16)
        truth = {name: fact.to(device) for name, fact in facts.items()}
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
            maps = model.model.vision_tower(images.to(device)).last_hidden_state
            features = model.model.multi_modal_projector(maps.flatten(2).permute(0, 2, 1))
        inside = features.unflatten(1, (CELLS, CELLS)).permute(0, 3, 1, 2)
        parts = [*losses(head(maps), truth).values(), *losses(inner(inside), truth).values()]
        optimizer.zero_grad()
        torch.stack(parts).sum().backward()
        optimizer.step()


class Pretraining:
    """The model with its auxiliary heads, and the loss of a batch."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, device: torch.device) -> None:
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
        self._device = device
        for module in (self.model, self.head, self.inner):
            module.to(device)
        self._numbers = self._numbers.to(device)
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

    def loss(self, arrays: Arrays, progress: float) -> _Losses:
        """Return the total loss of a batch and its parts; `progress` (0 to 1) narrows the Gaussian and the supervision.

        The images beyond those with rows go through the vision tower alone.
        """
        # 1. The forward pass.
        batch = Batch.of_arrays(arrays, self._device)
        model = self.model.train()
        model.set_attn_implementation({"text_config": "supervised"})
        self._attention.layout, self._attention.targets = batch.layout, batch.attention_targets
        with torch.autocast(self._device.type, torch.bfloat16):
            maps = model.model.vision_tower(batch.images).last_hidden_state
            with_text = maps[: len(batch.ids)]
            features = model.model.multi_modal_projector(with_text.flatten(2).permute(0, 2, 1))
            embeds = model.get_input_embeddings()(batch.ids)
            at = batch.ids == model.config.image_token_id
            embeds = embeds.masked_scatter(at[..., None], features.to(embeds.dtype))
            hidden = model.model.language_model(
                inputs_embeds=embeds,
                # A mask of four dimensions is passed on unchanged; `SupervisedAttention` applies its own.
                attention_mask=torch.zeros(1, 1, 1, 1, device=self._device),
                position_ids=batch.positions,
                use_cache=False,
            ).last_hidden_state
            on = batch.labels >= 0
            logits = model.lm_head(hidden[:, batch.layout[0] :][on]).float()

        # 2. The next-token loss, and the losses of the auxiliary heads and of the supervised attention.
        width = 4.0 if progress < 0.4 else 2.0 if progress < 0.8 else 1.0
        text, plain = text_loss(logits, batch.labels[on], batch.weights[on], self._numbers, width)
        facts = {name: fact[: len(batch.ids)] for name, fact in batch.facts.items()}
        tower = losses(self.head(maps), batch.facts)
        projector = losses(self.inner(features.unflatten(1, (CELLS, CELLS)).permute(0, 3, 1, 2)), facts)
        codes = place_code(facts["place"]).flatten(1, 2).flatten(2)
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


def training_batches(folder: Path, first: int, options: argparse.Namespace, ranks: Ranks) -> Iterator[Arrays]:
    """Yield this process's part of the batches from number `first` on, made ahead in worker processes.

    A batch depends on its number alone. While no new one is ready, recent ones are yielded again, so that each is used
    at most `options.passes` times.
    """
    mine, alone = (range(ranks.rank, count, ranks.count) for count in (options.batch, options.tower_only))
    with ProcessPoolExecutor(options.workers) as pool:

        def submit(number: int) -> Future[Arrays]:
            indexes = [number * options.batch + k for k in mine]
            return pool.submit(make_batch, str(folder), indexes, [number * options.tower_only + k for k in alone])

        ahead = options.workers + 1
        waiting = deque(submit(first + k) for k in range(ahead))
        again: deque[Arrays] = deque(maxlen=16)
        try:
            for number in itertools.count(first + ahead):
                while again and not waiting[0].done():
                    yield again.popleft()
                arrays = waiting.popleft().result()
                waiting.append(submit(number))
                again.extend([arrays] * (options.passes - 1))
                yield arrays
        finally:
            pool.shutdown(cancel_futures=True)


def main() -> None:
    """Parse the options, make or load the tokenizer, and train."""
    parser = build_options(__doc__, steps=7400, batch=8, learning_rate=1e-3)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--tower", type=Path, help="tower.pt of build_tower.py, to start from")
    source.add_argument("--model", type=Path, help="a folder that this script saved after --first-step, to go on from")
    parser.add_argument("--tokenizer", type=Path, help="a folder with the tokenizer; by default one is trained")
    parser.add_argument("--first-step", type=int, default=0, help="the number of the first batch")
    parser.add_argument("--output", type=Path, default=Path("sam4mllm/models/mllm"))
    parser.add_argument("--tower-only", type=int, default=8, help="further images per step for the tower alone")
    parser.add_argument("--workers", type=int, default=1, help="processes that generate images")
    parser.add_argument("--passes", type=int, default=1, help="how often a batch is used if no new one is ready")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--warm", type=int, default=200, help="steps over which the learning rate rises")
    parser.add_argument("--falling", type=float, default=0.45, help="the last share of the stage, where the rate falls")
    parser.add_argument("--seconds", type=float, help="the length of the stage as time, in place of --steps")
    parser.add_argument("--held-out", type=int, default=24, help="scenes on which the model is tested while it trains")
    options = parser.parse_args()
    ranks = Ranks()
    begin(options)
    folder = options.tokenizer or options.work / "tokenizer"
    if ranks.rank == 0 and not folder.exists():
        build_tokenizer(exchanges).save_pretrained(folder)
    ranks.any(False)  # The others wait for the tokenizer.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    train(options, Pretraining(tokenizer, torch.device(options.device)), tokenizer, folder, ranks)


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

    # 2. The training steps. A further stage begins with the Gaussian and the supervision of the second fifth.
    log, start_time = Log(options.work), time.time()
    done_before = 0.4 if options.model else 0.0
    for step, arrays in enumerate(training_batches(tokenizer_folder, start, options, ranks), start):
        of_stage = step - options.first_step
        progress = of_stage / (options.steps - options.first_step)
        if options.seconds is not None:
            progress = (time.time() - start_time) / options.seconds
        rate = learning_rate(of_stage, progress, options.learning_rate, warm=options.warm, falling=options.falling)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss, parts = pretraining.loss(arrays, done_before + (1 - done_before) * progress)
        optimizer.zero_grad()
        inner_optimizer.zero_grad()
        loss.backward()
        ranks.average(p.grad for p in [*trained, *pretraining.inner.parameters()] if p.grad is not None)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        inner_optimizer.step()
        log.count(parts)
        last = ranks.any(time.time() - start_time > options.seconds if options.seconds else step + 1 == options.steps)
        if (step + 1) % 250 == 0 or last:
            ranks.average(b for b in pretraining.model.buffers() if b.is_floating_point())
        if ranks.rank == 0 and ((step + 1) % 250 == 0 or last):
            checkpoint.save(step + 1)
        if ranks.rank == 0 and options.held_out and ((step + 1) % 500 == 0 or last):
            log.report(step + 1, rate=rate, held_out=held_out(pretraining.model, tokenizer, options.held_out))
        elif ranks.rank == 0 and ((step + 1) % 50 == 0 or last):
            log.report(step + 1, rate=rate)
        if last:
            break
    if ranks.rank == 0:
        save(pretraining.model, tokenizer, options.output)


if __name__ == "__main__":
    main()
