"""The checks of the coverage-guided fuzzer accept all seeds and find defects; atheris is replaced by a fake module."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sam4mllm.data import json_lines
from sam4mllm.geometry import Box, SamPrompt
from sam4mllm.prompts.grammar import AnswerGrammar, ParsedAnswer
from tests.scripts import load_script

# The script imports the other one in its functions.
load_script("fuzz_answers")
fuzz_coverage = load_script("fuzz_coverage")


@pytest.mark.parametrize("target", ["answers", "lines"])
def test_no_seed_has_a_fault(target: str) -> None:
    check, seeds = fuzz_coverage.TARGETS[target]
    inputs = list(seeds())
    assert len(inputs) > 5
    for data in [*inputs, b"", b"\0", b"\0\0\xff\xed\xa0\x80", b"[[[", b'{"id": "a", "status": "ok", "objects": [{}]}']:
        check(data)


def test_a_defect_of_the_parser_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    outside = ParsedAnswer("ok", (SamPrompt(Box(0, 0, 1e6, 1)),), box_spans=((0, 1),))
    monkeypatch.setattr(AnswerGrammar, "parse", lambda *arguments: outside)
    with pytest.raises(fuzz_coverage.FaultError, match="is outside of an image"):
        fuzz_coverage.check_answer(b"\0\0[1,2,3,4]")


def test_predictions_that_are_read_differently_again_are_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    dump, count = json_lines.dump_line, iter(range(100))
    monkeypatch.setattr(json_lines, "dump_line", lambda line: dump(replace(line, id=f"q{next(count)}")))
    with pytest.raises(fuzz_coverage.FaultError, match="other lines when they are read again"):
        fuzz_coverage.check_lines(b'{"id": "q2", "status": "error"}')


def test_a_value_that_cannot_be_written_again_is_an_error_of_the_line() -> None:
    fuzz_coverage.check_lines(json.dumps({"id": "q", "status": "error", "score": float("nan")}).encode())


class FakeAtheris(ModuleType):
    """Records its arguments, and calls the function under test with each file of the corpus."""

    def __init__(self) -> None:
        super().__init__("atheris")
        self.enabled_hooks: set[str] = set()
        self.inputs: list[bytes] = []
        self.arguments: list[str] = []

    @contextlib.contextmanager
    def instrument_imports(self, include: tuple[str, ...]) -> Iterator[None]:
        assert "sam4mllm.prompts.grammar" in include
        yield

    def Setup(self, arguments: list[str], check: Callable[[bytes], None]) -> None:
        self.arguments, self.check = arguments, check

    def Fuzz(self) -> None:
        for file in sorted(Path(self.arguments[-1]).iterdir()):
            self.inputs.append(file.read_bytes())
            self.check(self.inputs[-1])


def test_the_fuzzer_starts_with_the_seeds_and_the_pieces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake: Any = FakeAtheris()
    monkeypatch.setitem(sys.modules, "atheris", fake)
    places = ["--corpus", str(tmp_path / "corpus"), "--faults", str(tmp_path / "faults")]
    assert fuzz_coverage.main(["lines", "--seconds", "3", *places]) == 0
    assert fake.inputs == list(fuzz_coverage.line_seeds()) and "-max_total_time=3" in fake.arguments
    assert f"-artifact_prefix={tmp_path / 'faults'}/" in fake.arguments and (tmp_path / "faults").is_dir()


def test_the_pieces_are_escaped_for_libfuzzer(tmp_path: Path) -> None:
    fuzz_coverage.write_dictionary(tmp_path / "pieces.txt", ["[", '"\\', "\ud800", "9" * 400])
    assert (tmp_path / "pieces.txt").read_text() == '"\\x5b"\n"\\x22\\x5c"\n"\\xed\\xa0\\x80"\n'


def test_without_atheris_the_error_names_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "atheris", None)
    with pytest.raises(SystemExit, match="run make fuzz"):
        fuzz_coverage.main(["answers"])
