"""Ctrl-C while the command line is imported and parsed ends as everywhere else: one line, exit status 130."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sam4mllm.cli.main import main

ROOT = Path(__file__).parents[2]
LINE = "sam4mllm: interrupted; run the same command again"

INTERRUPTED_IMPORT = """
import os, runpy, signal, sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Interrupt())
sys.argv = ["sam4mllm", "score", "predictions.jsonl", "--dataset", "refcoco", "--root", "data", "--split", "val"]
runpy.run_module("sam4mllm", run_name="__main__")
"""


@pytest.mark.parametrize("module", ["sam4mllm.cli.main", "sam4mllm.cli.subcommand", "sam4mllm.utils.library_logging"])
def test_an_interrupt_of_the_imports_gets_one_line(module: str) -> None:
    command = [sys.executable, "-c", INTERRUPTED_IMPORT.format(module=module)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", f"{LINE}\n")


@pytest.mark.parametrize("function", ["parse", "silence_libraries"])
def test_an_interrupt_before_the_subcommand_gets_one_line(
    function: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"sam4mllm.cli.main.{function}", interrupted)
    assert main(["shapes", "new"]) == 130
    assert capsys.readouterr().err == f"{LINE}\n"
