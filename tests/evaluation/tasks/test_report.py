"""The table of a task: our figures, and published ones on the same data alone."""

from __future__ import annotations

import pytest

from sam4mllm.evaluation.tasks.base import TaskName, TaskScores
from sam4mllm.evaluation.tasks.published import published_task_rows
from sam4mllm.evaluation.tasks.report import task_report

POPE = {"accuracy": 0.9, "precision": 0.875, "recall": 0.5, "f1": 0.75, "yes": 1.0}


def scores(task: TaskName, dataset: str, split: str, comparable: bool = True, **figures: float | None) -> TaskScores:
    return TaskScores(task, dataset, split, 8, 1, 2, 3, figures, comparable)


@pytest.mark.parametrize(
    ("own", "rows"),
    [
        (
            scores("rec", "refcoco", "testA", acc_50=0.5, acc_50_any=0.5, acc_50_merged=None),
            {"ours": ["50.0", "50.0"], "NExT-Chat-7B": ["90.0", "-"], "Shikra-7B (boxes as text)": ["90.6", "-"]},
        ),
        (
            scores("rec", "refcocog", "test", acc_50=0.5, acc_50_any=0.5),
            {"ours": ["50.0", "50.0"], "NExT-Chat-7B": ["79.8", "-"], "Shikra-7B (boxes as text)": ["82.2", "-"]},
        ),
        (
            scores("region-caption", "refcocog", "val", cider_d=0.5, exact_match=0.25),
            {
                "ours": ["50.0", "25.0", "-"],
                "NExT-Chat-7B": ["79.6", "-", "12.0"],
                "NExT-Chat-7B ft": ["114.0", "-", "-"],
            },
        ),
        (
            scores("pope", "pope", "coco_pope_random", **POPE),
            {
                "ours": ["90.0", "87.5", "50.0", "75.0", "100.0"],
                "NExT-Chat-7B": ["87.7", "93.46", "81.87", "87.28", "45.15"],
            },
        ),
        (scores("pope", "pope", "coco_pope_random", comparable=False, **POPE), {"ours": None}),
        (scores("rec", "refcoco", "testA", comparable=False, acc_50=0.5), {"ours": ["50.0"]}),
        (
            scores("grounded-caption", "flickr30k", "val", phrases=4, recall_any=0.25, precision=None),
            {"ours": ["25.0"]},
        ),
    ],
)
def test_published_rows_are_below_ours_where_the_data_match(own: TaskScores, rows: dict[str, list[str] | None]) -> None:
    lines = task_report({"ours": own}).splitlines()
    heading = f"{own.task}, {own.dataset} {own.split}, percent"
    assert lines[0] == heading or (own.task == "region-caption" and lines[0].startswith(f"{heading}; CIDEr-D x 100"))
    table = lines[5:]
    assert len(table) == len(rows)
    for line, (name, cells) in zip(table, rows.items(), strict=True):
        assert line.startswith(name)
        if cells is not None:
            assert line.removeprefix(name).split()[: len(cells)] == cells


def test_the_counts_are_above_the_table() -> None:
    rec = task_report({"ours": scores("rec", "mine", "val", acc_50=0.5)}).splitlines()
    assert rec[1] == "ours: 8 queries, 1 without prediction, 2 malformed, 3 errors"
    grounded = scores("grounded-caption", "flickr30k", "val", phrases=4, recall_any=0.25)
    assert (
        task_report({"ours": grounded}).splitlines()[1] == "ours: 8 queries, 4 phrases, 1 without prediction, 3 errors"
    )


def test_rows_of_different_splits_are_refused() -> None:
    with pytest.raises(ValueError, match="rows of one task, data set and split"):
        task_report({"a": scores("rec", "mine", "val"), "b": scores("rec", "mine", "test")})


@pytest.mark.parametrize(
    ("task", "dataset", "split"),
    [
        ("rec", "refcoco", "train"),
        ("pope", "pope", "mine"),
        ("grounded-caption", "flickr30k", "val"),
        ("res", "a", "b"),
    ],
)
def test_other_data_have_no_published_rows(task: str, dataset: str, split: str) -> None:
    assert published_task_rows(task, dataset, split) == []
