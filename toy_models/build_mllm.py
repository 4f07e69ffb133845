"""Build the embedded MLLM: FastVLM's class over the tower of `build_tower.py`, pre-trained to see and to say boxes.

    python toy_models/build_mllm.py --work runs/build-mllm --tower runs/build-tower/tower.pt
    python toy_models/build_mllm.py --work runs/build-more --model sam4mllm/models/mllm --first-step 7400 --steps 12000

Next-token loss on the exchanges of `mllm_text.py`, a dozen about each image in one sequence that see the image and
not each other. Three helps leave no trace in the model: a number is learnt with its neighbours (a Gaussian over the
bins, narrower with time), a few attention heads are told which image tokens the words speak of, and throw-away heads
hold tower and projector to what is to be seen. Seeded and resumable like its siblings; the second form goes on from a
saved model, whose optimiser and throw-away heads are gone and are made anew.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from build_tower import CELLS, MODEL_ARGS, WIDTHS, Head, load_batch, losses
from building import Checkpoint, Log, adamw, begin, build_options, learning_rate
from mllm_attention import Telling
from mllm_model import WIDTH, build_model, held_out, order_the_numbers, save
from mllm_rows import (
    ANSWER_LAYER,
    LINK_LAYER,
    LOOKED_AT_SEED,
    PHRASE_LAYER,
    WORD_LAYER,
    Batch,
    Packed,
    Packer,
    collate,
    make_packed,
    make_seen,
)
from mllm_text import build_tokenizer
from torch import Tensor
from transformers import (
    AttentionInterface,
    AutoModelForImageTextToText,
    AutoTokenizer,
    FastVlmForConditionalGeneration,
    PreTrainedTokenizerFast,
)

_LookedAt = list[tuple[Tensor, dict[str, Tensor]]]
_Losses = tuple[Tensor, dict[str, Tensor]]


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


class Lesson:
    """The model with its throw-away parts, and the loss of one batch."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        numbers = [tokenizer.encode(f"{n:03d}")[0] for n in range(1000)]
        self.model = build_model(tokenizer)
        order_the_numbers(self.model, numbers)
        self.head = Head(MODEL_ARGS["channels"][-1])
        # What the tower sees must come through the projector: left alone it drops whatever words do not use yet.
        self.inner = Head(WIDTH)
        self._numbers = torch.tensor(numbers)
        self._telling = Telling()
        AttentionInterface.register("telling", self._telling)
        self.model.model.vision_tower.to(memory_format=torch.channels_last)

    def begin_with_tower(self, place: Path) -> None:
        seen = torch.load(place, weights_only=True)
        self.model.model.vision_tower.timm_model.load_state_dict(seen["tower"])
        self.head.load_state_dict(seen["head"])

    def begin_with_model(self, folder: Path) -> None:
        saved = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
        self.model.load_state_dict(saved.state_dict())
        fit_heads(self.model, self.head, self.inner)

    def learn(self, batch: Batch, looked_at: _LookedAt, progress: float) -> _Losses:
        """`progress` from 0 to 1 narrows the numbers' Gaussian, and lets the told heads go."""
        model = self.model.train()
        model.set_attn_implementation({"text_config": "telling"})
        self._telling.layout, self._telling.told = batch.layout, batch.told
        with torch.autocast("cpu", torch.bfloat16):
            images = torch.cat([batch.images, *(image[None] for image, _ in looked_at)])
            maps = model.model.vision_tower(images.to(memory_format=torch.channels_last)).last_hidden_state
            spoken_of = maps[: len(batch.images)]
            features = model.model.multi_modal_projector(spoken_of.flatten(2).permute(0, 2, 1))
            embeds = model.get_input_embeddings()(batch.ids)
            at = batch.ids == model.config.image_token_id
            embeds = embeds.masked_scatter(at[..., None], features.to(embeds.dtype))
            hidden = model.model.language_model(
                inputs_embeds=embeds,
                # A mask of four dimensions is handed on as it is; `Telling` knows what sees what.
                attention_mask=torch.zeros(1, 1, 1, 1),
                position_ids=batch.positions,
                use_cache=False,
            ).last_hidden_state
            on = batch.labels >= 0
            logits = model.lm_head(hidden[:, batch.layout[0] :][on]).float()
        width = 8.0 if progress < 0.5 else 4.0 if progress < 0.7 else 2.0 if progress < 0.9 else 1.0
        text, plain = text_loss(logits, batch.labels[on], batch.weights[on], self._numbers, width)
        facts = {name: torch.cat([batch.seen[name], *(t[name][None] for _, t in looked_at)]) for name in WIDTHS}
        sight = losses(self.head(maps), facts)
        through = losses(self.inner(features.unflatten(1, (CELLS, CELLS)).permute(0, 3, 1, 2)), batch.seen)
        where = self._telling.losses
        self._telling.told = {}
        told = torch.stack(list(where.values())).sum() + where[WORD_LAYER]
        seen = torch.stack([*sight.values(), *through.values()]).sum()
        return text + seen + (0.5 if progress < 0.8 else 0.1) * told, {
            "text": text,
            "plain": plain,
            "sight": torch.stack(list(sight.values())).sum(),
            "name": sight["name"],
            "through": torch.stack(list(through.values())).sum(),
            "through_colour": through["colour"],
            "answer_where": where[ANSWER_LAYER],
            "link_where": where[LINK_LAYER],
            "word_where": where[WORD_LAYER],
            "phrase_where": where[PHRASE_LAYER],
        }


def images(
    folder: Path, steps: range, batch: int, looked_at: int, workers: int
) -> Iterator[tuple[list[Packed], _LookedAt]]:
    """What each step learns from, made ahead in processes of their own; it depends on the step alone."""
    with ProcessPoolExecutor(workers) as pool:

        def ask(step: int) -> tuple[list[Future[Any]], list[Future[Any]]]:
            said = [pool.submit(make_packed, str(folder), step * batch + k) for k in range(batch)]
            return said, [pool.submit(make_seen, step * looked_at + k) for k in range(looked_at)]

        waiting = [ask(step) for step in steps[:2]]
        for step in steps:
            said, seen = waiting.pop(0)
            if step + 2 in steps:
                waiting.append(ask(step + 2))
            yield [future.result() for future in said], [future.result() for future in seen]


def main() -> None:
    parser = build_options(__doc__, steps=7400, batch=8, learning_rate=1e-3)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--tower", type=Path, help="tower.pt of build_tower.py, to begin with")
    source.add_argument("--model", type=Path, help="a folder that this script saved after --first-step, to go on from")
    parser.add_argument("--first-step", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("sam4mllm/models/mllm"))
    parser.add_argument("--looked-at", type=int, default=8, help="further images a step for the tower alone")
    parser.add_argument("--workers", type=int, default=1, help="processes that make images")
    parser.add_argument("--stop-after", type=float, default=math.inf, help="seconds after which to save and stop")
    options = parser.parse_args()
    begin(options)
    folder = options.work / "tokenizer"
    if not folder.exists():
        known = build_tokenizer() if options.model is None else AutoTokenizer.from_pretrained(options.model)
        known.save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    prefix = Packer(tokenizer).prefix
    lesson = Lesson(tokenizer)
    learnt = [*lesson.model.parameters(), *lesson.head.parameters()]
    optimiser = adamw(learnt, 0.02, (0.9, 0.98))
    inner_optimiser = torch.optim.AdamW(lesson.inner.parameters(), lr=2e-3)
    checkpoint = Checkpoint(
        options.work / "last.pt",
        {
            "model": lesson.model,
            "head": lesson.head,
            "inner": lesson.inner,
            "optimiser": optimiser,
            "inner_optimiser": inner_optimiser,
        },
    )
    start = checkpoint.load()
    if start == 0:
        start = options.first_step
        if options.tower is not None:
            lesson.begin_with_tower(options.tower)
        else:
            lesson.begin_with_model(options.model)
    log, began = Log(options.work), time.time()
    steps = range(start, options.steps)
    ready = images(folder, steps, options.batch, options.looked_at, options.workers)
    for step, (packed, looked_at) in zip(steps, ready, strict=True):
        rate = learning_rate(
            step, options.steps, options.learning_rate, warm=200, falling=0.35, first_step=options.first_step
        )
        for group in optimiser.param_groups:
            group["lr"] = rate
        batch = collate(packed, prefix, tokenizer.pad_token_id)
        loss, parts = lesson.learn(batch, looked_at, step / options.steps)
        optimiser.zero_grad()
        inner_optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learnt, 1.0)
        optimiser.step()
        inner_optimiser.step()
        log.count(parts)
        stop = time.time() - began > options.stop_after
        last = step + 1 == options.steps or stop
        if (step + 1) % 250 == 0 or last:
            checkpoint.save(step + 1)
        if (step + 1) % 500 == 0 or last:
            log.report(step + 1, held_out=held_out(lesson.model, tokenizer, 100 if last else 24))
        elif (step + 1) % 50 == 0:
            log.report(step + 1)
        if stop:
            break
    save(lesson.model, tokenizer, options.output)


if __name__ == "__main__":
    main()
