"""The suite of an evaluation: named splits, or all held-out splits under the root."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sam4mllm.data.entry import DataEntry
from sam4mllm.data.reading import benchmarks_in, held_out_splits
from sam4mllm.data.registry import mark_generated
from sam4mllm.data.sample import Sample
from sam4mllm.errors import DataError
from sam4mllm.evaluation.published import _SIZES, _rows
from sam4mllm.evaluation.suite import choose_suite, is_comparable
from tests.data.tiny_datasets import ref, write_reasonseg, write_refs


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """RefCOCO with all splits, RefCOCOg with umd's and google's, gRefCOCO, ReasonSeg with its explanations."""
    splits = ("testB", "train", "val", "testA")
    refs = [ref(number, number, 1, split, "it") for number, split in enumerate(splits, 1)]
    write_refs(tmp_path / "refcoco", refs)
    write_refs(tmp_path / "refcocog", [ref(1, 1, 1, "test", "it"), ref(2, 1, 1, "val", "it")], split_by="umd")
    write_refs(tmp_path / "refcocog", [ref(1, 1, 1, "train", "it"), ref(2, 1, 1, "val", "it")], split_by="google")
    (tmp_path / "grefcoco").mkdir()
    (tmp_path / "grefcoco/grefs(unc).json").write_text(json.dumps([*refs, ref(9, [-1], 1, "odd", "nothing")]))
    for split in ("train", "val", "test"):
        write_reasonseg(tmp_path, split, "a", ["why"], [])
    (tmp_path / "ReasonSeg/explanatory").mkdir()
    (tmp_path / "ReasonSeg/explanatory/train.json").write_text("[]")
    return tmp_path


def test_benchmarks_and_held_out_splits_are_found_under_the_root(root: Path) -> None:
    assert benchmarks_in(root) == ["refcoco", "refcocog", "grefcoco", "reasonseg"]
    assert held_out_splits("refcoco", root) == ["val", "testA", "testB"]
    assert held_out_splits("shapes", root) == ["val", "testA", "testB"]
    assert held_out_splits("refcocog", root) == ["val", "test"]
    assert held_out_splits("refcocog", root, "google") == ["val"]
    assert held_out_splits("grefcoco", root) == ["val", "testA", "testB", "odd"]
    assert held_out_splits("reasonseg", root) == ["val", "test"]


ALL = "refcoco-val refcoco-testA refcoco-testB refcocog-val refcocog-test grefcoco-val grefcoco-testA grefcoco-testB "
ALL += "grefcoco-odd reasonseg-val reasonseg-test"


@pytest.mark.parametrize(
    ("datasets", "splits", "chosen"),
    [
        (["refcoco"], ["val"], ""),
        (["refcoco"], ["testB", "val", "testB"], "refcoco-testB refcoco-val"),
        (["refcocog"], [], "refcocog-val refcocog-test"),
        (["refcocog", "reasonseg"], ["test"], "refcocog-test reasonseg-test"),
        (["all"], [], ALL),
        (["all"], ["testA"], "refcoco-testA grefcoco-testA"),
    ],
)
def test_each_chosen_split_has_its_folder(root: Path, datasets: list[str], splits: list[str], chosen: str) -> None:
    suite = choose_suite(datasets, splits, root, limit=3)
    assert [str(folder.relative_to("out")) for folder in suite.folders(Path("out"))] == (chosen.split() or ["."])
    assert suite.named == (not chosen) and all(entry.limit == 3 and entry.root == root for entry in suite.entries)
    assert suite.default_output(Path("run")) == Path("run/evaluate/refcoco-val" if suite.named else "run/evaluate")


def test_a_split_evaluated_alone_has_the_folder_that_it_has_among_all(root: Path) -> None:
    alone = choose_suite(["refcoco"], ["val"], root)
    together = choose_suite(["all"], [], root)
    home = Path("run")
    assert alone.folders(alone.default_output(home))[0] in together.folders(together.default_output(home))


def test_a_folder_of_images_is_not_for_reasonseg_if_there_are_other_data_sets(root: Path) -> None:
    images = root / "refcoco"
    found = {entry.dataset: entry.images for entry in choose_suite(["all"], ["val"], root, images=images).entries}
    assert found == {"refcoco": images, "refcocog": images, "grefcoco": images, "reasonseg": None}
    (alone,) = choose_suite(["reasonseg"], ["val"], root, images=images).entries
    assert alone.images == images


@pytest.mark.parametrize(
    ("datasets", "splits", "split_by", "message"),
    [
        (["all"], ["vel"], None, "no data set there has the split vel"),
        (["all"], ["val"], "google", "split_by: .google. is the split file of one data set"),
        (["refcoco+"], [], None, r"refcoco\+/refs\(unc\).p: no such file"),
        (["refcocog"], [], "mine", r"refs\(mine\).p: no such file"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(
    root: Path, datasets: list[str], splits: list[str], split_by: str | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        choose_suite(datasets, splits, root, split_by=split_by)


def test_a_root_without_data_or_with_training_data_alone_is_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no data set to evaluate"):
        choose_suite(["all"], [], tmp_path / "empty")
    with pytest.raises(DataError, match="nowhere: no such folder"):
        choose_suite(["all"], [], tmp_path / "nowhere")
    write_refs(tmp_path / "empty/refcoco", [ref(1, 1, 1, "train", "it")])
    with pytest.raises(DataError, match="holds no split to evaluate on"):
        choose_suite(["all"], [], tmp_path / "empty")


def test_only_a_complete_split_of_real_data_with_the_usual_split_file_is_comparable_with_published_results(
    root: Path,
) -> None:
    def entry(name: str, split: str = "val", **more: Any) -> DataEntry:
        return DataEntry(dataset=name, root=root, split=split, **more)

    def samples(count: int, images: int) -> list[Sample]:
        return [Sample(f"s/{n}", Path(f"{n % images}.jpg"), (4, 4), "it", ()) for n in range(count)]

    refcocog, reasonseg = samples(4896, 1300), samples(200, 200)
    assert is_comparable(entry("refcocog"), refcocog) and is_comparable(entry("refcocog", split_by="umd"), refcocog)
    assert is_comparable(entry("reasonseg"), reasonseg, "reasonseg")
    assert not is_comparable(entry("reasonseg"), reasonseg, "grefcoco")
    assert not is_comparable(entry("refcocog", split_by="google"), refcocog)
    assert not is_comparable(entry("refcocog", limit=5000), refcocog)
    assert not is_comparable(DataEntry(dataset="jsonl", path=root / "val.jsonl"), refcocog)
    # Other data in the benchmark's format have other counts.
    assert not is_comparable(entry("refcocog"), samples(4895, 1300))
    assert not is_comparable(entry("refcocog"), samples(4896, 1299))
    assert not is_comparable(entry("refcocog", "test"), refcocog)
    assert not is_comparable(entry("refcoco"), samples(11, 3)) and not is_comparable(entry("reasonseg"), refcocog)
    assert is_comparable(entry("refcoco"), samples(10834, 1500))
    mark_generated(root, scenes=1, held_out=2, seed=0)
    assert not is_comparable(entry("refcoco"), samples(10834, 1500))


def test_every_published_row_has_a_known_size() -> None:
    rows = [(row.dataset, row.split) for row in _rows()]
    assert rows and set(rows) <= set(_SIZES)
