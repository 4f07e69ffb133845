"""The entry point `sam4mllm`: parses a command line, runs one subcommand and turns errors into exit statuses.

A new subcommand is a `Subcommand` in a file of this folder and one row of `SUBCOMMANDS`.
"""

from __future__ import annotations

import argparse
import os
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from sam4mllm import __version__
from sam4mllm.cli import app, ask, datasets, demo, evaluate, export, label_studio, predict, prepare, push, train
from sam4mllm.cli.overwriting import check_outputs
from sam4mllm.cli.subcommand import Parser, Subcommand, did_you_mean
from sam4mllm.errors import LaunchError, Sam4mllmError
from sam4mllm.utils.distributed import join_processes
from sam4mllm.utils.interruption import INTERRUPTED, INTERRUPTED_LINE, exit_soon_after_interrupt
from sam4mllm.utils.library_logging import silence_libraries

SUBCOMMANDS: Mapping[str, Subcommand] = MappingProxyType(
    {
        subcommand.name: subcommand
        for subcommand in (
            demo.DEMO,
            prepare.PREPARE,
            prepare.INSPECT,
            train.TRAIN,
            predict.SEGMENT,
            predict.PREDICT,
            ask.ASK,
            app.APP,
            evaluate.EVALUATE,
            evaluate.CALIBRATE,
            evaluate.SCORE,
            export.EXPORT,
            label_studio.LABEL_STUDIO,
            datasets.CHECK,
            datasets.CONVERT,
            train.MERGE,
            push.PUSH,
            demo.DOCTOR,
            datasets.SHAPES,
        )
    }
)
"""Every subcommand by name, in the order of `sam4mllm --help`."""


def build_parser() -> Parser:
    """Build the parser of the command line with all subcommands."""
    parser = Parser(
        prog="sam4mllm",
        description="Fine-tune a multimodal LLM for referring expression segmentation: it generates the locations of "
        "objects, as plain text or as embeddings, and SAM turns them into masks.",
        epilog="Try it: sam4mllm demo, then: sam4mllm segment runs/demo IMAGE.jpg 'the red ring' -o out.png",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"sam4mllm {__version__}")
    parser.add_argument("--traceback", action="store_true", help="show the whole traceback of an error")
    subparsers = parser.add_subparsers(dest="subcommand", metavar="SUBCOMMAND", required=True, parser_class=Parser)
    for subcommand in SUBCOMMANDS.values():
        subcommand.add_to(subparsers)
    return parser


def parse(arguments: Sequence[str]) -> Namespace:
    """Parse a command line; a mistyped subcommand or option exits with status 2 and names the nearest known one."""
    parser = build_parser()
    name = next((argument for argument in arguments if not argument.startswith("-")), None)
    if name is not None and name not in SUBCOMMANDS:
        parser.error(f"unknown subcommand {name!r}{did_you_mean(name, list(SUBCOMMANDS))}")
    options, rest = parser.parse_known_args(arguments)
    if "overrides" in options:
        # argparse ends a list of positionals at the first option; those after it belong to the list as well.
        options.overrides += [argument for argument in rest if not argument.startswith("-")]
        rest = [argument for argument in rest if argument.startswith("-")]
    options.arguments = list(arguments)
    if rest:
        subparsers = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
        subparser = subparsers.choices[options.subcommand]
        nearest = did_you_mean(rest[0].partition("=")[0], subparser.option_names())
        subparser.error(f"unknown argument {rest[0]!r}{nearest}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Returns:
        The exit status: 0; 1 when some queries have status "error", a checked data set has problems, or a scored file
        has no prediction; 2 for an error that the user can fix; 130 when interrupted; 141 when the reader of standard
        output has closed it.
    """
    interrupted = INTERRUPTED_LINE
    options = Namespace(traceback=False)
    try:
        options = parse(sys.argv[1:] if arguments is None else arguments)
        subcommand = SUBCOMMANDS[options.subcommand]
        silence_libraries()
        interrupted += " to resume" if subcommand.resumes else ""
        with exit_soon_after_interrupt(interrupted):
            return _run(subcommand, options)
    except Sam4mllmError as error:
        if options.traceback:
            raise
        print(f"sam4mllm: error: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The program that reads standard output has ended (`| head`). The interpreter flushes standard output when it
        # exits, so it is redirected to a file that can be written.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        # A full disk or a folder without write permission, not a defect of this program.
        if options.traceback:
            raise
        known = error.filename and error.strerror
        message = f"{error.filename}: {str(error.strerror).lower()}" if known else str(error)
        print(f"sam4mllm: error: {message}", file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as error:
        from sam4mllm.utils.memory import is_out_of_memory

        if options.traceback or not is_out_of_memory(error):
            raise
        reason = (str(error) or "the machine's memory is used up").splitlines()[0]
        print(f"sam4mllm: error: out of memory, outside of any batch: {reason}", file=sys.stderr)
        return 2


def _run(subcommand: Subcommand, options: Namespace) -> int:
    """Check the outputs, join the processes of a launcher, and run the subcommand."""
    check_outputs(options)
    with join_processes() as options.processes:
        if options.processes.world_size > 1 and not subcommand.distributed:
            distributed = ", ".join(each.name for each in SUBCOMMANDS.values() if each.distributed)
            raise LaunchError(f"{subcommand.name} runs in one process; only {distributed} can be started by a launcher")
        return subcommand.run(options)
