"""Ctrl-C that ends a process soon, also while a library computes for longer and no Python code runs."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

INTERRUPTED = 130
"""The exit status of a process that was interrupted."""

# No signal has the number 0.
_END = b"\0"

INTERRUPTED_LINE = "sam4mllm: interrupted; run the same command again"
"""What an interrupted subcommand writes to standard error; " to resume" follows where it resumes."""


@contextmanager
def exit_soon_after_interrupt(message: str, seconds: float = 1.5) -> Iterator[None]:
    """End the process if the block is still running `seconds` after SIGINT (Ctrl-C).

    As always, SIGINT raises KeyboardInterrupt in the block, but only when the library that computes returns to Python,
    and code that catches all exceptions can ignore it. After the time, `message` is written to standard error and the
    process ends, as one that is killed; files are written atomically. Outside of the main thread, and where the
    program has a handler of its own, nothing is changed.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    ended = threading.Event()

    def watch() -> None:
        # The system's signal handler writes the number of each signal, also while no Python code runs. The end is a
        # byte, because forked processes, as those of a data loader, may hold the pipe open for longer.
        while (received := os.read(reader, 1)) != _END:
            if received[0] == signal.SIGINT and not ended.wait(seconds):
                os.write(2, f"{message}\n".encode())
                os._exit(INTERRUPTED)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        ended.set()
        os.set_blocking(writer, True)
        os.write(writer, _END)
        watcher.join()
        os.close(writer)
        os.close(reader)
