"""The command line: runs one verb, and says how errors and interruptions end the program.

Nothing heavy is imported before a verb runs, so that `--help` answers at once. The verbs stand in `cli_parser.py`; what
one does lies in `commands.py` and `answer_commands.py`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from sam4mllm.cli.inputs import check_json_place
from sam4mllm.cli.parser import parse
from sam4mllm.errors import LaunchError, Sam4mllmError
from sam4mllm.utils.distributed import join_processes
from sam4mllm.utils.library_logging import silence_libraries

SHARED_VERBS = ("prepare", "train", "predict", "evaluate", "calibrate")
"""Those whose work several processes can share: `torchrun --nproc-per-node N -m sam4mllm VERB ...`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb.

    Returns:
        The exit status: 0, or 1 when some lines came out as errors, 2 for what the user can mend, 130 when interrupted.
    """
    options = parse(sys.argv[1:] if arguments is None else arguments)
    silence_libraries()
    try:
        check_json_place(getattr(options, "json", None))
        with join_processes() as options.processes:
            if options.processes.world_size > 1 and options.verb not in SHARED_VERBS:
                raise LaunchError(
                    f"{options.verb} runs in one process; only {', '.join(SHARED_VERBS)} share their work"
                )
            module, function = options.command
            return int(getattr(import_module(f"sam4mllm.cli.{module}"), function)(options))
    except Sam4mllmError as error:
        if options.traceback:
            raise
        print(f"sam4mllm: error: {_as_raised(error)}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        hint = "; the same command goes on from here" if options.verb in ("demo", *SHARED_VERBS) else ""
        print(f"sam4mllm: interrupted{hint}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read our output has gone (`| head`); not even the interpreter's own flush has anywhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        # A full disk, a folder that may not be written: the machine's, not ours.
        if options.traceback:
            raise
        said = f"{error.filename}: {str(error.strerror).lower()}" if error.filename and error.strerror else str(error)
        print(f"sam4mllm: error: {said}", file=sys.stderr)
        return 2


def _as_raised(error: Sam4mllmError) -> str:
    """The error's own words, which torch wraps in a traceback where a data loader's worker raised it."""
    words = str(error)
    if not words.startswith(f"Caught {type(error).__name__} in DataLoader worker"):
        return words
    return words.rstrip().rpartition(f"{type(error).__name__}: ")[2]
