"""The evaluation run: splits predicted, scored and shown, each in a folder of its own, with baselines where wanted.

    OUTPUT/predictions.jsonl (and what the batch run keeps)    the answers
    OUTPUT/baseline-box/predictions.jsonl                      SAM with their boxes alone
    OUTPUT/cases/index.html                                    the best, median and worst of them

What is there already is not computed again. This module prints nothing and knows no published figure.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam4mllm.data.queries import PredictionLine, queries_of, read_predictions
from sam4mllm.data.readers import read_dataset
from sam4mllm.data.sample import Sample
from sam4mllm.evaluate.cases import write_cases
from sam4mllm.evaluate.score import Judgement, Scores, judge, rules_for
from sam4mllm.evaluate.suite import Suite
from sam4mllm.predict.baselines import BASELINES, BOX, box_alone, filled_boxes
from sam4mllm.predict.batch import BatchSummary, predict
from sam4mllm.progress import bar
from sam4mllm.recipe_sections import DataEntry

if TYPE_CHECKING:
    from sam4mllm.predict.pipeline import Pipeline


@dataclass(frozen=True, slots=True)
class Judging:
    """How answers are judged and shown: `protocol` and `min_pixels` as in `score`; `cases` of each kind on the page.

    Raises:
        ValueError: an unknown baseline.
    """

    protocol: str | None = None
    min_pixels: int = 1
    baselines: tuple[str, ...] = ()
    cases: int = 8

    def __post_init__(self) -> None:
        if unknown := set(self.baselines).difference(BASELINES):
            raise ValueError(f"the baselines are {', '.join(BASELINES)}; got {', '.join(sorted(unknown))}")


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What came out for one split; `seconds` is this run's time, which may have found part of the work done."""

    entry: DataEntry
    summary: BatchSummary
    scores: Scores
    baselines: dict[str, Scores] = field(default_factory=dict)
    page: Path | None = None
    seconds: float = 0.0

    def rows(self, name: str) -> dict[str, Scores]:
        """The rows of the report: ours under `name`, then the baselines'."""
        return {name: self.scores, **{f"{name}, {baseline}": each for baseline, each in self.baselines.items()}}

    def to_json(self, home: Path) -> dict[str, Any]:
        """The split's part of results.json; its files by their places in the folder `home`."""
        return {
            "data": self.entry.model_dump(mode="json"),
            "scores": self.scores.to_json(),
            "baselines": {baseline: scores.to_json() for baseline, scores in self.baselines.items()},
            "statuses": {name: getattr(self.summary, name) for name in ("ok", "no_object", "malformed", "error")},
            "predictions": self.summary.predictions.relative_to(home).as_posix(),
            "page": None if self.page is None else self.page.relative_to(home).as_posix(),
            "seconds": round(self.seconds, 1),
        }


def read_suite(suite: Suite, judging: Judging) -> list[list[Sample]]:
    """The samples of each entry, found fit for their protocol before hours are spent on them.

    Raises:
        DataError: a data set cannot be read; a protocol that does not fit.
    """
    everything = []
    for entry in suite.entries:
        samples = read_dataset(
            entry.dataset, entry.root, entry.split, images=entry.images, split_by=entry.split_by, limit=entry.limit
        )
        rules_for(samples, dataset=entry.dataset, split=entry.split, protocol=judging.protocol)
        everything.append(samples)
    return everything


def evaluate_split(
    pipeline: Pipeline, entry: DataEntry, samples: list[Sample], output: Path, judging: Judging
) -> Evaluated:
    """One split predicted into `output`, scored and shown.

    Raises:
        DataError: `output` holds the predictions of other queries or another model; a protocol that does not fit.
    """
    start = time.perf_counter()
    queries = queries_of(samples)
    with bar(f"{entry.dataset} {entry.split}", len(queries), unit="phrases") as advance:
        summary = predict(pipeline, queries, output, advance=advance)

    def judged(lines: Iterable[PredictionLine]) -> Judgement:
        return judge(
            lines,
            samples,
            dataset=entry.dataset,
            split=entry.split,
            protocol=judging.protocol,
            min_pixels=judging.min_pixels,
        )

    ours = judged(read_predictions(summary.predictions))
    baselines: dict[str, Scores] = {}
    for baseline in judging.baselines:
        answers = read_predictions(summary.predictions)
        if baseline == BOX:
            with bar("box alone", len(queries), unit="phrases") as advance:
                alone = box_alone(pipeline, queries, answers, output / f"baseline-{BOX}", advance=advance)
            baselines[baseline] = judged(read_predictions(alone.predictions)).scores
        else:
            baselines[baseline] = judged(filled_boxes(answers)).scores
    page = _show(samples, summary, ours, output / "cases", entry, judging) if judging.cases else None
    return Evaluated(entry, summary, ours.scores, baselines, page, time.perf_counter() - start)


def _show(
    samples: list[Sample], summary: BatchSummary, ours: Judgement, output: Path, entry: DataEntry, judging: Judging
) -> Path:
    scores = ours.scores
    figures = {"cIoU": scores.ciou, "gIoU": scores.giou}
    said = ", ".join(f"{title} {100 * figure:.1f}" for title, figure in figures.items() if figure is not None)
    return write_cases(
        samples,
        read_predictions(summary.predictions),
        ours.by_id,
        output,
        title=f"{entry.dataset} {entry.split}: best, median and worst answers",
        summary=f"{scores.n} phrases, protocol {scores.protocol}: {said}.",
        count=judging.cases,
    )
