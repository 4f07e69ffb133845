"""Ctrl-C: KeyboardInterrupt where Python runs, and the end of the process where it does not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sam4mllm.utils.interruption import INTERRUPTED, exit_soon_after_interrupt

ROOT = Path(__file__).parents[2]

SCRIPT = """
import hashlib, time
from sam4mllm.utils.interruption import exit_soon_after_interrupt
try:
    with exit_soon_after_interrupt("stopped", 0.3):
        print("begun", flush=True)
        {work}
except KeyboardInterrupt:
    print("unwound", flush=True)
"""
# A computation of minutes in C, which lets other threads run; and code that ignores every exception.
IN_C = "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"
IGNORED = """
        while True:
            try:
                time.sleep(60)
            except BaseException:
                pass
"""


@pytest.mark.parametrize(
    ("work", "status", "output", "error"),
    [
        ("time.sleep(60)", 0, "unwound\n", ""),
        (IN_C, INTERRUPTED, "", "stopped\n"),
        (IGNORED, INTERRUPTED, "", "stopped\n"),
    ],
)
def test_an_interrupted_process_ends(work: str, status: int, output: str, error: str) -> None:
    command = [sys.executable, "-c", SCRIPT.format(work=work)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30) == (output, error)
    assert process.returncode == status


def test_the_block_ends_while_a_forked_process_lives() -> None:
    script = """
import os, signal, sys, time
from sam4mllm.utils.interruption import exit_soon_after_interrupt
with exit_soon_after_interrupt("stopped", 0.3):
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
print("ended", flush=True)
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=30)
    assert (done.stdout, done.stderr, done.returncode) == ("ended\n", "", 0)


def test_the_process_continues_after_the_block() -> None:
    with pytest.raises(KeyboardInterrupt), exit_soon_after_interrupt("stopped", 0.1):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)
    time.sleep(0.3)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_another_handler_and_another_thread_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> int:
        raise AssertionError("a signal handler was changed")

    monkeypatch.setattr(signal, "set_wakeup_fd", fail)

    def enter() -> None:
        with exit_soon_after_interrupt("stopped"):
            pass

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        enter()
    finally:
        signal.signal(signal.SIGINT, before)
