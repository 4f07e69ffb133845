"""The printed report: our rows above the published ones, the splits of a suite, the reliability of scores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sam4mllm.data.entry import DataEntry
from sam4mllm.evaluation.reliability import COVERAGES, CoveragePoint, Reliability, ReliabilityReport, reliability_bins
from sam4mllm.evaluation.report import evaluation_report, reliability_text, report, suite_report, text_table
from sam4mllm.evaluation.score import Scores
from sam4mllm.evaluation.splits import EvaluatedSplit
from sam4mllm.pipeline.batch import BatchSummary


def _scores(dataset: str, split: str, ciou: float | None = 0.5) -> Scores:
    protocol = dataset if dataset in ("grefcoco", "reasonseg") else "refcoco"
    return Scores(dataset, split, protocol, 40, 3, 2, ciou, 0.6, None, None, 0.3, 0.2, 0.1, 0.789)


def test_our_rows_are_above_the_published_ones() -> None:
    text = report({"base": _scores("refcoco", "val"), "tuned": _scores("refcoco", "val", ciou=None)})
    lines = text.splitlines()
    assert lines[0] == "refcoco val, protocol refcoco, percent"
    assert lines[1] == "base: 40 queries, 3 without prediction, 2 malformed"
    header = lines[4].split()
    assert header == [
        "cIoU",
        "gIoU",
        "Pr@0.7",
        "Pr@0.8",
        "Pr@0.9",
        "Acc@0.5",
        "text",
        "only",
        "COCO",
        "masks",
        "source",
    ]
    assert lines[6].split() == ["base", "50.0", "60.0", "30.0", "20.0", "10.0", "78.9"]
    assert lines[7].split()[:3] == ["tuned", "-", "60.0"]
    assert lines[8].startswith("SAM4MLLM (LLaVA-NeXT 8B)")
    assert "79.8" in lines[8]
    assert lines[8].endswith("yes        yes         as tabulated by later papers (MLLMSeg, SegAgent, DeRIS)")
    (row,) = [line for line in lines if line.startswith("X-SAM")]
    assert row.endswith("no         yes         wanghao9610/X-SAM, docs/srcs/images/refseg.png")
    (row,) = [line for line in lines if line.startswith("GLaMM")]
    assert row.endswith("?          ?           GLaMM's repository")
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
    assert lines[4].split() == ["val", "cIoU", "testA", "cIoU", "text", "only", "COCO", "masks", "source"]
    assert lines[6].split() == ["ours", "50.0", "70.0"]
    assert lines[7].split() == ["ours,", "box", "40.0", "-"]
    (row,) = [line for line in lines if line.startswith("Seg-Zero")]
    assert row.split()[:5] == ["Seg-Zero-7B", "-", "80.3", "yes", "no"] and row.endswith("Seg-Zero's repository")
    assert "val gIoU  val cIoU  val N-acc" in second and "66.43" in second and "40 queries" in second
    alone = suite_report(splits, beside_published=False)
    assert "Seg-Zero" not in alone and "source" not in alone and "text only" not in alone
    with pytest.raises(ValueError, match="needs splits"):
        suite_report([])


def test_rows_of_different_answers_have_a_line_of_counts_each() -> None:
    rows = {"ours": _scores("refcoco", "val"), "ours, box": replace(_scores("refcoco", "val"), malformed=7)}
    lines = suite_report([rows]).splitlines()
    assert lines[1:3] == [
        "val, ours: 40 queries, 3 without prediction, 2 malformed",
        "val, ours, box: 40 queries, 3 without prediction, 7 malformed",
    ]


def test_a_run_named_as_a_published_system_keeps_its_own_row() -> None:
    lines = suite_report([{"GLaMM": _scores("refcoco", "val", ciou=0.123)}]).splitlines()
    assert sum(line.startswith("GLaMM") for line in lines if "queries" not in line) == 2


def test_figures_are_quoted_with_the_decimals_of_the_source_and_errors_are_counted() -> None:
    text = report({"ours": replace(_scores("refcoco+", "testA"), errors=3)})
    assert "2 malformed, 3 errors" in text and " 80.0 " in text
    assert "2 malformed (1 cut off), 3 errors" in report({"x": replace(_scores("refcoco", "val"), errors=3, cut_off=1)})
    assert "67.83" in report({"ours": _scores("grefcoco", "val")})
    assert "errors" not in _scores("refcoco", "val").to_json()


def test_points_have_a_table_of_their_own_with_a_row_for_each_answer_with_points() -> None:
    ours = replace(
        _scores("refcoco", "val"),
        points_on=0.8761,
        points_on_chance=0.481,
        points_off=0.75,
        points_off_chance=0.6,
        positive_points=20,
        negative_points=10,
        points_kept=2.96,
    )
    alone = replace(_scores("refcoco", "val"), points_kept=0.0)
    unmatched = replace(_scores("refcoco", "val"), points_kept=3.0)
    rows = {"ours": ours, "ours, box": alone, "base": unmatched}
    *_, heading, blank, header, rule, first, second = report(rows).splitlines()
    assert heading.startswith("points, percent: positive points on the object")
    assert blank == "" and set(rule) == {"-", " "}
    assert header.split() == ["on", "chance", "off", "chance", "points", "per", "object"]
    assert first.split() == ["ours", "87.6", "48.1", "75.0", "60.0", "3.0"]
    assert second.split() == ["base", "-", "-", "-", "-", "3.0"]
    splits = [rows, {"ours": replace(ours, split="testA")}]
    assert [line.split()[:3] for line in suite_report(splits).splitlines()[-3:]] == [
        ["refcoco", "val,", "ours"],
        ["refcoco", "val,", "base"],
        ["refcoco", "testA,", "ours"],
    ]
    assert "points" not in report({"box": alone}) and "points" not in suite_report([{"box": alone}])


def test_a_table_is_aligned_and_has_no_empty_columns() -> None:
    rows = [["long name", "1.0", "-", "x"], ["b", "100.0", "-", ""]]
    assert text_table(["", "cIoU", "N-acc", "source"], rows) == [
        "            cIoU  source",
        "---------  -----  ------",
        "long name    1.0  x",
        "b          100.0",
    ]


def test_reliability_has_a_row_for_each_split_and_a_dash_where_a_figure_is_missing() -> None:
    bins = reliability_bins([0.9], [True])
    curve = tuple(CoveragePoint(coverage, 1, 0.9, 0.5 + 0.4 * (1 - coverage), 0.5) for coverage in COVERAGES)
    known, missing = ReliabilityReport(Reliability(1, 0.1234, bins), None, curve), ReliabilityReport(None, None, None)
    lines = reliability_text({"refcoco val": known, "refcoco testA": missing}).splitlines()
    assert "ECE" in lines[0] and lines[2].split()[:4] == ["objects", "ECE", "100", "%"]
    assert lines[4].split() == ["refcoco", "val", "1", "12.3", *(f"{50 + 4 * step}.0" for step in range(10))]
    assert set(lines[5].split()) == {"refcoco", "testA", "-"}


@pytest.mark.parametrize(("fitted_on", "is_warned"), [("refcoco val", True), ("refcoco testA", False), (None, False)])
def test_an_evaluation_of_the_calibration_split_prints_a_warning(fitted_on: str | None, is_warned: bool) -> None:
    entry = DataEntry(dataset="refcoco", root=Path("data"), split="val")
    summary, nothing = BatchSummary(Path("p.jsonl"), 0, 0, 0, 0), ReliabilityReport(None, None, None)
    split = EvaluatedSplit(entry, summary, _scores("refcoco", "val"), nothing, fitted_on)
    text = evaluation_report([split], "ours", named=True, beside_published=False)
    assert ("refcoco val: the confidence scores were calibrated on this split" in text) == is_warned
    assert split.to_json(Path())["reliability"]["calibrated_on"] == fitted_on
