"""`demo` and `doctor`: subcommands that check on embedded data and models that everything works on this machine."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from sam4mllm.cli.options import add_device_option, add_json_option
from sam4mllm.cli.output import STDOUT, write_json
from sam4mllm.cli.subcommand import Subcommand
from sam4mllm.utils.folder_lock import folder_lock


def _demo_options(parser: ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), metavar="DIR", help="default: runs/demo")
    parser.add_argument(
        "--full", action="store_true", help="also train PQPP on the same data, and evaluate it with and without points"
    )


def _demo(options: Namespace) -> int:
    from sam4mllm.demo import run_demo

    with folder_lock(options.output, "running the demo", subfolders=("drawings",)):
        run_demo(options.output, full=options.full)
    return 0


def _doctor_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="a model type such as qwen3_vl, or `families`, or `segmenters`; may be given several times",
    )
    add_device_option(parser)
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown, as in docs/families.md")
    add_json_option(parser)


def _doctor(options: Namespace) -> int:
    from sam4mllm.doctor.examine import examine
    from sam4mllm.doctor.report import as_markdown, as_text
    from sam4mllm.doctor.result import any_failed

    record = examine(options.only, options.device)
    if options.json != STDOUT:
        print(as_markdown(record) if options.markdown else as_text(record), end="")
    write_json(record, options.json)
    return 1 if any_failed(record["families"], record["segmenters"]) else 0


DEMO = Subcommand(
    "demo",
    "run all stages on the embedded data and models: targets, training, prediction, scores, drawings",
    _demo_options,
    _demo,
    detail="Downloads nothing. Prints a table of the base model, the tuned model with and without its points, and the "
    "oracle. Writes a run folder, predictions, scores.json and drawings.",
    resumes=True,
)

DOCTOR = Subcommand(
    "doctor",
    "check this machine: libraries, device, and every family and segmenter on small random models",
    _doctor_options,
    _doctor,
    detail="Downloads nothing. The exit status is 1 when a check fails; a check that does not apply here (n/a) does "
    "not fail.",
)
