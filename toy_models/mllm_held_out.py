"""The evaluation of the embedded MLLM's pre-training on held-out scenes."""

from __future__ import annotations

import re

import numpy as np
import torch
from mllm_model import build_processor
from mllm_pointing import exchanges
from mllm_text import Exchange
from transformers import FastVlmForConditionalGeneration, PreTrainedTokenizerFast

from sam4mllm.geometry import Grid
from sam4mllm.prompts.grammar import AnswerGrammar
from sam4mllm.synthetic.scenes import Scene, make_scene

HELD_OUT_SEED = 9_000_002
_POINT = re.compile(r"\((\d{3}),(\d{3})\)")


@torch.no_grad()
def held_out(
    model: FastVlmForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, scenes: int
) -> dict[str, float]:
    """Return, by kind, the mean of `score` over the exchanges about held-out scenes, half of them with shared boxes."""
    model.eval()
    model.set_attn_implementation("sdpa")
    items = []
    for index in range(scenes):
        scene = make_scene(HELD_OUT_SEED, index, shared_boxes=0.5 * (index % 2))
        about = exchanges(scene, np.random.default_rng([HELD_OUT_SEED, 1, index]))
        items += [(scene, each) for each in about if each.kind not in ("list", "describe", "copy")]
    scores: dict[str, list[float]] = {}
    for start in range(0, len(items), 64):
        chunk = items[start : start + 64]
        for (scene, exchange), answer in zip(chunk, generate(model, tokenizer, chunk), strict=True):
            scores.setdefault(exchange.kind, []).append(score(scene, exchange, answer))
    return {kind: round(float(np.mean(values)), 3) for kind, values in sorted(scores.items())}


def generate(
    model: FastVlmForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, items: list[tuple[Scene, Exchange]]
) -> list[str]:
    """Return the model's answers to the questions."""
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": exchange.question}]}],
            add_generation_prompt=True,
            tokenize=False,
        )
        for _, exchange in items
    ]
    images = [scene.image for scene, _ in items]
    inputs = build_processor(tokenizer)(images=images, text=texts, padding=True, return_tensors="pt").to(model.device)
    out = model.generate(**inputs, max_new_tokens=128, do_sample=False)
    answers: list[str] = tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return answers


def score(scene: Scene, exchange: Exchange, answer: str) -> float:
    """Return how right an answer is, from 0 to 1.

    For points, in the order of the answer, it is the share of them that are on the visible part of the shape, or off it
    for points near it; for yes/no questions, the share of right ones. Other text must be that of the pre-training.
    Boxes must be as many as the shapes, and match them with an IoU above 0.5.
    """
    if exchange.answer_points:
        parts = answer.split(";")
        flags = exchange.points_on[: len(exchange.points_on) // len(exchange.answer_shapes)]
        shares = [
            _share_of_right_points(scene, index, part, flags)
            for index, part in zip(exchange.answer_shapes, parts, strict=False)
        ]
        return sum(shares) / max(len(parts), len(exchange.answer_shapes))
    if exchange.kind == "on":
        right = [a == b for a, b in zip(answer.strip().split("; "), exchange.answer.split("; "), strict=False)]
        return sum(right) / max(len(answer.split("; ")), len(exchange.answer.split("; ")))
    if exchange.kind in ("at", "count"):
        return float(answer.strip() == exchange.answer)
    parsed = AnswerGrammar().parse(answer, scene.size_wh)
    truth = [scene.shapes[i].box for i in exchange.answer_shapes]
    boxes = [prompt.box for prompt in parsed.prompts if prompt.box is not None]
    is_right = parsed.status == ("ok" if truth else "no_object") and len(boxes) == len(truth)
    return float(is_right and all(max((t.iou(b) for b in boxes), default=0.0) > 0.5 for t in truth))


def _share_of_right_points(scene: Scene, index: int, answer: str, flags: tuple[bool, ...]) -> float:
    mask = scene.shapes[index].mask
    pixels = [Grid().to_pixels(int(x), int(y), scene.size_wh) for x, y in _POINT.findall(answer)]
    right = [bool(mask[int(y), int(x)]) == is_on for (x, y), is_on in zip(pixels, flags, strict=False)]
    return sum(right) / max(len(pixels), len(flags))
