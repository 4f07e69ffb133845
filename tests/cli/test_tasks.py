"""`evaluate --task` and `score --task` with scripted answers: figures, reports, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest

from sam4mllm.cli.evaluate import _ONLY_WITH_MASKS, _TASKS
from sam4mllm.cli.main import build_parser, main
from sam4mllm.evaluation.published import _SIZES
from sam4mllm.evaluation.tasks.base import TaskName
from tests.data.tiny_datasets import write_image


@pytest.mark.usefixtures("scripted")
def test_boxes_are_evaluated_and_score_agrees(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(_SIZES, ("refcoco", "val"), (3, 1))
    task = ["--task", "rec", "--dataset", "refcoco", "--root", str(root), "--split", "val"]
    out = tmp_path / "out"
    assert main(["evaluate", "run", *task, "--output", str(out), "--json", str(tmp_path / "e.json")]) == 0
    printed = capsys.readouterr()
    assert "rec, refcoco val, percent" in printed.out and "Shikra-7B" in printed.out
    assert "3 predictions in" in printed.err and "results.json" in printed.err
    assert main(["score", str(out / "predictions.jsonl"), *task, "--json", "-"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores == json.loads((tmp_path / "e.json").read_text())
    assert (scores["task"], scores["n"], scores["acc_50"]) == ("rec", 3, 1.0)
    record = json.loads((out / "results.json").read_text())
    assert record["command"][:2] == ["sam4mllm", "evaluate"] and record["task"] == "rec"

    # The predictions of `predict` have the same boxes.
    data = task[2:]
    assert main(["predict", "run", *data, "--output", str(tmp_path / "masks")]) == 0
    assert main(["score", str(tmp_path / "masks/predictions.jsonl"), *task]) == 0
    assert "NExT-Chat-7B" in capsys.readouterr().out


def test_lines_of_another_program_are_scored_and_missing_ones_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image(tmp_path / "a.png")
    questions = [
        {"question_id": number, "image": "a.png", "text": "Is there a cat?", "label": label}
        for number, label in enumerate(("yes", "no", "no"))
    ]
    (tmp_path / "f.json").write_text("".join(json.dumps(line) + "\n" for line in questions))
    answers = [{"id": "pope/f/0", "answer": "Yes."}, {"id": "pope/f/2", "answer": "No, not here."}]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in answers))
    task = ["--task", "pope", "--dataset", "pope", "--path", str(tmp_path / "f.json")]
    assert main(["score", str(tmp_path / "p.jsonl"), *task]) == 0
    printed = capsys.readouterr()
    assert "no prediction for 1 of 3 queries, which count as wrong answers" in printed.err
    cells = printed.out.splitlines()[-1].split()
    assert cells == ["p.jsonl", "66.7", "50.0", "100.0", "66.7", "66.7"]
    (tmp_path / "p.jsonl").write_text("")
    assert main(["score", str(tmp_path / "p.jsonl"), *task]) == 1


@pytest.mark.parametrize(
    "options",
    [
        ["--protocol", "refcoco"],
        ["--min-pixels", "2"],
        ["--baseline", "box"],
        ["--cases", "3"],
        ["--chat", "chat.jsonl"],
    ],
)
def test_options_of_masks_are_refused(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    task = ["--task", "rec", "--dataset", "refcoco", "--root", str(root), "--split", "val"]
    assert main(["evaluate", "run", *task, "--output", str(tmp_path / "out"), *options]) == 2
    assert f"{options[0]}: has no meaning with --task rec, which scores no masks" in capsys.readouterr().err


def test_questions_are_not_scored_by_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_image(tmp_path / "a.png")
    (tmp_path / "f.json").write_text(
        json.dumps({"question_id": 1, "image": "a.png", "text": "Is there a cat?", "label": "yes"})
    )
    (tmp_path / "p.jsonl").write_text("")
    assert main(["score", str(tmp_path / "p.jsonl"), "--dataset", "pope", "--path", str(tmp_path / "f.json")]) == 2
    assert "has no masks" in capsys.readouterr().err


def test_the_parser_knows_all_tasks_and_the_defaults_of_the_options_of_masks() -> None:
    assert ("res", *get_args(TaskName)) == _TASKS
    options = build_parser().parse_args(["evaluate", "run", "--dataset", "refcoco"])
    assert {name: getattr(options, name) for name in _ONLY_WITH_MASKS} == _ONLY_WITH_MASKS


def test_an_unknown_task_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", "run", "--task", "caption", "--dataset", "refcoco", "--root", "data"])
    assert "--task" in capsys.readouterr().err
