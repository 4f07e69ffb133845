"""The experiment "filter": figures that can be computed by hand, and a run on tiny random models."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from sam4mllm.segmenters.fake import BoxSegmenter
from tests.scripts import load_script, small_experiment
from tests.targets.examples import SETTINGS, make_samples


@pytest.fixture(scope="module")
def experiment() -> ModuleType:
    return load_script("measure_filter")


def variants(experiment: ModuleType) -> dict[str, object]:
    return {
        "top, exact box": SETTINGS,
        "top, jittered boxes": replace(SETTINGS, judge="jittered"),
        "top, no box": replace(SETTINGS, judge="none"),
        "random group": replace(SETTINGS, choose="random"),
        experiment.BOX_ALONE: replace(SETTINGS, positives=0, negatives=0),
    }


def test_all_variants_are_compared_with_the_same_boxes(experiment: ModuleType, tmp_path: Path) -> None:
    samples = make_samples(tmp_path / "images")
    objects, rows = experiment.measure(samples, BoxSegmenter(points_cut=True), variants(experiment), tmp_path / "store")

    # Two discs per image, each with two phrases.
    assert objects == 8 and list(rows) == list(experiment.VARIANTS)
    alone = rows[experiment.BOX_ALONE]
    truths = {item.id: item for sample in samples for item in sample.objects}.values()
    by_hand = sum(item.mask().sum() / item.box.area for item in truths) / len(truths)
    assert alone.under["exact"] == pytest.approx(by_hand, abs=1e-5) == alone.judged
    assert alone.under["jittered"] < alone.under["exact"] and "none" not in alone.under
    assert alone.spread == 0

    # Scoring again with the exact box gives the same IoU, and the group that was chosen with it has the highest one.
    top = rows["top, exact box"]
    assert top.under["exact"] == pytest.approx(top.judged, abs=1e-6) and top.spread > 0
    assert top.under["exact"] >= max(row.under["exact"] for row in rows.values())
    assert rows["top, no box"].under["none"] > rows["random group"].under["none"]


def test_the_comparison_has_other_jittered_boxes_than_the_scoring(experiment: ModuleType, tmp_path: Path) -> None:
    _, rows = experiment.measure(
        make_samples(tmp_path / "images"), BoxSegmenter(), variants(experiment), tmp_path / "store"
    )
    row = rows["top, jittered boxes"]
    assert row.under["jittered"] != pytest.approx(row.judged, abs=1e-6)


def test_the_table_has_all_figures_in_percent(experiment: ModuleType) -> None:
    rows = {
        "one": experiment.Row(
            0.9, 0.01, {"exact": 0.9, "jittered": 0.8, "none": 0.7}, ciou=[0.5, 0.7], malformed=[0, 0]
        ),
        "other": experiment.Row(0.6, 0.0, {"exact": 0.6, "jittered": 0.5}),
    }
    _, _, first, second = experiment.table(rows)
    assert first.split() == ["one", "90.00", "1.00", "90.00", "80.00", "70.00", "60.00", "(50.00", "to", "70.00)"]
    assert second.split() == ["other", "60.00", "0.00", "60.00", "50.00", "-", "-"]


def test_the_experiment_runs_on_tiny_models_and_resumes(
    experiment: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = small_experiment("filter", tmp_path, "--train", "1")
    load_script("run").main(arguments)
    printed, record = printed_table(capsys), json.loads((tmp_path / "table.json").read_text())
    assert list(record["rows"]) == list(experiment.VARIANTS) and record["objects"] > 0
    assert all(len(row["ciou"]) == 1 for row in record["rows"].values())
    assert len(printed) == 3 + len(experiment.VARIANTS)

    def refuse(*given: object, **also: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr("sam4mllm.training.trainer.fit", refuse)
    monkeypatch.setattr("sam4mllm.targets.prepare.score_image_objects", refuse)
    load_script("run").main(arguments)
    assert printed_table(capsys) == printed


def printed_table(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines of the table; a library may have written its own lines before it."""
    lines = capsys.readouterr().out.splitlines()
    (first,) = (number for number, line in enumerate(lines) if "held-out objects" in line)
    return lines[first:]
