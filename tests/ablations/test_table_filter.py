"""The table of SAM's filter: figures that can be worked out by hand, and the whole of it on tiny random models."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from sam4mllm.segmenters.fake import BoxSegmenter
from tests.small_models import load_tool, small_table
from tests.targets.examples import SETTINGS, make_samples


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("table_filter")


def ways(tool: ModuleType) -> dict[str, object]:
    return {
        "top, exact box": SETTINGS,
        "top, jittered boxes": replace(SETTINGS, judge="jittered"),
        "top, no box": replace(SETTINGS, judge="none"),
        "random group": replace(SETTINGS, choose="random"),
        tool.BOX_ALONE: replace(SETTINGS, positives=0, negatives=0),
    }


def test_each_way_is_compared_under_boxes_that_are_the_same_for_all(tool: ModuleType, tmp_path: Path) -> None:
    samples = make_samples(tmp_path / "images")
    objects, rows = tool.measure(samples, BoxSegmenter(points_cut=True), ways(tool), tmp_path / "store")

    # Two discs an image, each named by two phrases.
    assert objects == 8 and list(rows) == list(tool.WAYS)
    alone = rows[tool.BOX_ALONE]
    truths = {item.id: item for sample in samples for item in sample.objects}.values()
    by_hand = sum(item.mask().sum() / item.box.area for item in truths) / len(truths)
    assert alone.under["exact"] == pytest.approx(by_hand, abs=1e-5) == alone.judged
    assert alone.under["jittered"] < alone.under["exact"] and "none" not in alone.under
    assert alone.spread == 0

    # SAM is the same whoever asks, so what was judged under the exact box is found again; a group chosen under it beats
    # any other under it.
    top = rows["top, exact box"]
    assert top.under["exact"] == pytest.approx(top.judged, abs=1e-6) and top.spread > 0
    assert top.under["exact"] >= max(row.under["exact"] for row in rows.values())
    assert rows["top, no box"].under["none"] > rows["random group"].under["none"]


def test_jittered_boxes_that_judged_do_not_compare(tool: ModuleType, tmp_path: Path) -> None:
    _, rows = tool.measure(make_samples(tmp_path / "images"), BoxSegmenter(), ways(tool), tmp_path / "store")
    row = rows["top, jittered boxes"]
    assert row.under["jittered"] != pytest.approx(row.judged, abs=1e-6)


def test_the_table_says_all_figures_in_percent(tool: ModuleType) -> None:
    rows = {
        "one": tool.Row(0.9, 0.01, {"exact": 0.9, "jittered": 0.8, "none": 0.7}, ciou=[0.5, 0.7], malformed=[0, 0]),
        "other": tool.Row(0.6, 0.0, {"exact": 0.6, "jittered": 0.5}),
    }
    _, _, first, second = tool.table(rows)
    assert first.split() == ["one", "90.00", "1.00", "90.00", "80.00", "70.00", "60.00", "(50.00", "to", "70.00)"]
    assert second.split() == ["other", "60.00", "0.00", "60.00", "50.00", "-", "-"]


def test_the_whole_table_on_tiny_models_goes_on_where_it_was(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = small_table(tmp_path, "--train", "1")
    tool.main(arguments)
    printed, record = capsys.readouterr().out, json.loads((tmp_path / "table.json").read_text())
    assert list(record["rows"]) == list(tool.WAYS) and record["objects"] > 0
    assert all(len(row["ciou"]) == 1 for row in record["rows"].values())
    assert len(printed.splitlines()) == 3 + len(tool.WAYS)

    def refuse(*given: object, **also: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr("sam4mllm.train.trainer.fit", refuse)
    monkeypatch.setattr("sam4mllm.targets.prepare.judge_image", refuse)
    tool.main(arguments)
    assert capsys.readouterr().out == printed
