"""The evaluation of one split: predictions, baselines, scores, the reliability of confidence scores, a page of cases.

    FOLDER/predictions.jsonl, job.json, shards/      the answers, as a batch job writes them
    FOLDER/baseline-box/predictions.jsonl            SAM's masks of their boxes alone
    FOLDER/reliability.png                           reliability diagram and coverage curve of their scores
    FOLDER/cases/index.html                          the best, median and worst of them

Prediction needs the models; scoring needs the predictions only. Predictions that exist are not computed again.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from sam4mllm.data.entry import DataEntry
from sam4mllm.data.predictions import PredictionLine, queries_of, read_predictions
from sam4mllm.data.sample import Sample
from sam4mllm.evaluation.cases import write_cases
from sam4mllm.evaluation.reliability import ReliabilityReport, reliability_report
from sam4mllm.evaluation.score import ScoredPredictions, Scores, score_sentences
from sam4mllm.evaluation.suite import is_comparable
from sam4mllm.pipeline.baselines import BASELINES, BOX, filled_boxes, predict_from_boxes
from sam4mllm.pipeline.batch import BatchSummary, predict
from sam4mllm.utils.distributed import SINGLE_PROCESS, DistributedContext
from sam4mllm.utils.progress import bar
from sam4mllm.viz.drawing import save_image

if TYPE_CHECKING:
    from sam4mllm.pipeline.pipeline import Pipeline

RELIABILITY_PLOT = "reliability.png"


@dataclass(frozen=True, slots=True)
class EvalSettings:
    """The settings by which predictions are scored and shown.

    Attributes:
        protocol, min_pixels: As in `score`.
        baselines: Names of `BASELINES` to compute from the same answers.
        cases: The number of best, of median and of worst cases that the page shows; 0 for no page.

    Raises:
        ValueError: A baseline is unknown.
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
    """The predictions of one split, and those of the baseline `box` if it is computed.

    `calibrated_on` names the split that the scores were calibrated on; None for scores that were not calibrated.
    """

    summary: BatchSummary
    box_summary: BatchSummary | None
    seconds: float
    calibrated_on: str | None = None


@dataclass(frozen=True, slots=True)
class EvaluatedSplit:
    """The results of one split; `seconds` is the duration of this run, shorter if some predictions existed.

    `calibrated_on` names the split that the scores were calibrated on; None for scores that were not calibrated.
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
        """Return the rows of the report: the scores under `name`, then those of the baselines."""
        return {name: self.scores, **{f"{name}, {baseline}": each for baseline, each in self.baselines.items()}}

    def to_json(self, home: Path) -> dict[str, Any]:
        """Return the split's part of results.json, with paths relative to the folder `home`."""
        return {
            "data": self.entry.model_dump(mode="json"),
            "scores": self.scores.to_json(),
            "baselines": {baseline: scores.to_json() for baseline, scores in self.baselines.items()},
            "reliability": {"calibrated_on": self.calibrated_on, **self.reliability.to_json()},
            "statuses": self.summary.statuses,
            "predictions": self.summary.predictions.relative_to(home).as_posix(),
            "page": None if self.page is None else self.page.relative_to(home).as_posix(),
            "seconds": round(self.seconds, 1),
        }


def predict_split(
    pipeline: Pipeline,
    entry: DataEntry,
    samples: Sequence[Sample],
    output: Path,
    settings: EvalSettings,
    processes: DistributedContext = SINGLE_PROCESS,
) -> PredictedSplit:
    """Compute all that needs the models for one split: the answers, and SAM's masks for their boxes alone.

    Several processes share the work.

    Raises:
        DataError: `output` holds the predictions of other queries or of another model.
    """
    start = time.perf_counter()
    queries = queries_of(samples)
    with bar(f"{entry.dataset} {entry.split_name}", len(queries), unit="phrases", shown=processes.is_main) as advance:
        summary = predict(pipeline, queries, output, advance=advance, processes=processes)
    box_summary = None
    if BOX in settings.baselines:
        folder = output / f"baseline-{BOX}"
        with bar("box alone", len(queries), unit="phrases", shown=processes.is_main) as advance:
            answers = read_predictions(summary.predictions)
            box_summary = predict_from_boxes(pipeline, queries, answers, folder, advance=advance, processes=processes)
    calibrated_on = None if pipeline.calibration is None else pipeline.calibration.fitted_on
    return PredictedSplit(summary, box_summary, time.perf_counter() - start, calibrated_on)


def score_split(
    predicted: PredictedSplit, entry: DataEntry, samples: Sequence[Sample], settings: EvalSettings
) -> EvaluatedSplit:
    """Score the answers and the baselines; write the reliability plot and the page of cases beside the answers."""
    start = time.perf_counter()
    comparable = is_comparable(entry, samples, settings.protocol)

    def scored(lines: Iterable[PredictionLine]) -> ScoredPredictions:
        result = score_sentences(
            lines,
            samples,
            dataset=entry.dataset,
            split=entry.split_name,
            protocol=settings.protocol,
            min_pixels=settings.min_pixels,
        )
        return replace(result, scores=replace(result.scores, comparable=comparable))

    # 1. The answers, which are read anew each time, since all of them may not fit into memory; and the baselines that
    #    are computed from them.
    file = predicted.summary.predictions
    ours = scored(read_predictions(file))
    baselines = {}
    for baseline in settings.baselines:
        if baseline == BOX and predicted.box_summary is not None:
            lines = read_predictions(predicted.box_summary.predictions)
        else:
            lines = filled_boxes(read_predictions(file))
        baselines[baseline] = scored(lines).scores

    # 2. The reliability of the answers' confidence scores.
    folder = file.parent
    reliability = reliability_report(read_predictions(file), ours)
    caption = f"{entry.dataset} {entry.split_name}: {ours.scores.n} phrases, protocol {ours.scores.protocol}"
    save_image(_plot_reliability(reliability, caption), folder / RELIABILITY_PLOT)

    # 3. The page of cases.
    page = None
    if settings.cases:
        page = _write_page(samples, read_predictions(file), ours, folder / "cases", settings.cases)
    return EvaluatedSplit(
        entry=entry,
        summary=predicted.summary,
        scores=ours.scores,
        reliability=reliability,
        calibrated_on=predicted.calibrated_on,
        baselines=baselines,
        page=page,
        seconds=predicted.seconds + time.perf_counter() - start,
    )


def _plot_reliability(report: ReliabilityReport, caption: str) -> Image.Image:
    """Draw the reliability diagram and the coverage curve of a split."""
    from sam4mllm.viz.plots import ReliabilityBin, draw_reliability

    objects = report.objects
    bins = [ReliabilityBin(b.low, b.high, b.n, b.score, b.right) for b in objects.bins] if objects is not None else []
    coverage = [(point.coverage, point.ciou) for point in report.coverage or ()]
    return draw_reliability(bins, coverage, ece=None if objects is None else objects.ece, caption=caption)


def _write_page(
    samples: Sequence[Sample], answers: Iterable[PredictionLine], ours: ScoredPredictions, folder: Path, count: int
) -> Path:
    scores = ours.scores
    metrics = {"cIoU": scores.ciou, "gIoU": scores.giou}
    text = ", ".join(f"{title} {100 * value:.1f}" for title, value in metrics.items() if value is not None)
    return write_cases(
        samples,
        answers,
        ours.by_id,
        folder,
        title=f"{scores.dataset} {scores.split}: best, median and worst answers",
        summary=f"{scores.n} phrases, protocol {scores.protocol}: {text}.",
        count=count,
        plot=f"../{RELIABILITY_PLOT}",
    )
