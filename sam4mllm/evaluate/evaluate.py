"""The evaluation run: splits predicted, scored and shown, each in a folder of its own, with baselines where wanted.

    OUTPUT/predictions.jsonl (and what the batch run keeps)    the answers
    OUTPUT/baseline-box/predictions.jsonl                      SAM with their boxes alone
    OUTPUT/trust.png                                           how far their scores can be trusted
    OUTPUT/cases/index.html                                    the best, median and worst of them

Answering is apart from judging, which needs no model. What is there already is not answered again. This module prints
nothing but its progress and knows no published figure.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from sam4mllm.data.entry import DataEntry
from sam4mllm.data.fields import file_exists
from sam4mllm.data.predictions import PredictionLine, queries_of, read_predictions
from sam4mllm.data.registry import read_with_masks
from sam4mllm.data.sample import Sample
from sam4mllm.errors import DataError
from sam4mllm.evaluate.cases import write_cases
from sam4mllm.evaluate.reliability import ReliabilityReport, reliability_report
from sam4mllm.evaluate.score import ScoredPredictions, Scores, judge, rules_for
from sam4mllm.evaluate.suite import Suite
from sam4mllm.pipeline.baselines import BASELINES, BOX, box_alone, filled_boxes
from sam4mllm.pipeline.batch import BatchSummary, predict
from sam4mllm.utils.atomic_io import atomic_path
from sam4mllm.utils.distributed import SINGLE_PROCESS, DistributedContext
from sam4mllm.utils.progress import bar

if TYPE_CHECKING:
    from sam4mllm.pipeline.pipeline import Pipeline

TRUST = "trust.png"


@dataclass(frozen=True, slots=True)
class EvalSettings:
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
class PredictedSplit:
    """What the models made of one split: the predictions, and those of `box` where that baseline is wanted.

    `calibrated_on` names the split to which the scores were fitted; None where they were to none.
    """

    summary: BatchSummary
    alone: BatchSummary | None
    seconds: float
    calibrated_on: str | None = None


@dataclass(frozen=True, slots=True)
class EvaluatedSplit:
    """What came out for one split; `seconds` is this run's time, which may have found part of the work done.

    `calibrated_on` names the split to which the scores were fitted; None where they were to none.
    """

    entry: DataEntry
    summary: BatchSummary
    scores: Scores
    reliability: ReliabilityReport
    calibrated_on: str | None = None
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
            "trust": {"calibrated_on": self.calibrated_on, **self.reliability.to_json()},
            "statuses": {name: getattr(self.summary, name) for name in ("ok", "no_object", "malformed", "error")},
            "predictions": self.summary.predictions.relative_to(home).as_posix(),
            "page": None if self.page is None else self.page.relative_to(home).as_posix(),
            "seconds": round(self.seconds, 1),
        }


def read_suite(suite: Suite, judging: EvalSettings) -> list[list[Sample]]:
    """The samples of each entry, found fit for their protocol before hours are spent on them.

    Raises:
        DataError: a data set cannot be read; a protocol that does not fit; a data set without any of its images.
    """
    everything = []
    for entry in suite.entries:
        samples = read_with_masks(entry)
        rules_for(samples, dataset=entry.dataset, split=entry.split_name, protocol=judging.protocol)
        images = dict.fromkeys(sample.image for sample in samples)
        if not any(map(file_exists, images)):
            raise DataError(
                f"{entry.name}: none of its {len(images)} images is there (the first would be "
                f"{next(iter(images))}); name their folder by --images"
            )
        everything.append(samples)
    return everything


def predict_split(
    pipeline: Pipeline,
    entry: DataEntry,
    samples: Sequence[Sample],
    output: Path,
    judging: EvalSettings,
    processes: DistributedContext = SINGLE_PROCESS,
) -> PredictedSplit:
    """All of a split's work that needs the models: the answers, and SAM's masks of their boxes alone where wanted.

    Several processes share it.

    Raises:
        DataError: `output` holds the predictions of other queries or another model.
    """
    start = time.perf_counter()
    queries = queries_of(samples)
    with bar(f"{entry.dataset} {entry.split_name}", len(queries), unit="phrases", shown=processes.is_main) as advance:
        summary = predict(pipeline, queries, output, advance=advance, processes=processes)
    alone = None
    if BOX in judging.baselines:
        folder = output / f"baseline-{BOX}"
        with bar("box alone", len(queries), unit="phrases", shown=processes.is_main) as advance:
            answers = read_predictions(summary.predictions)
            alone = box_alone(pipeline, queries, answers, folder, advance=advance, processes=processes)
    calibrated_on = None if pipeline.calibration is None else pipeline.calibration.fitted_on
    return PredictedSplit(summary, alone, time.perf_counter() - start, calibrated_on)


def score_split(
    answered: PredictedSplit, entry: DataEntry, samples: Sequence[Sample], judging: EvalSettings
) -> EvaluatedSplit:
    """The scores of the answers and of the baselines; an image of trust and the page of cases beside the answers."""
    start = time.perf_counter()

    def judged(lines: Iterable[PredictionLine]) -> ScoredPredictions:
        return judge(
            lines,
            samples,
            dataset=entry.dataset,
            split=entry.split_name,
            protocol=judging.protocol,
            min_pixels=judging.min_pixels,
        )

    answers = list(read_predictions(answered.summary.predictions))
    ours = judged(answers)
    baselines = {}
    for baseline in judging.baselines:
        if baseline == BOX and answered.alone is not None:
            lines = read_predictions(answered.alone.predictions)
        else:
            lines = filled_boxes(answers)
        baselines[baseline] = judged(lines).scores
    folder = answered.summary.predictions.parent
    trusted = reliability_report(answers, ours)
    said = f"{entry.dataset} {entry.split_name}: {ours.scores.n} phrases, protocol {ours.scores.protocol}"
    with atomic_path(folder / TRUST) as unfinished:
        _reliability_figure(trusted, said).save(unfinished, format="PNG")
    page = _show(samples, answers, ours, folder / "cases", judging.cases) if judging.cases else None
    seconds = answered.seconds + time.perf_counter() - start
    return EvaluatedSplit(
        entry, answered.summary, ours.scores, trusted, answered.calibrated_on, baselines, page, seconds
    )


def _reliability_figure(report: ReliabilityReport, caption: str) -> Image.Image:
    """Draw the reliability diagram and the coverage curve of a split."""
    from sam4mllm.viz.plots import ReliabilityBin, draw_reliability

    objects = report.objects
    bins = [ReliabilityBin(b.low, b.high, b.n, b.score, b.right) for b in objects.bins] if objects is not None else []
    coverage = [(point.coverage, point.ciou) for point in report.coverage or ()]
    return draw_reliability(bins, coverage, ece=None if objects is None else objects.ece, caption=caption)


def _show(
    samples: Sequence[Sample], answers: Sequence[PredictionLine], ours: ScoredPredictions, folder: Path, count: int
) -> Path:
    scores = ours.scores
    figures = {"cIoU": scores.ciou, "gIoU": scores.giou}
    said = ", ".join(f"{title} {100 * figure:.1f}" for title, figure in figures.items() if figure is not None)
    return write_cases(
        samples,
        answers,
        ours.by_id,
        folder,
        title=f"{scores.dataset} {scores.split}: best, median and worst answers",
        summary=f"{scores.n} phrases, protocol {scores.protocol}: {said}.",
        count=count,
        figure=f"../{TRUST}",
    )
