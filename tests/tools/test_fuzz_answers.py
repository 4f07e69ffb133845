"""The fuzzer of answers finds nothing in the parser, and finds defects that are put into it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sam4mllm.geometry import Box, SamPrompt
from sam4mllm.prompts.grammar import AnswerGrammar, ParsedAnswer
from tests.scripts import load_script

fuzz_answers = load_script("fuzz_answers")
PARSE = AnswerGrammar.parse


def raising(self: AnswerGrammar, text: str, size_wh: tuple[int, int]) -> ParsedAnswer:
    if "\0" in text:
        raise RecursionError("nested")
    return PARSE(self, text, size_wh)


def leaving(self: AnswerGrammar, text: str, size_wh: tuple[int, int]) -> ParsedAnswer:
    parsed = PARSE(self, text, size_wh)
    outside = Box(0, 0, size_wh[0] + 1, 1)
    return replace(parsed, prompts=(SamPrompt(outside),) * len(parsed.prompts)) if parsed.prompts else parsed


def long_reasons(self: AnswerGrammar, text: str, size_wh: tuple[int, int]) -> ParsedAnswer:
    parsed = PARSE(self, text, size_wh)
    return replace(parsed, reason=f"unreadable: {text}") if parsed.reason else parsed


def without_the_last(self: AnswerGrammar, text: str, size_wh: tuple[int, int]) -> ParsedAnswer:
    parsed = PARSE(self, text, size_wh)
    return replace(parsed, prompts=parsed.prompts[:1]) if len(parsed.prompts) > 1 else parsed


def test_nothing_is_found_in_the_parser() -> None:
    problems, corpora, outcomes = fuzz_answers.fuzz(3000, seed=1)
    assert problems == [] and outcomes > 10 * len(corpora)
    assert all(len(corpus) > len(fuzz_answers.seeds(format_)) for format_, corpus in corpora.items())


@pytest.mark.parametrize(
    ("parse", "message"),
    [
        (raising, "RecursionError: nested"),
        (leaving, "is outside of an image"),
        (long_reasons, "is not one short printable line"),
        (without_the_last, "differ in number"),
    ],
)
def test_a_defect_is_found(parse: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AnswerGrammar, "parse", parse)
    problems, _, _ = fuzz_answers.fuzz(3000, seed=1)
    assert any(message in problem for problem in problems)


def test_the_exit_status_and_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--strings", "100", "--long-texts", "5", "--characters", "2000"]
    assert fuzz_answers.main(arguments) == 0
    assert "100 strings in " in (out := capsys.readouterr().out) and "5 texts of 2000 characters: at most 0.0" in out
    assert fuzz_answers.main([*arguments, "--limit", "0"]) == 1
