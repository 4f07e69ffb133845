r"""Time PQPP's second round: yes/no questions about 25 points of a box, beside one forward pass a question.

    python benchmarks/bench_pqpp.py --json runs/bench-pqpp.json
    python benchmarks/bench_pqpp.py --real
    python benchmarks/bench_pqpp.py --base Qwen/Qwen2-VL-2B-Instruct --dtype bfloat16 --device cuda

Each question follows the same conversation about the image: the question for a box, and its answer. The baseline is the
code of transformers' examples: the processor and one forward pass for each point, and the probabilities of yes and no
as the next word. Ours computes the conversation once and scores `--batch-size` questions together, as `predict` does.
"round one and two" generates the box first: the baseline's questions compute the image anew, ours go on from the
image's cache. "same" is the share of points whose probabilities differ by at most 0.001. --real uses a random
Qwen2.5-VL of 281 million parameters with 272 image tokens.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from plain_code import generate_one, yes_probability
from questions import images_and_phrases
from real_size import load_cpu_mllm
from script import Figures, add_models, add_size, parser_of, positive, report
from timing import compare

from sam4mllm.geometry import Box, Grid, SamPrompt
from sam4mllm.methods.pqpp import GRID_XY
from sam4mllm.mllm.loading import Mllm, load_mllm
from sam4mllm.mllm.transformers_engine import TransformersEngine
from sam4mllm.prompts.conversation import Conversation, Turn, inference_conversation
from sam4mllm.prompts.coordinates import Coordinates
from sam4mllm.prompts.grammar import AnswerGrammar
from sam4mllm.prompts.questions import ask_boxes, ask_points
from sam4mllm.prompts.yes_no import YesNoQuery, YesNoQuestion

TOLERANCE = 1e-3
Probabilities = list[tuple[float, float]]


def queries_of(images: int, seed: int) -> list[YesNoQuery]:
    """Return a query with 25 questions, the grid of points of a box, for a phrase of each image."""
    grid = Grid((1000, 1000))
    grammar = AnswerGrammar(Coordinates(grid))
    rng = np.random.default_rng(seed)
    queries = []
    for image, (phrase,) in images_and_phrases(images, 1, seed):
        left, top = rng.integers(0, 500, 2).tolist()
        width, height = rng.integers(100, 500, 2).tolist()
        box = Box(left, top, left + width, top + height)
        text = grammar.write([SamPrompt(box)], (1000, 1000))
        points = [f"({round(left + x * width)},{round(top + y * height)})" for x, y in GRID_XY]
        history = Conversation(image, (Turn("user", ask_boxes(phrase)), Turn("assistant", text)))
        questions = tuple(YesNoQuestion(ask_points(text, [point]), 1) for point in points)
        queries.append(YesNoQuery(history, questions))
    return queries


def plain_scores(mllm: Mllm, queries: Sequence[YesNoQuery], max_new_tokens: int | None) -> Probabilities:
    """Return the probabilities of yes and no, one pass each; with `max_new_tokens`, the box is generated first."""
    scores = []
    for query in queries:
        if max_new_tokens is not None:
            generate_one(mllm.model, mllm.processor, _round_one(query), max_new_tokens)
        for question in query.questions:
            turns = (*query.history.turns, Turn("user", question.text))
            scores.append(yes_probability(mllm.model, mllm.processor, Conversation(query.history.image, turns)))
    return scores


def our_scores(mllm: Mllm, queries: Sequence[YesNoQuery], max_new_tokens: int | None, batch_size: int) -> Probabilities:
    """Return the same by the engine, in a session that keeps what was computed of the images in round one."""
    with TransformersEngine(mllm, batch_size).session() as engine:
        if max_new_tokens is not None:
            engine.generate([_round_one(query) for query in queries], max_new_tokens)
        scored = engine.score_answers(queries)
    return [(answer.yes, answer.no) for by_query in scored for (answer,) in by_query]


def _round_one(query: YesNoQuery) -> Conversation:
    image = query.history.image
    assert image is not None, "queries are about images"
    return inference_conversation(image, query.history.turns[0].text)


def same_scores(baseline: Probabilities, scores: Probabilities) -> float:
    """Return the share of points whose probabilities differ by at most `TOLERANCE`."""
    return float((np.abs(np.array(scores) - np.array(baseline)).max(axis=1) <= TOLERANCE).mean())


def run(options: argparse.Namespace) -> Figures:
    """Return the settings and the rows."""
    if options.real:
        mllm = load_cpu_mllm(options.work, options.device)
    else:
        mllm = load_mllm(options.base, options.adapter, device=options.device, dtype=options.dtype)
    queries = queries_of(options.images, options.seed)
    points = sum(len(query.questions) for query in queries)
    rows = []
    for work, limit in (("round two", None), ("round one and two", options.max_new_tokens)):
        if options.real and limit is not None:
            continue
        variants: dict[str, Callable[[], Probabilities]] = {
            "transformers, one pass a point": partial(plain_scores, mllm, queries, limit),
            f"sam4mllm, batch of {options.batch_size}": partial(our_scores, mllm, queries, limit, options.batch_size),
        }
        rows += compare(
            work,
            variants,
            items=points,
            item="point",
            repeats=options.repeats,
            device=options.device,
            same=same_scores,
            least_same=1.0 if str(mllm.dtype) == "torch.float32" else 0.0,
        )
    parameters = sum(weight.numel() for weight in mllm.model.parameters())
    settings = {
        "base": "random Qwen2.5-VL" if options.real else options.base,
        "parameters": f"{parameters / 1e6:.1f} M",
        "images": options.images,
    }
    return settings, rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, and print and write its figures."""
    parser = parser_of(__doc__, real=True)
    add_models(parser)
    add_size(parser, "--images", "images with a box of 25 points", default=4, small=1, real=1)
    parser.add_argument("--batch-size", type=positive, default=25, metavar="N", help="questions at once (default: 25)")
    add_size(parser, "--max-new-tokens", "the longest answer of round one", default=64, small=48)
    report(parser, run, arguments)


if __name__ == "__main__":
    main()
