"""Evaluations of a run: their answers and the drawings of their cases."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sam4mllm.app import cases
from sam4mllm.app.cases import Evaluations
from sam4mllm.errors import DataError, PredictionsError
from tests.data.tiny_datasets import write_image
from tests.export.answers import RING, write_predictions


@pytest.fixture
def evaluations(tmp_path: Path) -> Evaluations:
    """A run with an evaluation of two splits, of which one has a page of cases."""
    for split in ("refcoco-val", "refcoco-testA"):
        file = write_predictions(tmp_path / "photos" / split)
        folder = tmp_path / "run/evaluate" / split
        folder.mkdir(parents=True)
        shutil.copy(file, folder)
    for name in ("worst-01", "best-00", "worst-00", "median-00", "other", "best-x"):
        write_image(tmp_path / f"run/evaluate/refcoco-val/cases/images/{name}.png")
    return Evaluations(tmp_path / "run")


VAL = "evaluate/refcoco-val"


def test_evaluations_and_their_cases_are_listed(evaluations: Evaluations, tmp_path: Path) -> None:
    assert evaluations.names() == ["evaluate/refcoco-testA", VAL]
    assert [case.caption for case in evaluations.cases(VAL)] == ["worst 1", "worst 2", "median 1", "best 1"]
    assert evaluations.cases("evaluate/refcoco-testA") == [] == Evaluations(tmp_path / "none").names()


def test_answers_are_filtered_by_status_and_text(evaluations: Evaluations) -> None:
    assert [line.id for line in evaluations.lines(VAL)] == ["1", "2", "3", "4", "5", "6"]
    assert [line.id for line in evaluations.lines(VAL, "ok", " RED ")] == ["1", "4"]
    assert [line.id for line in evaluations.lines(VAL, "malformed")] == ["5"]


def test_an_answer_is_drawn_with_its_text(evaluations: Evaluations) -> None:
    drawing, text = evaluations.draw(VAL, "1")
    assert drawing.size == (520, 312) and text == f"{RING}: ok"
    assert evaluations.draw(VAL, "5")[1] == "x: malformed\nno bracket"


def test_a_file_that_changed_is_read_again(evaluations: Evaluations, monkeypatch: pytest.MonkeyPatch) -> None:
    file = evaluations.home / VAL / "predictions.jsonl"
    assert len(evaluations.lines(VAL)) == 6
    file.write_text(file.read_text().splitlines()[0] + "\n")
    assert len(evaluations.lines(VAL)) == 1
    monkeypatch.setattr(cases, "MOST_LINES", 2)
    assert len(evaluations.lines("evaluate/refcoco-testA")) == 2


@pytest.mark.parametrize("name", ["", "..", "evaluate", f"../run/{VAL}", "/etc"])
def test_only_listed_evaluations_are_opened(evaluations: Evaluations, name: str) -> None:
    for use in (evaluations.cases, evaluations.lines, lambda name: evaluations.draw(name, "1")):
        with pytest.raises(DataError, match="no such evaluation"):
            use(name)


def test_answers_that_cannot_be_drawn_are_reported(evaluations: Evaluations) -> None:
    with pytest.raises(DataError, match="'7': no such answer"):
        evaluations.draw(VAL, "7")
    with pytest.raises(DataError, match=r"missing\.png: no such file"):
        evaluations.draw(VAL, "6")
    (evaluations.home / VAL / "predictions.jsonl").write_text("{}\n")
    with pytest.raises(PredictionsError, match=r"line 1"):
        evaluations.lines(VAL)
