"""Published results: how many there are for each split, that each has a source, and some figures as printed there."""

from __future__ import annotations

import pytest

from sam4mllm.evaluation.published import _PROPERTIES, PublishedRow, _rows, published


@pytest.mark.parametrize(
    ("dataset", "split", "systems"),
    [
        ("refcoco", "val", 23),
        ("refcoco", "testA", 24),
        ("refcoco", "testB", 22),
        ("refcoco+", "val", 23),
        ("refcoco+", "testA", 24),
        ("refcoco+", "testB", 22),
        ("refcocog", "val", 23),
        ("refcocog", "test", 24),
        ("refcocog", "testA", 0),
        ("grefcoco", "val", 8),
        ("grefcoco", "testA", 5),
        ("grefcoco", "testB", 5),
        ("grefcoco", "train", 0),
        ("reasonseg", "val", 10),
        ("reasonseg", "test", 16),
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
        assert all(30 < figure < 100 for figure in figures)


def test_every_row_belongs_to_a_benchmark_split_and_every_property_to_a_system() -> None:
    rows = list(_rows())
    splits = {
        "refcoco": {"val", "testA", "testB"},
        "refcoco+": {"val", "testA", "testB"},
        "refcocog": {"val", "test"},
        "grefcoco": {"val", "testA", "testB"},
        "reasonseg": {"val", "test"},
    }
    assert len(rows) == 229 and all(row.split in splits[row.dataset] for row in rows)
    assert set(_PROPERTIES) <= {row.system for row in rows}


def of_system(system: str, dataset: str, split: str) -> PublishedRow:
    (row,) = [row for row in published(dataset, split) if row.system == system]
    return row


@pytest.mark.parametrize(
    ("system", "dataset", "split", "ciou", "giou", "n_acc"),
    [
        ("SAM4MLLM (LLaVA-NeXT 8B)", "refcoco", "testB", 74.7, None, None),
        ("SAM4MLLM (LLaVA-NeXT 8B)", "refcoco+", "testA", 80.0, None, None),
        ("SAM4MLLM (LLaVA-NeXT 8B)", "refcocog", "test", 76.4, None, None),
        ("SAM4MLLM (LLaVA-NeXT 8B)", "grefcoco", "val", 67.83, 71.86, 66.08),
        ("SAM4MLLM (LLaVA-NeXT 8B)", "reasonseg", "val", 48.1, 46.7, None),
        ("X-SAM (Phi-3-3.8B)", "refcoco", "testA", 87.1, None, None),
        ("X-SAM (Phi-3-3.8B)", "reasonseg", "test", 41.0, 57.8, None),
        ("STAMP-2B", "refcoco+", "testB", 72.7, None, None),
        ("STAMP-7B", "grefcoco", "testB", 71.6, 71.4, None),
        ("SARA-4B", "refcocog", "test", 80.5, None, None),
        ("SARA-9B (Qwen3.5-9B)", "reasonseg", "val", 68.4, 64.8, None),
        ("RICE-7B (MLCD-seg)", "refcoco+", "testA", 82.9, None, None),
        ("DeRIS-L (no LLM)", "refcoco", "val", 85.41, None, None),
        ("DeRIS-L (no LLM)", "grefcoco", "testB", 67.38, 67.99, 66.81),
        ("MLLMSeg-8B", "grefcoco", "testA", 76.9, 77.0, 72.4),
        ("Sa2VA-Qwen3-VL-4B", "refcocog", "val", 80.0, None, None),
        ("SimpleSeg (Qwen2.5-VL-7B, polygons, no SAM)", "refcoco", "val", 80.9, None, None),
        ("SegAgent-Qwen", "refcoco", "testB", 76.6, None, None),
        ("Text4Seg-13B + SAM", "grefcoco", "val", 69.8, 74.8, None),
        ("VisionReasoner-7B", "refcocog", "test", 71.3, None, None),
        ("VisionReasoner-7B", "reasonseg", "test", 55.7, 63.6, None),
        ("StAR-7B", "reasonseg", "test", 61.3, 67.5, None),
        ("StAR-8B (Qwen3-VL-8B) + vote", "reasonseg", "test", 66.5, 71.8, None),
        ("StAR-32B + vote", "reasonseg", "test", 68.1, 72.7, None),
        ("GenSeg-R1-4B", "reasonseg", "test", None, 68.4, None),
        ("SAM 3 Agent (Gemini 2.5 Pro, zero shot)", "refcoco+", "val", 66.9, None, None),
        ("SAM 3 Agent (Qwen2.5-VL-7B)", "reasonseg", "val", 50.5, 65.4, None),
    ],
)
def test_figures_are_those_of_the_source(
    system: str, dataset: str, split: str, ciou: float | None, giou: float | None, n_acc: float | None
) -> None:
    row = of_system(system, dataset, split)
    assert (row.ciou, row.giou, row.n_acc) == (ciou, giou, n_acc)


@pytest.mark.parametrize(
    ("system", "text_only", "coco_masks"),
    [
        ("SAM4MLLM (LLaVA-NeXT 8B)", True, True),
        ("X-SAM (Phi-3-3.8B)", False, True),
        ("DeRIS-L (no LLM)", False, True),
        ("STAMP-7B", False, None),
        ("SegAgent-Qwen", True, None),
        ("SimpleSeg (Qwen2.5-VL-7B, polygons, no SAM)", True, False),
        ("VisionReasoner-7B", True, False),
        ("SAM 3 Agent (Gemini 2.5 Pro, zero shot)", False, False),
        ("GLaMM", None, None),
    ],
)
def test_systems_are_marked_as_text_only_and_as_trained_on_coco_masks(
    system: str, text_only: bool | None, coco_masks: bool | None
) -> None:
    row = of_system(system, "refcoco", "testA")
    assert (row.text_only, row.coco_masks) == (text_only, coco_masks)


def test_a_source_names_the_file_or_the_table_of_a_later_system() -> None:
    assert of_system("X-SAM (Phi-3-3.8B)", "refcoco", "val").source == "wanghao9610/X-SAM, docs/srcs/images/refseg.png"
    assert of_system("SegAgent-Qwen", "refcoco", "val").source.startswith("SimpleSeg's table")
    assert of_system("VisionReasoner-7B", "reasonseg", "test").source.startswith("StAR's table")
