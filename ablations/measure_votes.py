"""Experiment "votes": one greedy answer, or the majority of several drawn ones, by an untrained or a trained model."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import methods_table
from measure_methods import SPLITS
from methods_rows import Lines, Row, measure

from sam4mllm.data.predictions import queries_of, read_predictions
from sam4mllm.data.sample import Sample
from sam4mllm.pipeline.batch import predict
from sam4mllm.pipeline.pipeline import Pipeline
from sam4mllm.utils.progress import bar

DESCRIPTION = """Measure the gain and the cost of majority votes on held-out scenes, over several seeds of scenes.

Each row has a number of votes; 1 is the greedy answer. The model is not trained: it is the base model, asked for boxes,
or the run folder of --run, asked by its own method. Figures are means and sample standard deviations over the seeds;
the second table has the differences to one vote of the same seed. The seconds per query contain the language model and
SAM, and are left out where an earlier, interrupted start generated a part of the answers.
"""

Rows = dict[str, dict[int, Row]]
"""The rows by name and seed."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the experiment."""
    parser.add_argument("--run", help="a run folder in place of the recipe's base model")
    parser.add_argument("--votes", type=int, nargs="+", default=[1, 4, 8], metavar="N", help="default: 1 4 8")
    parser.add_argument("--temperature", type=float, help="of the drawn answers (default: that of --votes of predict)")
    parser.add_argument("--seeds", type=int, default=3, help="the seeds 0, 1, ... of the scenes (default: 3)")
    parser.add_argument("--split", choices=list(SPLITS), default="val", help="default: %(default)s")
    parser.set_defaults(scenes=1, held_out=40)


def measure_seed(
    votes: int,
    samples: Mapping[str, Sequence[Sample]],
    folder: Path,
    *,
    model: str,
    temperature: float | None,
    max_new_tokens: int,
    **options: Any,
) -> Row:
    """Answer the samples of one seed with a number of votes, and return their figures.

    Args:
        votes: The number of votes.
        samples: The samples of each data set.
        folder: The folder of this row and seed; answers that it has are not generated again.
        model: A base model or a run folder.
        temperature: Of the drawn answers; None for the default.
        max_new_tokens: The length limit of an answer.
        options: Further arguments of `Pipeline.from_pretrained`.
    """
    is_new = not folder.exists()
    drawn = {} if votes == 1 else {"votes": votes, "temperature": temperature}
    pipeline = Pipeline.from_pretrained(model, **drawn, **options)  # type: ignore[arg-type]
    pipeline.max_new_tokens = max_new_tokens
    lines: Lines = {}
    start = time.perf_counter()
    for dataset, each in samples.items():
        with bar(f"{dataset}, {name_of(votes)}", len(each), unit="phrases") as advance:
            summary = predict(pipeline, queries_of(each), folder / dataset, advance=advance)
        lines[dataset] = list(read_predictions(summary.predictions))
    seconds = (time.perf_counter() - start) / sum(map(len, samples.values()))
    return measure(lines, samples, seconds if is_new else None)


def name_of(votes: int) -> str:
    """Return the name of a row."""
    return "greedy" if votes == 1 else f"{votes} votes"


def tables(rows: Rows) -> list[str]:
    """Return the figures and the differences to the greedy answers as Markdown."""
    return methods_table.tables(rows, _pairs(rows))


def to_json(rows: Rows) -> dict[str, Any]:
    """Return the rows, their summaries and the differences to the greedy answers as plain JSON."""
    return methods_table.to_json(rows, _pairs(rows))


def _pairs(rows: Rows) -> list[tuple[str, str]]:
    return [(name, name_of(1)) for name in rows if name != name_of(1)]
