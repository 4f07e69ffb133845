"""The evaluate stage: predict and score splits of data sets, and compare the scores with published results.

OUTPUT/results.json        the scores of all splits, and all that is needed to repeat them
OUTPUT/DATASET-SPLIT/      the files of each split, see `splits.py`, with a results.json of its own;
                           OUTPUT itself where a single split is named
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Unpack, cast

from sam4mllm.data.entry import data_entry
from sam4mllm.data.readers.chat import Dialogue
from sam4mllm.data.reading import read_dialogues, read_with_masks
from sam4mllm.data.sample import Sample
from sam4mllm.errors import ArgumentError
from sam4mllm.evaluation.chat import ChatScores, ask_chat, chat_record, chat_report, score_chat
from sam4mllm.evaluation.report import evaluation_report
from sam4mllm.evaluation.results import results_record, write_results
from sam4mllm.evaluation.score import checked_protocol
from sam4mllm.evaluation.splits import EvalSettings, EvaluatedSplit, predict_split, score_split
from sam4mllm.evaluation.suite import DataOptions, Suite, check_some_image, choose_suite, home_of
from sam4mllm.pipeline.pipeline import Pipeline
from sam4mllm.pipeline.plan import PipelineOptions
from sam4mllm.utils.distributed import SINGLE_PROCESS, DistributedContext
from sam4mllm.utils.folder_lock import folder_lock


class EvaluateOptions(DataOptions, PipelineOptions, total=False):
    """Further options of `evaluate`, for reading the data sets and for loading the pipeline."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The results of an evaluation.

    Of several processes only the main one has results: in the others, `splits` is empty and `results` is None.

    Attributes:
        model: The model, as it was named.
        suite: The splits that were evaluated.
        splits: The results of each split.
        record: The content of results.json.
        results: The file results.json.
        chat: The accuracies of each model on the chat questions, if they were asked.
    """

    model: str
    suite: Suite
    splits: tuple[EvaluatedSplit, ...] = ()
    record: dict[str, Any] = field(default_factory=dict)
    results: Path | None = None
    chat: dict[str, ChatScores] = field(default_factory=dict)

    @property
    def errors(self) -> int:
        """The number of queries with the status "error" in all splits."""
        return sum(split.summary.error for split in self.splits)

    def to_json(self) -> dict[str, Any]:
        """Return what `evaluate --json` writes: the scores of the one split that was named, or else `record`."""
        if not self.suite.named:
            return self.record
        chat = {"chat": self.record["chat"]} if "chat" in self.record else {}
        return self.splits[0].scores.to_json() | chat

    def report(self) -> str:
        """Return tables of the scores beside published results, as text."""
        comparable = all(split.scores.comparable for split in self.splits)
        text = evaluation_report(self.splits, self.model, self.suite.named, comparable)
        return f"{text}\nchat {self.record['chat']['file']}\n{chat_report(self.chat)}" if self.chat else text


def evaluate(
    model: str | Path,
    adapter: str | Path | None = None,
    *,
    datasets: str | Sequence[str],
    splits: str | Sequence[str] = (),
    root: str | Path | None = None,
    output: str | Path | None = None,
    protocol: str | None = None,
    min_pixels: int = 1,
    baselines: Sequence[str] = (),
    cases: int = 8,
    chat: str | Path | None = None,
    chat_images: str | Path | None = None,
    on_split: Callable[[EvaluatedSplit], object] = lambda split: None,
    command: Sequence[str] = (),
    processes: DistributedContext = SINGLE_PROCESS,
    **options: Unpack[EvaluateOptions],
) -> Evaluation:
    """Predict and score splits of data sets. A repeated call computes only what is missing.

    Args:
        model, adapter, datasets, splits, root, options: As in `Pipeline.from_pretrained` and `choose_suite`.
        output: The folder of the results; None for evaluate/ in the run folder, or in runs/MODEL.
        protocol, min_pixels, baselines, cases: As in `EvalSettings`.
        chat, chat_images: A chat file whose questions are asked too, and the folder of its images.
        on_split, command: Called with the results of each split that is scored; the command line, for results.json.
        processes: The processes that share the work; the main one alone scores and writes.

    Raises:
        DataError: A data set cannot be read or evaluated, or `output` holds another model's predictions.
        ModelError: The model cannot be loaded.
        LaunchError: Another job writes to `output`.

    Examples:
        >>> import tempfile
        >>> from sam4mllm.synthetic.writer import write_dataset
        >>> root = Path(tempfile.mkdtemp(), "data")
        >>> write_dataset(root, scenes=1, held_out=2)
        >>> result = evaluate("shapes", datasets="refcoco", splits="testA", root=root, output=root / "out")
        >>> result.errors, result.splits[0].scores.missing, result.results.name
        (0, 0, 'results.json')
    """
    start, settings = time.perf_counter(), EvalSettings(protocol, min_pixels, tuple(dict.fromkeys(baselines)), cases)
    data_options, pipeline_options = separate_options(options)
    suite, dialogues = choose_suite(datasets, splits, root, **data_options), _read_chat(chat, chat_images)
    samples = processes.compute_on_machine(partial(read_suite, suite, settings))
    pipeline = _load_pipeline(model, adapter, pipeline_options, with_chat=chat is not None)
    folder = Path(output) if output is not None else suite.default_output(home_of(model))
    with folder_lock(folder, "evaluating", subfolders=suite.folders(Path()), active=processes.is_main):
        done = _evaluate_splits(pipeline, suite, samples, folder, settings, on_split, processes)
        answers = ask_chat(pipeline.engine, dialogues, processes) if dialogues else {}
        if not processes.is_main:
            return Evaluation(str(model), suite)
        chat_scores = {name: score_chat(pairs) for name, pairs in answers.items()}
        record = partial(results_record, pipeline, {"min_pixels": min_pixels}, model, adapter, command)
        _write_splits(record, done, suite.folders(folder))
        content = {"chat": chat_record(chat, chat_scores)} if chat is not None else {}
        content |= record(done, home=folder, seconds=time.perf_counter() - start)
        return Evaluation(str(model), suite, done, content, write_results(content, folder), chat_scores)


def _load_pipeline(
    model: str | Path, adapter: str | Path | None, options: PipelineOptions, *, with_chat: bool
) -> Pipeline:
    """Load the pipeline; for chat questions, which are asked of the base as well, the adapter is not merged."""
    if with_chat and options.get("merge_adapter") is None:
        options["merge_adapter"] = False
    return Pipeline.from_pretrained(model, adapter, **options)


def _write_splits(
    record: Callable[..., dict[str, Any]], splits: Sequence[EvaluatedSplit], folders: Sequence[Path]
) -> None:
    """Write the results of each split to its own folder."""
    for split, folder in zip(splits, folders, strict=True):
        write_results(record([split], home=folder, seconds=split.seconds), folder)


def read_suite(suite: Suite, settings: EvalSettings) -> list[list[Sample]]:
    """Read the samples of each split, and check them before the model is loaded, because predictions take hours.

    Raises:
        DataError: A data set cannot be read, does not fit the protocol, or has none of its images.
    """
    by_split = []
    for entry in suite.entries:
        samples = read_with_masks(entry)
        checked_protocol(samples, dataset=entry.dataset, split=entry.split_name, protocol=settings.protocol)
        check_some_image(entry, (sample.image for sample in samples))
        by_split.append(samples)
    return by_split


def separate_options(options: EvaluateOptions) -> tuple[DataOptions, PipelineOptions]:
    """Split the options into those of data sets and those of the pipeline."""
    given = cast(dict[str, Any], options)
    data = {key: value for key, value in given.items() if key in DataOptions.__annotations__}
    pipeline = {key: value for key, value in given.items() if key not in data}
    return cast(DataOptions, data), cast(PipelineOptions, pipeline)


def _read_chat(chat: str | Path | None, images: str | Path | None) -> list[Dialogue]:
    if chat is not None:
        return read_dialogues(data_entry("chat", path=chat, images=images))
    if images is not None:
        raise ArgumentError("chat_images", "has no meaning without chat; set chat to the chat file")
    return []


def _evaluate_splits(
    pipeline: Pipeline,
    suite: Suite,
    samples: Sequence[Sequence[Sample]],
    output: Path,
    settings: EvalSettings,
    on_split: Callable[[EvaluatedSplit], object],
    processes: DistributedContext,
) -> tuple[EvaluatedSplit, ...]:
    """Predict the splits and, in the main process, score them."""
    done = []
    for entry, folder, each in zip(suite.entries, suite.folders(output), samples, strict=True):
        predicted = predict_split(pipeline, entry, each, folder, settings, processes)
        if processes.is_main:
            done.append(score_split(predicted, entry, each, settings))
            on_split(done[-1])
    return tuple(done)
