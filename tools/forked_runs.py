"""Run subcommands in forks of this process, and end them by a signal at a time or directly before a file operation."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sam4mllm.cli.main import main as run_subcommand
from sam4mllm.utils.atomic_io import atomic_write_text


@dataclass(frozen=True, slots=True)
class Run:
    """One run: its exit status (-9 if killed), duration, number of file operations, and imported modules.

    `seconds_after_signal` is how long the process ran after its signal.
    """

    status: int
    seconds: float
    seconds_after_signal: float = 0.0
    operations: int = 0
    modules: tuple[str, ...] = ()


def run_stage(
    arguments: Sequence[str],
    folder: Path,
    *,
    after_seconds: float | None = None,
    at_operation: int | None = None,
    sent: signal.Signals = signal.SIGKILL,
) -> Run:
    """Run a subcommand in `folder` in a fork of this process.

    After `after_seconds` the signal `sent` is sent to it; before its file operation `at_operation` it is killed. Times
    begin directly before the subcommand, so that no signal arrives while the fork is prepared.
    """
    report = folder.with_name("report.json")
    report.unlink(missing_ok=True)
    reader, begun = os.pipe()
    process = os.fork()
    if process == 0:
        _run_in_child(arguments, folder, report, at_operation, begun)
    os.close(begun)
    os.read(reader, 1)
    os.close(reader)
    start = time.perf_counter()
    signalled = None
    while os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if after_seconds is not None and time.perf_counter() - start >= after_seconds:
            signalled = time.perf_counter()
            os.kill(process, sent)
            break
        time.sleep(0.001)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    end = time.perf_counter()
    run = Run(status, end - start, 0.0 if signalled is None else end - signalled)
    if not report.exists():
        return run
    content = json.loads(report.read_text(encoding="utf-8"))
    return replace(run, operations=content["operations"], modules=tuple(content["modules"]))


def _run_in_child(arguments: Sequence[str], folder: Path, report: Path, at_operation: int | None, begun: int) -> None:
    """Run the subcommand with its output in a file beside `folder`, write a report, and end the process.

    The file descriptor `begun` is closed directly before the subcommand.
    """
    status = 99
    try:
        os.chdir(folder)
        log = os.open(folder.with_name("output.txt"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(log, stream)
        counter = _OperationCounter(folder, at_operation)
        sys.addaudithook(counter)
        os.close(begun)
        status = run_subcommand(list(arguments))
        content = {"operations": counter.count, "modules": sorted(sys.modules)}
        # A process that is killed now leaves no report, as one that is killed before.
        atomic_write_text(report, json.dumps(content))
    except BaseException:
        traceback.print_exc()
    finally:
        for text_stream in (sys.stdout, sys.stderr):
            text_stream.flush()
        os._exit(status)


class _OperationCounter:
    """An audit hook that counts the file operations in a folder, and kills the process before one of them."""

    def __init__(self, folder: Path, kill_before: int | None) -> None:
        self.count = 0
        self._folder = str(folder)
        self._kill_before = kill_before

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
                return
        elif event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir"):
            path = arguments[0]
        else:
            return
        # Files outside the folder, such as caches, have absolute paths; an int is an open file.
        if not isinstance(path, str | os.PathLike) or not os.path.abspath(path).startswith(self._folder):
            return
        if self.count == self._kill_before:
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1
