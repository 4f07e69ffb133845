r"""Time constrained decoding beside free decoding by the same engine, and count the answers that cannot be parsed.

    python benchmarks/bench_constrained.py --json runs/bench-constrained.json
    python benchmarks/bench_constrained.py --real
    python benchmarks/bench_constrained.py --base Qwen/Qwen2-VL-2B-Instruct --dtype bfloat16 --device cuda

The embedded model writes answers of the form on its own, so both give the same ones ("same"). Noise on its weights
makes some answers malformed; these differ, and have another length.

--real uses a random Qwen2.5-VL of 281 million parameters with 272 image tokens and an output layer of 151,936 tokens,
which is given the tokens of a trained model's answers wherever it has a choice.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from questions import images_and_phrases, same_replies
from real_size import load_cpu_mllm
from script import Figures, add_models, add_size, parser_of, report
from timing import Row, compare

from sam4mllm.geometry import NEGATIVE, POSITIVE, Box, Point, SamPrompt
from sam4mllm.mllm.constrained_engine import constrained_engine
from sam4mllm.mllm.constraints import answer_constraints
from sam4mllm.mllm.engine import Reply, TokenConstraint
from sam4mllm.mllm.image_size import native_coordinates
from sam4mllm.mllm.loading import Mllm, load_mllm
from sam4mllm.mllm.transformers_engine import TransformersEngine
from sam4mllm.prompts.answer_form import AnswerForm
from sam4mllm.prompts.conversation import Conversation, inference_conversation
from sam4mllm.prompts.coordinates import PLAIN
from sam4mllm.prompts.grammar import AnswerGrammar
from sam4mllm.prompts.questions import ask_prompts

POSITIVES, NEGATIVES = 2, 1
NOISE = 0.6
"""The standard deviation of the noise on a weight, relative to that of the weight's tensor."""
FREE, CONSTRAINED = "free", "constrained"
NOISY = "with noise"


class PrescribedTokens:
    """A constraint that chooses the tokens of a given answer, within another constraint if there is one."""

    def __init__(self, tokens: Sequence[int], within: TokenConstraint | None) -> None:
        self._tokens = tokens
        self._within = within
        self._position = 0

    def forced(self) -> list[int]:
        """Return the tokens that the other constraint leaves no alternative to; none without one."""
        return self._within.forced() if self._within is not None else []

    def restrict(self, logits: torch.Tensor) -> None:
        """Make the next token of the answer the most probable one, among those that the other constraint allows."""
        if self._within is not None:
            self._within.restrict(logits)
        logits[self._tokens[self._position]] += 1e9

    def accept(self, token: int) -> None:
        """Go on to the next token."""
        self._position += 1
        if self._within is not None:
            self._within.accept(token)


def time_model(name: str, mllm: Mllm, questions: Sequence[Conversation], options: argparse.Namespace) -> list[Row]:
    """Time the answers that a model generates itself; they are compared only where it writes the form on its own."""
    engine, grammar = TransformersEngine(mllm, options.batch_size), grammar_of(mllm)
    constrained = constrained_engine(engine, form_of(mllm))

    def notes(_: Sequence[Reply], replies: Sequence[Reply]) -> dict[str, Any]:
        sizes = [_size_wh(question) for question in questions]
        parsed = [grammar.parse(reply.text, size).status for reply, size in zip(replies, sizes, strict=True)]
        cut_off = sum(not reply.finished for reply in replies)
        malformed = sum(status == "malformed" and reply.finished for status, reply in zip(parsed, replies, strict=True))
        return {"malformed": malformed, "cut off": cut_off}

    return compare(
        name,
        {
            FREE: partial(engine.generate, questions, options.max_new_tokens),
            CONSTRAINED: partial(constrained.generate, questions, options.max_new_tokens),
        },
        items=len(questions),
        item="answer",
        repeats=options.repeats,
        device=options.device,
        same=None if NOISY in name else same_replies,
        notes=notes,
    )


def time_prescribed(mllm: Mllm, questions: Sequence[Conversation], options: argparse.Namespace) -> list[Row]:
    """Time the answers of a trained model, given by their tokens."""
    engine, form, tokenizer = TransformersEngine(mllm, options.batch_size), form_of(mllm), mllm.processor.tokenizer
    constraints = answer_constraints(mllm)
    answers = [
        [*tokenizer(_answer(mllm, question, index), add_special_tokens=False)["input_ids"], mllm.end_ids[-1]]
        for index, question in enumerate(questions)
    ]

    def begin(index: int, is_constrained: bool) -> TokenConstraint:
        within = constraints(form, _size_wh(questions[index])) if is_constrained else None
        return PrescribedTokens(answers[index], within)

    def generate(is_constrained: bool) -> list[Reply]:
        factories = [partial(begin, index, is_constrained) for index in range(len(questions))]
        return engine.generate(questions, max(map(len, answers)), constraints=factories)

    variants: dict[str, Callable[[], list[Reply]]] = {
        FREE: partial(generate, False),
        CONSTRAINED: partial(generate, True),
    }
    return compare(
        "random Qwen2.5-VL, answers of a trained model",
        variants,
        items=len(questions),
        item="answer",
        repeats=options.repeats,
        device=options.device,
        same=same_replies,
        notes=lambda _, replies: {"tokens": sum(map(len, answers))},
    )


def grammar_of(mllm: Mllm) -> AnswerGrammar:
    """Return the grammar of the model family's own coordinates, or of the plain ones."""
    return AnswerGrammar(native_coordinates(mllm.family.coordinates, mllm.processor) or PLAIN)


def form_of(mllm: Mllm) -> AnswerForm:
    """Return the form of answers with the default numbers of points."""
    return grammar_of(mllm).form(POSITIVES, NEGATIVES)


def add_noise(mllm: Mllm) -> Mllm:
    """Add noise to the matrices of a model, in place, and return it."""
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in mllm.model.parameters():
            if weight.ndim == 2:
                weight.add_(torch.randn_like(weight) * NOISE * weight.std())
    return mllm


def _answer(mllm: Mllm, question: Conversation, index: int) -> str:
    """Return an answer with one or two objects."""
    width, height = _size_wh(question)
    places = [(0.2 + index / 100, 0.3, POSITIVE), (0.4, 0.5, POSITIVE), (0.9, 0.1, NEGATIVE)]
    points = tuple(Point(x * width, y * height, label) for x, y, label in places)
    prompt = SamPrompt(Box(0.1 * width, 0.2 * height, 0.7 * width, 0.8 * height), points)
    return grammar_of(mllm).write([prompt] * (1 + index % 2), (width, height))


def _size_wh(question: Conversation) -> tuple[int, int]:
    assert question.image is not None
    height, width = question.image.shape[:2]  # type: ignore[union-attr]
    return width, height


def run(options: argparse.Namespace) -> Figures:
    """Return the settings, and a row for free and for constrained decoding of each model."""
    size_wh = (640, 480) if options.real else None
    scenes = images_and_phrases(-(-options.questions // 4), 4, options.seed, size_wh)
    texts_of = [(image, ask_prompts(text, POSITIVES, NEGATIVES)) for image, texts in scenes for text in texts]
    questions = [inference_conversation(image, text) for image, text in texts_of[: options.questions]]
    settings = {
        "base": "random Qwen2.5-VL" if options.real else options.base,
        "questions": len(questions),
        "batch_size": options.batch_size,
        "max_new_tokens": options.max_new_tokens,
    }
    if options.real:
        return settings, time_prescribed(load_cpu_mllm(options.work, options.device), questions, options)
    rows = []
    for name, prepare in ((options.base, lambda mllm: mllm), (f"{options.base} {NOISY}", add_noise)):
        mllm = prepare(load_mllm(options.base, options.adapter, device=options.device, dtype=options.dtype))
        rows += time_model(name, mllm, questions, options)
    return settings, rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, and print and write its figures."""
    parser = parser_of(__doc__, real=True)
    add_models(parser)
    add_size(parser, "--questions", "questions, four about an image", default=24, small=12, real=4)
    add_size(parser, "--batch-size", "answers decoded together", default=8, small=8, real=4)
    add_size(parser, "--max-new-tokens", "the longest answer", default=100, small=100)
    report(parser, run, arguments)


if __name__ == "__main__":
    main()
