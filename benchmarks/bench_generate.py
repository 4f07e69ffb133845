r"""Time the generation of answers on `shapes` scenes: left-padded batches and, as the baseline, one question at a time.

    python benchmarks/bench_generate.py --questions 32 --json runs/bench-generate.json
    python benchmarks/bench_generate.py --base Qwen/Qwen2-VL-2B-Instruct --dtype bfloat16 \
        --device cuda --batch-sizes 8 32

The baseline is the engine itself with a batch of one. "same" is the share of answers that are identical to the
baseline's (in half precision some differ by rounding). "cut off" counts the answers that reached `--max-new-tokens`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from questions import questions_of, same_replies
from script import Figures, add_size, parser_of, report
from timing import compare

from sam4mllm.mllm.loading import load_mllm
from sam4mllm.mllm.transformers_engine import TransformersEngine


def run(options: argparse.Namespace) -> Figures:
    """Return the settings, and a row for each batch size."""
    mllm = load_mllm(options.base, options.adapter, device=options.device, dtype=options.dtype)
    questions = questions_of(options.questions, options.seed)
    rows = compare(
        "generate",
        {
            f"batch of {size}": partial(TransformersEngine(mllm, size).generate, questions, options.max_new_tokens)
            for size in sorted({1, *options.batch_sizes})
        },
        items=options.questions,
        item="answer",
        repeats=options.repeats,
        device=options.device,
        same=same_replies,
        least_same=1.0 if str(mllm.dtype) == "torch.float32" else 0.0,
        notes=lambda _, replies: {"cut off": sum(not reply.finished for reply in replies)},
    )
    settings = {
        "base": options.base,
        "adapter": str(options.adapter),
        "dtype": str(mllm.dtype),
        "questions": options.questions,
        "max_new_tokens": options.max_new_tokens,
    }
    return settings, rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, and print and write its figures."""
    parser = parser_of(__doc__)
    parser.add_argument("--base", default="shapes", help="a model folder or Hub id (default: shapes, the embedded one)")
    parser.add_argument("--adapter", type=Path, metavar="DIR", help="a LoRA adapter on it")
    add_size(parser, "--questions", "questions", default=32, small=16)
    add_size(parser, "--batch-sizes", "batch sizes beside 1", default=[8, 32], small=[8], nargs="+")
    add_size(parser, "--max-new-tokens", "the longest answer", default=64, small=32)
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    report(parser, run, arguments)


if __name__ == "__main__":
    main()
