import json
from dataclasses import replace
from pathlib import Path

import pytest

from sam4mllm.errors import DataError
from sam4mllm.geometry import Box, Point, SamPrompt
from sam4mllm.segmenters.fake import BoxSegmenter
from sam4mllm.targets.prepare import compute_targets
from sam4mllm.targets.store import ObjectTarget, SkippedObject, TargetStore
from tests.targets.examples import SETTINGS, make_samples

KEY = {"data": "d", "segmenter": "s", "settings": {"groups": 2}}


def target(object_id: str, keep: int = 2, points: int = 1) -> ObjectTarget:
    prompts = tuple(
        SamPrompt(Box(1.25, 2, 30.1, 40), tuple(Point(3.5 + rank + i, 4.5, i % 2) for i in range(points)))
        for rank in range(keep)
    )
    return ObjectTarget(object_id, f"hash of {object_id}", prompts, (0.5, 0.25)[:keep], 0.75, 0.5, 0.125)


@pytest.mark.parametrize(
    ("ious", "box_iou", "beat"),
    [
        ((0.9,), 0.8, True),
        ((0.8,), 0.9, False),
        # An equal IoU does not beat the box.
        ((0.9,), 0.9, False),
        # Groups chosen at random are not sorted by IoU.
        ((0.7, 0.9, 0.8), 0.85, True),
    ],
)
def test_points_beat_the_box_if_a_group_has_a_higher_iou(ious: tuple[float, ...], box_iou: float, beat: bool) -> None:
    assert replace(target("a"), ious=ious, box_iou=box_iou).points_beat_box is beat


def test_points_that_do_not_change_the_mask_do_not_beat_the_box(tmp_path: Path) -> None:
    samples = make_samples(tmp_path / "images", images=1)
    ignoring = compute_targets(samples, BoxSegmenter(), SETTINGS, tmp_path / "store").read()
    assert not any(each.points_beat_box for each in ignoring.values())
    # A negative point removes pixels near a corner of the box, which are off the disc, too.
    using = compute_targets(samples, BoxSegmenter(points_cut=True), SETTINGS, tmp_path / "store").read()
    assert all(each.points_beat_box for each in using.values())


def test_written_shards_are_read_back(tmp_path: Path) -> None:
    store = TargetStore.open(tmp_path, KEY)
    store.write_shard(0, [target("a"), SkippedObject("b", "hash of b", "the mask is empty")])
    store.write_shard(1, [target("c", keep=1, points=3), target("d", points=0)])
    again = TargetStore.open(tmp_path, KEY)
    assert again.read() == {
        "a": target("a"),
        "c": target("c", keep=1, points=3),
        "d": target("d", points=0),
    }
    assert list(again.read()) == ["a", "c", "d"]
    assert again.skipped() == {"b": "the mask is empty"}
    assert [each.object_hash for each in again.results()] == [f"hash of {name}" for name in "abcd"]
    assert again.missing(["x", "b", "a", "y"]) == ["x", "y"]
    assert again.shards() == [0, 1]


def test_a_shard_of_only_skipped_objects_can_be_read(tmp_path: Path) -> None:
    store = TargetStore.open(tmp_path, KEY)
    store.write_shard(0, [SkippedObject("b", "hash of b", "empty")])
    assert store.read() == {}
    assert store.skipped() == {"b": "empty"}


def test_another_key_opens_another_store(tmp_path: Path) -> None:
    TargetStore.open(tmp_path, KEY).write_shard(0, [target("a")])
    for other in (KEY | {"data": "e"}, KEY | {"segmenter": "t"}, KEY | {"settings": {"groups": 3}}):
        assert TargetStore.open(tmp_path, other).read() == {}
    assert TargetStore.open(tmp_path, dict(reversed(KEY.items()))).read() == {"a": target("a")}


def test_temporary_files_are_not_read(tmp_path: Path) -> None:
    store = TargetStore.open(tmp_path, KEY)
    store.write_shard(0, [target("a")])
    (store.path / ".targets-00001.parquet.99").write_bytes(b"half a file")
    assert store.shards() == [0]
    assert list(store.read()) == ["a"]
    assert not [file for file in store.path.iterdir() if file.name.startswith(".targets-00000")]


def test_equal_results_are_written_as_equal_bytes(tmp_path: Path) -> None:
    stores = [TargetStore.open(tmp_path / name, KEY) for name in ("one", "two")]
    for store in stores:
        store.write_shard(0, [target("a"), SkippedObject("b", "hash of b", "empty")])
    first, second = ((store.path / "targets-00000.parquet").read_bytes() for store in stores)
    assert first == second


def test_a_damaged_shard_or_key_raises_an_error(tmp_path: Path) -> None:
    store = TargetStore.open(tmp_path, KEY)
    store.write_shard(0, [target("a")])
    (store.path / "targets-00000.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(DataError, match=r"targets-00000.parquet cannot be read .*delete it"):
        store.read()
    (store.path / "key.json").write_text(json.dumps({"format": 0}))
    with pytest.raises(DataError, match="is not the key of this store"):
        TargetStore.open(tmp_path, KEY)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(DataError, match="cannot use"):
        TargetStore.open(blocked, KEY)


def test_shards_can_be_loaded_by_datasets(tmp_path: Path) -> None:
    from datasets import load_dataset

    store = TargetStore.open(tmp_path / "store", KEY)
    store.write_shard(0, [target("a"), SkippedObject("b", "hash of b", "empty")])
    files = str(store.path / "targets-*.parquet")
    rows = load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert rows["object_id"][:] == ["a", "b"]
    assert rows["object_hash"][:] == ["hash of a", "hash of b"]
    assert rows[0]["ious"] == [0.5, 0.25]
