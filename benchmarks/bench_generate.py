r"""Time the generation of answers on `shapes` scenes: left-padded batches and, as the baseline, one question at a time.

    python benchmarks/bench_generate.py --questions 32 --json runs/bench-generate.json
    python benchmarks/bench_generate.py --base Qwen/Qwen2-VL-2B-Instruct --dtype bfloat16 \
        --device cuda --batch-sizes 1 8 32

The baseline is the engine itself with a batch of one. "same answer" is the share of answers that are identical to the
baseline's (in half precision some differ by rounding). "cut off" counts the answers that reached `--max-new-tokens`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from operator import eq
from pathlib import Path
from typing import Any

import numpy as np
from timing import machine, take_turns, write_json

from sam4mllm.errors import Sam4mllmError
from sam4mllm.evaluation.report import text_table
from sam4mllm.mllm.loading import load_mllm
from sam4mllm.mllm.transformers_engine import TransformersEngine
from sam4mllm.prompts.conversation import Conversation, inference_conversation
from sam4mllm.prompts.questions import ask_boxes
from sam4mllm.synthetic.phrases import phrases_of
from sam4mllm.synthetic.scenes import make_scene
from sam4mllm.utils.device import resolve_device

PHRASES = 4
"""Questions per image."""


def questions_of(count: int, seed: int) -> list[Conversation]:
    """Return `count` questions about scenes, at most `PHRASES` per scene, of two kinds so that their lengths differ."""
    questions: list[Conversation] = []
    number = 0
    while len(questions) < count:
        scene, rng = make_scene(seed, number), np.random.default_rng([seed, number, 1])
        for kind in ("attribute", "relation") * (PHRASES // 2):
            phrase = phrases_of(scene, rng, kind)
            if phrase is not None:
                questions.append(inference_conversation(scene.image, ask_boxes(phrase.text)))
        number += 1
    return questions[:count]


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures: milliseconds per answer for each batch size."""
    device = resolve_device(options.device)
    mllm = load_mllm(options.base, options.adapter, device=device, dtype=options.dtype)
    questions = questions_of(options.questions, options.seed)
    sizes = {str(size): size for size in sorted({1, *options.batch_sizes})}
    variants = {
        name: partial(TransformersEngine(mllm, size).generate, questions, options.max_new_tokens)
        for name, size in sizes.items()
    }
    seconds, replies = take_turns(variants, options.repeats, device)
    return {
        "machine": machine(device),
        "base": options.base,
        "adapter": None if options.adapter is None else str(options.adapter),
        "dtype": str(mllm.dtype),
        "questions": options.questions,
        "max_new_tokens": options.max_new_tokens,
        "batch_sizes": {
            name: {
                "ms_an_answer": 1000 * seconds[name] / options.questions,
                "times_faster_than_1": seconds["1"] / seconds[name],
                "same_answer": sum(map(eq, replies[name], replies["1"])) / options.questions,
                "cut_off": sum(not reply.finished for reply in replies[name]),
            }
            for name in variants
        },
    }


def table(record: dict[str, Any]) -> list[str]:
    """Return the figures as text; x 2.0 is twice as fast."""
    about = record["machine"]
    rows = [
        [
            f"batch of {name}",
            f"{figures['ms_an_answer']:.1f}",
            f"x {figures['times_faster_than_1']:.1f}",
            f"{100 * figures['same_answer']:.1f} %",
            str(figures["cut_off"]),
            "",
        ]
        for name, figures in record["batch_sizes"].items()
    ]
    model = record["base"] + ("" if record["adapter"] is None else f" with {record['adapter']}")
    return [
        f"{model} ({record['dtype']}) on {about['processor']}, {about['threads']} thread(s), torch {about['torch']}",
        f"{record['questions']} questions, answers of at most {record['max_new_tokens']} tokens",
        "",
        *text_table(["", "ms per answer", "to a batch of 1", "same answer", "cut off", ""], rows),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, and print and write its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="shapes", help="a model folder or Hub id (default: shapes, the embedded one)")
    parser.add_argument("--adapter", type=Path, metavar="DIR", help="a LoRA adapter on it")
    parser.add_argument("--questions", type=int, default=32, metavar="N", help="default: 32")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32], metavar="N", help="default: 1 8 32")
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="default: 64")
    parser.add_argument(
        "--repeats", type=int, default=2, metavar="N", help="runs per size; the shortest time is reported"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the scenes and phrases (default: 0)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    options = parser.parse_args(arguments)
    if min(options.questions, options.max_new_tokens, options.repeats, *options.batch_sizes) < 1:
        parser.error("questions, tokens, batch sizes and repeats are 1 or more")
    try:
        record = run(options)
    except Sam4mllmError as error:
        sys.exit(f"bench_generate: error: {error}")
    print("\n".join(table(record)))
    write_json(record, options.json)


if __name__ == "__main__":
    main()
