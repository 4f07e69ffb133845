r"""Compare answers with an adapter's layers and with the adapter merged into the weights: time and rounding.

    python benchmarks/bench_adapter.py --adapter runs/demo --json runs/bench-adapter.json
    python benchmarks/bench_adapter.py --base Qwen/Qwen3-VL-8B-Instruct --adapter runs/mine --dtypes bfloat16 \
        --device cuda --batch-sizes 1 8

Both models answer the same questions about `shapes` scenes by turns in one process. "same" is the share of merged
answers that are identical to those with the adapter's layers in the same dtype; in half precision, rounding changes
some. "log p" is the mean absolute difference of a token's log-probability in the identical answers. Without --adapter,
a random one is compared.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from questions import questions_of, same_replies
from script import Figures, add_size, parser_of, positive, report
from timing import Row, compare

from sam4mllm.mllm.engine import Reply
from sam4mllm.mllm.loading import DType, load_mllm
from sam4mllm.mllm.lora import attach_lora, merge_for_inference
from sam4mllm.mllm.transformers_engine import TransformersEngine


def run(options: argparse.Namespace) -> Figures:
    """Return the settings, and the rows of each dtype and batch size."""
    settings = {
        "base": options.base,
        "adapter": str(options.adapter or "random"),
        "questions": options.questions,
        "max_new_tokens": options.max_new_tokens,
    }
    with tempfile.TemporaryDirectory() as folder:
        adapter = options.adapter or save_random_adapter(options.base, Path(folder))
        return settings, [row for dtype in options.dtypes for row in compare_adapters(options, adapter, dtype)]


def save_random_adapter(base: str, folder: Path) -> Path:
    """Save an adapter of rank 32 whose update is not zero, and return its folder."""
    attach_lora(load_mllm(base), {"r": 32, "init_lora_weights": False}, seed=0).model.save_pretrained(folder)
    return folder


def compare_adapters(options: argparse.Namespace, adapter: Path, dtype: DType) -> list[Row]:
    """Return the rows of one dtype."""
    unmerged, other = (load_mllm(options.base, adapter, device=options.device, dtype=dtype) for _ in range(2))
    models = {"adapter's layers": unmerged, "merged": merge_for_inference(other)}
    questions = questions_of(options.questions, options.seed)
    rows = []
    for size in options.batch_sizes:
        rows += compare(
            f"{dtype}, batch of {size}",
            {
                name: partial(TransformersEngine(mllm, size).generate, questions, options.max_new_tokens)
                for name, mllm in models.items()
            },
            items=options.questions,
            item="answer",
            repeats=options.repeats,
            device=options.device,
            same=same_replies,
            least_same=1.0 if dtype == "float32" else 0.0,
            notes=difference_of,
        )
    return rows


def difference_of(baseline: Sequence[Reply], replies: Sequence[Reply]) -> dict[str, Any]:
    """Return the difference of the log-probabilities, in the column "log p"."""
    difference = logprob_difference(list(zip(baseline, replies, strict=True)))
    return {} if difference is None else {"log p": difference}


def logprob_difference(pairs: Sequence[tuple[Reply, Reply]]) -> float | None:
    """Return the mean absolute difference of the tokens' log-probabilities over identical answers; None without any."""
    differences = [
        abs(one - other)
        for a, b in pairs
        if [end for end, _ in a.tokens] == [end for end, _ in b.tokens] and a == b
        for (_, one), (_, other) in zip(a.tokens, b.tokens, strict=True)
    ]
    return sum(differences) / len(differences) if differences else None


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, and print and write its figures."""
    parser = parser_of(__doc__)
    parser.add_argument("--base", default="shapes", help="a model folder or Hub id (default: shapes, the embedded one)")
    parser.add_argument("--adapter", type=Path, metavar="DIR", help="a LoRA adapter on it (default: a random one)")
    parser.add_argument(
        "--dtypes", nargs="+", default=["float32", "bfloat16"], choices=("float32", "bfloat16", "float16")
    )
    add_size(parser, "--questions", "questions", default=24, small=8)
    parser.add_argument("--batch-sizes", type=positive, nargs="+", default=[1, 8], metavar="N", help="default: 1 8")
    add_size(parser, "--max-new-tokens", "the longest answer", default=64, small=32)
    report(parser, run, arguments)


if __name__ == "__main__":
    main()
