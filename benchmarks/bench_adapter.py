r"""Compare answers with an adapter's layers and with the adapter merged into the weights: time and rounding.

    python benchmarks/bench_adapter.py --adapter runs/demo --json runs/bench-adapter.json
    python benchmarks/bench_adapter.py --base Qwen/Qwen3-VL-8B-Instruct --adapter runs/mine --dtypes bfloat16 \
        --device cuda --batch-sizes 1 8

Both models answer the same questions about `shapes` scenes by turns in one process. "same answer" is the share of
merged answers that are identical to those with the adapter's layers in the same dtype. "log p" is the mean absolute
difference of a token's log-probability in the identical answers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bench_generate import questions_of
from timing import machine, take_turns, write_json

from sam4mllm.errors import Sam4mllmError
from sam4mllm.evaluation.report import text_table
from sam4mllm.mllm.engine import Reply
from sam4mllm.mllm.loading import DType, load_mllm
from sam4mllm.mllm.lora import merge_for_inference
from sam4mllm.mllm.transformers_engine import TransformersEngine
from sam4mllm.utils.device import resolve_device


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures for each dtype and batch size."""
    device = resolve_device(options.device)
    return {
        "machine": machine(device),
        "base": options.base,
        "adapter": str(options.adapter),
        "questions": options.questions,
        "max_new_tokens": options.max_new_tokens,
        "dtypes": {dtype: compare(options, device, dtype) for dtype in options.dtypes},
    }


def compare(options: argparse.Namespace, device: str, dtype: DType) -> dict[str, dict[str, float | None]]:
    """Return the figures of one dtype by batch size."""
    unmerged, other = (load_mllm(options.base, options.adapter, device=device, dtype=dtype) for _ in range(2))
    models = {"unmerged": unmerged, "merged": merge_for_inference(other)}
    questions = questions_of(options.questions, options.seed)
    figures: dict[str, dict[str, float | None]] = {}
    for size in options.batch_sizes:
        variants = {
            name: partial(TransformersEngine(mllm, size).generate, questions, options.max_new_tokens)
            for name, mllm in models.items()
        }
        seconds, replies = take_turns(variants, options.repeats, device)
        pairs = list(zip(replies["unmerged"], replies["merged"], strict=True))
        figures[str(size)] = {
            "ms_an_answer_unmerged": 1000 * seconds["unmerged"] / options.questions,
            "ms_an_answer_merged": 1000 * seconds["merged"] / options.questions,
            "unmerged_to_merged": seconds["unmerged"] / seconds["merged"],
            "same_answer": sum(a == b for a, b in pairs) / options.questions,
            "logprob_difference": logprob_difference(pairs),
        }
    return figures


def logprob_difference(pairs: Sequence[tuple[Reply, Reply]]) -> float | None:
    """Return the mean absolute difference of the tokens' log-probabilities over identical answers; None without any."""
    differences = [
        abs(one - other)
        for a, b in pairs
        if [end for end, _ in a.tokens] == [end for end, _ in b.tokens] and a == b
        for (_, one), (_, other) in zip(a.tokens, b.tokens, strict=True)
    ]
    return sum(differences) / len(differences) if differences else None


def table(record: dict[str, Any]) -> list[str]:
    """Return the figures as text."""
    about = record["machine"]
    rows = []
    for dtype, by_size in record["dtypes"].items():
        for size, figures in by_size.items():
            difference = figures["logprob_difference"]
            rows.append(
                [
                    f"{dtype}, batch of {size}",
                    f"{figures['ms_an_answer_unmerged']:.1f}",
                    f"{figures['ms_an_answer_merged']:.1f}",
                    f"x {figures['unmerged_to_merged']:.2f}",
                    f"{100 * figures['same_answer']:.1f} %",
                    "-" if difference is None else f"{difference:.1e}",
                ]
            )
    return [
        f"{record['base']} with {record['adapter']} on {about['processor']}, {about['threads']} thread(s), "
        f"torch {about['torch']}",
        f"{record['questions']} questions, answers of at most {record['max_new_tokens']} tokens",
        "",
        *text_table(["", "ms unmerged", "ms merged", "ratio", "same answer", "log p"], rows),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, and print and write its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="shapes", help="a model folder or Hub id (default: shapes, the embedded one)")
    parser.add_argument("--adapter", type=Path, required=True, metavar="DIR", help="a LoRA adapter on it")
    parser.add_argument(
        "--dtypes", nargs="+", default=["float32", "bfloat16"], choices=("float32", "bfloat16", "float16")
    )
    parser.add_argument("--questions", type=int, default=32, metavar="N", help="default: 32")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8], metavar="N", help="default: 1 8")
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="default: 64")
    parser.add_argument(
        "--repeats", type=int, default=3, metavar="N", help="runs per model; the shortest time is reported (default: 3)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the scenes and phrases (default: 0)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    options = parser.parse_args(arguments)
    if min(options.questions, options.max_new_tokens, options.repeats, *options.batch_sizes) < 1:
        parser.error("questions, tokens, batch sizes and repeats are 1 or more")
    try:
        record = run(options)
    except Sam4mllmError as error:
        sys.exit(f"bench_adapter: error: {error}")
    print("\n".join(table(record)))
    write_json(record, options.json)


if __name__ == "__main__":
    main()
