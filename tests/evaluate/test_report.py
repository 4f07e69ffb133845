from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sam4mllm.data.entry import DataEntry
from sam4mllm.evaluate.evaluate import EvaluatedSplit
from sam4mllm.evaluate.published import published
from sam4mllm.evaluate.reliability import COVERAGES, CoveragePoint, Reliability, ReliabilityReport, reliability_bins
from sam4mllm.evaluate.report import reliability_text, report, report_of, suite_report, text_table
from sam4mllm.evaluate.score import Scores
from sam4mllm.pipeline.batch import BatchSummary


def _scores(dataset: str, split: str, ciou: float | None = 0.5) -> Scores:
    protocol = dataset if dataset in ("grefcoco", "reasonseg") else "refcoco"
    return Scores(dataset, split, protocol, 40, 3, 2, ciou, 0.6, None, None, 0.3, 0.2, 0.1, 0.789)


@pytest.mark.parametrize(
    ("dataset", "split", "systems"),
    [
        ("refcoco", "val", 10),
        ("refcoco", "testA", 11),
        ("refcoco+", "testB", 10),
        ("refcocog", "test", 11),
        ("refcocog", "testA", 0),
        ("grefcoco", "val", 4),
        ("grefcoco", "testA", 1),
        ("grefcoco", "train", 0),
        ("reasonseg", "val", 6),
        ("reasonseg", "test", 4),
        ("shapes", "val", 0),
    ],
)
def test_each_split_has_its_published_rows(dataset: str, split: str, systems: int) -> None:
    rows = published(dataset, split)
    assert len({row.system for row in rows}) == len(rows) == systems
    for row in rows:
        assert row.source
        figures = [figure for figure in (row.ciou, row.giou, row.n_acc) if figure is not None]
        assert figures
        assert all(40 < figure < 100 for figure in figures)


def test_the_papers_own_figures_stand_in_their_columns() -> None:
    def of_sam4mllm(dataset: str, split: str) -> tuple[float | None, ...]:
        row = published(dataset, split)[0]
        assert row.system == "SAM4MLLM (LLaVA-NeXT 8B)"
        return row.ciou, row.giou, row.n_acc

    assert of_sam4mllm("refcoco", "testB") == (74.7, None, None)
    assert of_sam4mllm("refcoco+", "testA") == (80.0, None, None)
    assert of_sam4mllm("refcocog", "test") == (76.4, None, None)
    assert of_sam4mllm("grefcoco", "val") == (67.83, 71.86, 66.08)
    assert of_sam4mllm("reasonseg", "val") == (48.1, 46.7, None)


def test_ours_stand_above_the_published_ones() -> None:
    text = report({"base": _scores("refcoco", "val"), "tuned": _scores("refcoco", "val", ciou=None)})
    lines = text.splitlines()
    assert lines[0] == "refcoco val, protocol refcoco, percent"
    assert lines[1] == "base: 40 queries, 3 without prediction, 2 malformed"
    header = lines[4].split()
    assert header == ["cIoU", "gIoU", "Pr@0.7", "Pr@0.8", "Pr@0.9", "Acc@0.5", "source"]
    assert lines[6].split() == ["base", "50.0", "60.0", "30.0", "20.0", "10.0", "78.9"]
    assert lines[7].split()[:3] == ["tuned", "-", "60.0"]
    assert lines[8].startswith("SAM4MLLM (LLaVA-NeXT 8B)")
    assert "79.8" in lines[8]
    assert lines[8].endswith("as tabulated by later papers (MLLMSeg, SegAgent, DeRIS)")
    assert "SAM4MLLM" not in report({"base": _scores("refcoco", "val")}, beside_published=False)


def test_rows_of_different_splits_make_no_table() -> None:
    with pytest.raises(ValueError, match="one data set, split and protocol"):
        report({"a": _scores("refcoco", "val"), "b": _scores("refcoco", "testA")})
    with pytest.raises(ValueError, match="one data set, split and protocol"):
        report({})


def test_a_suite_has_a_table_for_each_data_set_with_its_splits_side_by_side() -> None:
    splits = [
        {"ours": _scores("refcoco", "val"), "ours, box": _scores("refcoco", "val", ciou=0.4)},
        {"ours": _scores("refcoco", "testA", ciou=0.7), "ours, box": _scores("refcoco", "testA", ciou=None)},
        {"ours": _scores("grefcoco", "val"), "ours, box": _scores("grefcoco", "val")},
    ]
    first, second = suite_report(splits).split("\n\ngrefcoco")
    lines = first.splitlines()
    assert lines[0] == "refcoco, protocol refcoco, percent"
    assert lines[1] == "val: 40 queries, 3 without prediction, 2 malformed"
    assert lines[4].split() == ["val", "cIoU", "testA", "cIoU", "source"]
    assert lines[6].split() == ["ours", "50.0", "70.0"]
    assert lines[7].split() == ["ours,", "box", "40.0", "-"]
    (row,) = [line for line in lines if line.startswith("Seg-Zero")]
    assert row.split()[:3] == ["Seg-Zero-7B", "-", "80.3"] and row.endswith("Seg-Zero's repository")
    assert "val gIoU  val cIoU  val N-acc" in second and "66.43" in second and "40 queries" in second
    alone = suite_report(splits, beside_published=False)
    assert "Seg-Zero" not in alone and "source" not in alone
    with pytest.raises(ValueError, match="needs splits"):
        suite_report([])


def test_rows_that_rest_on_other_answers_tell_their_own_counts() -> None:
    rows = {"ours": _scores("refcoco", "val"), "ours, box": replace(_scores("refcoco", "val"), malformed=7)}
    lines = suite_report([rows]).splitlines()
    assert lines[1:3] == [
        "val, ours: 40 queries, 3 without prediction, 2 malformed",
        "val, ours, box: 40 queries, 3 without prediction, 7 malformed",
    ]


def test_a_run_named_as_a_published_system_keeps_its_own_row() -> None:
    lines = suite_report([{"GLaMM": _scores("refcoco", "val", ciou=0.123)}]).splitlines()
    assert sum(line.startswith("GLaMM") for line in lines if "queries" not in line) == 2


def test_figures_are_quoted_as_they_are_printed_and_errors_are_told() -> None:
    told = report({"ours": replace(_scores("refcoco+", "testA"), errors=3)})
    assert "2 malformed, 3 errors" in told and " 80.0 " in told
    assert "67.83" in report({"ours": _scores("grefcoco", "val")})
    assert "errors" not in _scores("refcoco", "val").to_json()


def test_a_table_lines_up_and_drops_what_says_nothing() -> None:
    rows = [["long name", "1.0", "-", "x"], ["b", "100.0", "-", ""]]
    assert text_table(["", "cIoU", "N-acc", "source"], rows) == [
        "            cIoU  source",
        "---------  -----  ------",
        "long name    1.0  x",
        "b          100.0",
    ]


def test_trust_is_a_row_a_split_and_what_has_no_figure_a_dash() -> None:
    bins = reliability_bins([0.9], [True])
    curve = tuple(CoveragePoint(coverage, 1, 0.9, 0.5 + 0.4 * (1 - coverage), 0.5) for coverage in COVERAGES)
    known, wanting = ReliabilityReport(Reliability(1, 0.1234, bins), None, curve), ReliabilityReport(None, None, None)
    lines = reliability_text({"refcoco val": known, "refcoco testA": wanting}).splitlines()
    assert "ECE" in lines[0] and lines[2].split()[:4] == ["objects", "ECE", "100", "%"]
    assert lines[4].split() == ["refcoco", "val", "1", "12.3", *(f"{50 + 4 * step}.0" for step in range(10))]
    assert set(lines[5].split()) == {"refcoco", "testA", "-"}


@pytest.mark.parametrize(("fitted_on", "is_told"), [("refcoco val", True), ("refcoco testA", False), (None, False)])
def test_an_evaluation_of_the_split_that_scores_were_fitted_to_says_so(fitted_on: str | None, is_told: bool) -> None:
    entry = DataEntry(dataset="refcoco", root=Path("data"), split="val")
    summary, nothing = BatchSummary(Path("p.jsonl"), 0, 0, 0, 0), ReliabilityReport(None, None, None)
    split = EvaluatedSplit(entry, summary, _scores("refcoco", "val"), nothing, fitted_on)
    said = report_of([split], "ours", named=True, beside_published=False)
    assert ("refcoco val: the scores were fitted to its answers" in said) == is_told
    assert split.to_json(Path())["trust"]["calibrated_on"] == fitted_on
