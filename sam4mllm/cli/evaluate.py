"""`evaluate`, `score` and `calibrate`: subcommands that compare answers with annotations."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam4mllm.cli.options import (
    add_batch_option,
    add_dataset_options,
    add_device_option,
    add_dtype_option,
    add_json_option,
    add_limit_option,
    add_model_options,
    add_score_options,
    data_arguments,
    errors_name_options,
    non_negative_int,
    pipeline_arguments,
)
from sam4mllm.cli.output import STDOUT, print_summary, write_json
from sam4mllm.cli.subcommand import Subcommand
from sam4mllm.errors import DataError

if TYPE_CHECKING:
    from sam4mllm.evaluation.evaluate import Evaluation
    from sam4mllm.evaluation.score import Scores
    from sam4mllm.evaluation.tasks.base import TaskScores
    from sam4mllm.evaluation.tasks.evaluate import TaskEvaluation

_RES = "res"
_TASKS = (_RES, "rec", "region-caption", "pope", "grounded-caption")
_ONLY_WITH_MASKS: dict[str, object] = {
    "protocol": None,
    "min_pixels": 1,
    "baseline": [],
    "cases": 8,
    "chat": None,
    "chat_images": None,
}
"""Options of the task res alone, with their defaults."""


def _add_task_option(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--task",
        choices=_TASKS,
        default=_RES,
        help="res: masks of phrases (default); rec: boxes of phrases; region-caption: phrases for boxes; pope: yes/no "
        "questions; grounded-caption: captions with boxes",
    )


def _check_mask_options(options: Namespace) -> None:
    """Check that no option of the task res is given with another task.

    Raises:
        DataError: One is given.
    """
    for name, default in _ONLY_WITH_MASKS.items():
        if getattr(options, name, default) != default:
            option = f"--{name.replace('_', '-')}"
            raise DataError(f"{option}: has no meaning with --task {options.task}, which scores no masks; leave it out")


def _evaluate_options(parser: ArgumentParser) -> None:
    add_model_options(parser)
    _add_task_option(parser)
    add_dataset_options(parser, several=True, with_chat=True)
    add_score_options(parser)
    parser.add_argument(
        "--chat",
        type=Path,
        metavar="FILE",
        help="also ask the questions of a chat file, to the tuned model and to its base, and report how many answers "
        "are right",
    )
    parser.add_argument(
        "--chat-images", type=Path, metavar="DIR", help="folder of the chat file's images; default: the file's folder"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="default: evaluate/ (evaluate-TASK/) in the run folder or in runs/, with a subfolder DATASET-SPLIT if one "
        "split is named",
    )
    parser.add_argument(
        "--baseline",
        action="append",
        default=[],
        choices=("box", "filled-box"),
        help="add a row computed from the same answers: SAM with their boxes alone, or the boxes filled; may be "
        "repeated",
    )
    parser.add_argument(
        "--cases",
        type=non_negative_int,
        default=8,
        metavar="N",
        help="number of best, of median and of worst cases on the page (default: 8; 0: no page)",
    )
    add_limit_option(parser, "use only the first N phrases; the figures are not comparable with published ones")
    add_batch_option(parser)
    add_json_option(parser)


def _evaluate(options: Namespace) -> int:
    """Predict and score splits of data sets; the exit status is 1 when a query has status "error"."""
    if options.task != _RES:
        return _evaluate_task(options)
    from sam4mllm.evaluation.evaluate import evaluate

    with errors_name_options():
        evaluation = evaluate(
            options.run,
            options.adapter,
            protocol=options.protocol,
            min_pixels=options.min_pixels,
            baselines=options.baseline,
            cases=options.cases,
            chat=options.chat,
            chat_images=options.chat_images,
            **_evaluation_arguments(options),
        )
    return _report(evaluation, options)


def _evaluate_task(options: Namespace) -> int:
    """Predict and score splits for a task without masks; the exit status is 1 when a query has status "error"."""
    from sam4mllm.evaluation.tasks.evaluate import evaluate_task

    with errors_name_options():
        _check_mask_options(options)
        evaluation = evaluate_task(
            options.run,
            options.adapter,
            task=options.task,
            **_evaluation_arguments(options),
        )
    return _report(evaluation, options)


def _evaluation_arguments(options: Namespace) -> dict[str, Any]:
    """Return the arguments of `evaluate` that `evaluate_task` has as well."""
    return {
        "datasets": options.dataset,
        "splits": options.split,
        "output": options.output,
        "on_split": lambda split: print_summary(split.summary),
        "command": ["sam4mllm", *options.arguments],
        "processes": options.processes,
        **{key: value for key, value in data_arguments(options).items() if key != "split"},
        **pipeline_arguments(options),
    }


def _report(evaluation: Evaluation | TaskEvaluation, options: Namespace) -> int:
    """Print and write the results, in the main process; return the exit status."""
    if not options.processes.is_main:
        return 0
    print(f"{evaluation.results}: the scores, and everything that is needed to reproduce them", file=sys.stderr)
    if options.json != STDOUT:
        print(evaluation.report(), end="")
    write_json(evaluation.to_json(), options.json)
    return 1 if evaluation.errors else 0


def _score_options(parser: ArgumentParser) -> None:
    parser.add_argument("predictions", metavar="PREDICTIONS.jsonl", type=Path)
    _add_task_option(parser)
    add_dataset_options(parser, with_chat=True)
    add_score_options(parser)
    add_json_option(parser)


def _score(options: Namespace) -> int:
    """Score a file of predictions; the exit status is 1 when it holds no prediction of the split."""
    if options.task != _RES:
        return _score_task(options)
    from sam4mllm.evaluation.report import report
    from sam4mllm.evaluation.score import score

    with errors_name_options():
        scores = score(
            options.predictions,
            dataset=options.dataset,
            protocol=options.protocol,
            min_pixels=options.min_pixels,
            **data_arguments(options),
        )
    if options.json != STDOUT:
        print(report({options.predictions.name: scores}, beside_published=scores.comparable), end="")
    write_json(scores.to_json(), options.json)
    return _missing(scores, options, "empty masks")


def _score_task(options: Namespace) -> int:
    """Score a file of predictions for a task without masks; the exit status is as for `_score`."""
    from sam4mllm.evaluation.tasks.evaluate import score_task
    from sam4mllm.evaluation.tasks.report import task_report

    with errors_name_options():
        _check_mask_options(options)
        scores = score_task(options.predictions, task=options.task, dataset=options.dataset, **data_arguments(options))
    if options.json != STDOUT:
        print(task_report({options.predictions.name: scores}), end="")
    write_json(scores.to_json(), options.json)
    return _missing(scores, options, "wrong answers")


def _missing(scores: Scores | TaskScores, options: Namespace, counted_as: str) -> int:
    """Report queries without a prediction; return the exit status."""
    if scores.missing:
        print(
            f"{options.predictions}: no prediction for {scores.missing} of {scores.n} queries, which count as "
            f"{counted_as}",
            file=sys.stderr,
        )
    return 1 if scores.missing == scores.n else 0


def _calibrate_options(parser: ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run folder")
    add_device_option(parser)
    add_dtype_option(parser)
    add_dataset_options(parser)
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: calibration/DATASET-SPLIT in RUN")
    add_limit_option(parser)
    add_batch_option(parser)
    add_json_option(parser)


def _calibrate(options: Namespace) -> int:
    """Calibrate a run on a held-out split; the exit status is 1 when a query has status "error"."""
    from sam4mllm.evaluation.calibrate import calibrate

    with errors_name_options():
        result = calibrate(
            options.run,
            dataset=options.dataset,
            output=options.output,
            device=options.processes.device(options.device),
            dtype=options.dtype,
            batch_size=options.batch_size,
            processes=options.processes,
            **data_arguments(options),
        )
    if not options.processes.is_main:
        return 0
    print_summary(result.summary)
    if options.json != STDOUT:
        print(result.report())
    write_json(result.to_json(), options.json)
    return 1 if result.summary.error else 0


EVALUATE = Subcommand(
    "evaluate",
    "predict and score splits of data sets, and print published results beside the figures",
    _evaluate_options,
    _evaluate,
    detail="Resumes. --output holds predictions, results.json and a page of the best, median and worst cases; with "
    "more than one named split, in a subfolder DATASET-SPLIT for each.",
    distributed=True,
    resumes=True,
)

SCORE = Subcommand(
    "score",
    "score a file of predictions, made by this or any other program",
    _score_options,
    _score,
    detail="A query without a prediction counts as an empty mask, or as a wrong answer in tasks without masks. The "
    "exit status is 1 if no query has one.",
)

CALIBRATE = Subcommand(
    "calibrate",
    "calibrate the confidence scores of a run on a held-out split, as training does on its validation split",
    _calibrate_options,
    _calibrate,
    detail="Resumes. Writes RUN/calibration.json, which all later scores of the run are computed with.",
    distributed=True,
    resumes=True,
)
