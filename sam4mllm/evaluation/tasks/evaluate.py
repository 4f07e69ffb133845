"""Evaluation of the tasks that are scored without masks: predict and score splits, or score a file of predictions.

OUTPUT/results.json                          the scores of all splits, and all that is needed to repeat them
OUTPUT/DATASET-SPLIT/predictions.jsonl       the answers, as a batch job writes them, and a results.json of the split;
                                             OUTPUT itself where a single split is named
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Unpack

from sam4mllm.data.entry import DataEntry, data_entry
from sam4mllm.errors import ArgumentError
from sam4mllm.evaluation.evaluate import EvaluateOptions, separate_options
from sam4mllm.evaluation.results import results_record, write_results
from sam4mllm.evaluation.suite import DataOptions, Suite, check_some_image, choose_suite, home_of
from sam4mllm.evaluation.tasks.answers import AnswerLine, read_answers
from sam4mllm.evaluation.tasks.ask import TaskPredictor
from sam4mllm.evaluation.tasks.base import TaskScores, TaskSplit
from sam4mllm.evaluation.tasks.registry import read_task
from sam4mllm.evaluation.tasks.report import task_report
from sam4mllm.pipeline.batch import BatchSummary, predict
from sam4mllm.pipeline.pipeline import Pipeline
from sam4mllm.segmenters.fake import NoSegmenter
from sam4mllm.utils.device import resolve_device
from sam4mllm.utils.distributed import SINGLE_PROCESS, DistributedContext
from sam4mllm.utils.folder_lock import folder_lock
from sam4mllm.utils.progress import bar


@dataclass(frozen=True, slots=True)
class TaskEvaluatedSplit:
    """The results of one split; `seconds` is the duration of this run, shorter if some predictions existed."""

    entry: DataEntry
    summary: BatchSummary
    scores: TaskScores
    seconds: float

    def to_json(self, home: Path) -> dict[str, Any]:
        """Return the split's part of results.json, with paths relative to the folder `home`."""
        return {
            "data": self.entry.model_dump(mode="json"),
            "scores": self.scores.to_json(),
            "statuses": self.summary.statuses,
            "predictions": self.summary.predictions.relative_to(home).as_posix(),
            "seconds": round(self.seconds, 1),
        }


@dataclass(frozen=True, slots=True)
class TaskEvaluation:
    """The results of an evaluation; of several processes, only the main one has splits and files.

    Attributes:
        model: The model, as it was named.
        suite: The splits that were evaluated.
        splits: The results of each split.
        record: The content of results.json.
        results: The file results.json.
    """

    model: str
    suite: Suite
    splits: tuple[TaskEvaluatedSplit, ...] = ()
    record: dict[str, Any] = field(default_factory=dict)
    results: Path | None = None

    @property
    def errors(self) -> int:
        """The number of queries with the status "error" in all splits."""
        return sum(split.summary.error for split in self.splits)

    def to_json(self) -> dict[str, Any]:
        """Return what `evaluate --json` writes: the scores of the one split that was named, or else `record`."""
        return self.splits[0].scores.to_json() if self.suite.named else self.record

    def report(self) -> str:
        """Return a table for each split, with published results on the same data, as text."""
        return "\n".join(task_report({self.model: split.scores}) for split in self.splits)


def evaluate_task(
    model: str | Path,
    adapter: str | Path | None = None,
    *,
    task: str,
    datasets: str | Sequence[str],
    splits: str | Sequence[str] = (),
    root: str | Path | None = None,
    output: str | Path | None = None,
    on_split: Callable[[TaskEvaluatedSplit], object] = lambda split: None,
    command: Sequence[str] = (),
    processes: DistributedContext = SINGLE_PROCESS,
    **options: Unpack[EvaluateOptions],
) -> TaskEvaluation:
    """Predict and score splits of data sets for a task. A repeated call computes only what is missing.

    Args:
        model, adapter, datasets, splits, root, options: As in `evaluate`; no segmenter is loaded.
        task: "rec", "region-caption", "pope" or "grounded-caption".
        output: The folder of the results; None for evaluate-TASK/ in the run folder, or in runs/MODEL.
        on_split, command: Called with the results of each split that is scored; the command line, for results.json.
        processes: The processes that share the work; the main one alone scores and writes.

    Raises:
        ArgumentError: An unknown task, or a segmenter is given.
        DataError: A data set cannot be read or has nothing to score, or `output` holds another model's predictions.
        ModelError: The model cannot be loaded, or does not answer in this form.
        LaunchError: Another job writes to `output`.
    """
    start = time.perf_counter()
    data_options, pipeline_options = separate_options(options)
    if pipeline_options.get("segmenter") is not None:
        raise ArgumentError("segmenter", f"has no meaning for the task {task}, which needs no masks; leave it out")
    pipeline_options["segmenter"] = NoSegmenter(resolve_device(pipeline_options.get("device", "auto")))
    suite = choose_suite(datasets, splits, root, **data_options)
    items = processes.compute_on_machine(lambda: [_read(task, entry) for entry in suite.entries])
    pipeline = Pipeline.from_pretrained(model, adapter, **pipeline_options)
    predictor = TaskPredictor(pipeline, items[0].task)
    folder = Path(output) if output is not None else suite.default_output(home_of(model), f"evaluate-{task}")
    with folder_lock(folder, "evaluating", subfolders=suite.folders(Path()), active=processes.is_main):
        done = []
        for entry, home, split in zip(suite.entries, suite.folders(folder), items, strict=True):
            evaluated = _evaluate_split(predictor, entry, split, home, processes)
            if evaluated is not None:
                done.append(evaluated)
                on_split(evaluated)
        if not processes.is_main:
            return TaskEvaluation(str(model), suite)
        record = partial(results_record, pipeline, {"task": task}, model, adapter, command)
        identity = {"pipeline": predictor.identity}
        for evaluated, home in zip(done, suite.folders(folder), strict=True):
            write_results(record([evaluated], home=home, seconds=evaluated.seconds) | identity, home)
        content = record(done, home=folder, seconds=time.perf_counter() - start) | identity
        return TaskEvaluation(str(model), suite, tuple(done), content, write_results(content, folder))


def score_task(
    predictions: str | Path | Iterable[AnswerLine | Mapping[str, Any]],
    *,
    task: str,
    dataset: str,
    root: str | Path | None = None,
    split: str | None = None,
    **options: Unpack[DataOptions],
) -> TaskScores:
    """Score predictions, from this or any other program, on a split of a data set for a task.

    Args:
        predictions: A file of lines as `evaluation.tasks.answers` describes them, or its lines; one per query, in any
            order.
        task: "rec", "region-caption", "pope" or "grounded-caption".
        dataset, root, split, options: As in `score`.

    Raises:
        ArgumentError: An unknown task.
        PredictionsError: Predictions cannot be read, ids are unknown or repeated, or the scored field is missing.
        DataError: The data set cannot be read or has nothing to score.

    Examples:
        >>> import tempfile
        >>> from sam4mllm.synthetic.writer import write_dataset
        >>> root = Path(tempfile.mkdtemp(), "data")
        >>> write_dataset(root, scenes=1, held_out=2)
        >>> line = {"id": "refcoco/train/1/1", "boxes_xyxy": [[0, 0, 9, 9]]}
        >>> scores = score_task([line], task="rec", dataset="refcoco", root=root, split="train")
        >>> scores.n - scores.missing, scores.figures["acc_50"]
        (1, 0.0)
    """
    items = read_task(task, data_entry(dataset, root=root, split=split, **options))
    return items.score(read_answers(Path(predictions)) if isinstance(predictions, str | Path) else predictions)


def _read(task: str, entry: DataEntry) -> TaskSplit:
    split = read_task(task, entry)
    check_some_image(entry, (query.image for query in split.queries()))
    return split


def _evaluate_split(
    predictor: TaskPredictor, entry: DataEntry, split: TaskSplit, folder: Path, processes: DistributedContext
) -> TaskEvaluatedSplit | None:
    """Predict a split and, in the main process, score it; None in the others."""
    start, queries = time.perf_counter(), split.queries()
    title = f"{split.task}, {entry.dataset} {entry.split_name}"
    with bar(title, len(queries), unit="questions", shown=processes.is_main) as advance:
        summary = predict(predictor, queries, folder, advance=advance, processes=processes)
    if not processes.is_main:
        return None
    scores = split.score(read_answers(summary.predictions))
    return TaskEvaluatedSplit(entry, summary, scores, time.perf_counter() - start)
