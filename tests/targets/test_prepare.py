import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sam4mllm.data.masks import encode
from sam4mllm.data.sample import MaskObject, Sample
from sam4mllm.errors import DataError
from sam4mllm.segmenters.fake import BoxSegmenter
from sam4mllm.segmenters.segment_anything import SegmentAnything
from sam4mllm.targets import prepare
from sam4mllm.targets.objects import objects_by_image
from sam4mllm.targets.prepare import compute_targets, plan_shards, store_key
from sam4mllm.targets.store import TargetStore
from sam4mllm.testing import tiny_sam
from sam4mllm.utils.distributed import DistributedContext
from tests.targets.examples import SETTINGS, Counting, content, make_samples, mask_object, under_other_ids


def test_an_object_without_a_mask_is_left_out(samples: list[Sample], tmp_path: Path) -> None:
    boxed = MaskObject("boxed", None, samples[0].objects[0].box)
    also = [*samples, replace(samples[0], id="boxed", objects=(boxed,))]
    assert objects_by_image(also) == objects_by_image(samples)
    store = compute_targets(also, Counting(), SETTINGS, tmp_path / "store")
    assert "boxed" not in store.read() and "boxed" not in store.skipped()


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    return make_samples(tmp_path / "images")


def test_every_object_gets_the_group_with_the_highest_iou(samples: list[Sample], tmp_path: Path) -> None:
    segmenter = Counting()
    targets = compute_targets(samples, segmenter, SETTINGS, tmp_path / "store").read()
    assert list(targets) == [f"ann/{image}/{index}" for image in range(4) for index in range(2)]
    assert segmenter.images == 4
    assert segmenter.prompts == 8 * (8 + 1)
    boxes = {item.id: item.box for sample in samples for item in sample.objects}
    embeddings = {sample.image: segmenter.embed([np.zeros((40, sample.size_wh[0], 3), np.uint8)]) for sample in samples}
    for sample in samples:
        for item in sample.objects:
            target = targets[item.id]
            (prompt,) = target.prompts
            assert prompt.box == boxes[item.id]
            assert [point.label for point in prompt.points] == [1, 1, 0]
            mask = segmenter.masks(segmenter.decode(embeddings[sample.image], [(0, prompt)]))[0].numpy()
            iou = (mask & item.mask()).sum() / (mask | item.mask()).sum()
            assert target.ious == (pytest.approx(iou),)
            assert target.ious[0] >= target.mean_iou
            assert target.std_iou > 0
            assert 0.6 < target.box_iou < 0.9


def test_ignored_pixels_get_no_points_and_do_not_count_in_the_iou(samples: list[Sample], tmp_path: Path) -> None:
    first = replace(samples[0], id="0/first")
    (item,) = first.objects
    settings = replace(SETTINGS, keep=SETTINGS.groups)
    plain = compute_targets([first], Counting(), settings, tmp_path).read()[item.id]
    # All pixels around the object except its left edge, so the corners of BoxSegmenter's mask do not count.
    ignored = ~item.mask()
    ignored[:, : int(item.box.x1) + 1] = False
    store = compute_targets([replace(first, ignore=encode(ignored)), *samples], Counting(), settings, tmp_path)
    target = store.read()[item.id]
    assert all(not ignored[int(p.y), int(p.x)] for prompt in target.prompts for p in prompt.points)
    assert target.box_iou > 0.95 > plain.box_iou
    # Where a mask and ignored pixels overlap, the pixels are ignored.
    hidden = replace(first, ignore=encode(item.mask()))
    assert compute_targets([hidden], Counting(), settings, tmp_path).skipped() == {item.id: "the mask is empty"}


def test_stored_targets_are_not_computed_again(samples: list[Sample], tmp_path: Path) -> None:
    first = compute_targets(samples, Counting(), SETTINGS, tmp_path / "store")
    idle = Counting(stop_after=0)
    second = compute_targets(samples, idle, replace(SETTINGS, batch_size=3), tmp_path / "store")
    assert idle.prompts == 0
    assert second.path == first.path
    assert second.read() == first.read()


def test_the_store_exists_before_its_key_is_broadcast(samples: list[Sample], tmp_path: Path) -> None:
    exists: list[bool] = []

    class Watched(DistributedContext):
        def broadcast_result(self, decide: Any) -> Any:
            decided = decide()
            if isinstance(decided, dict):
                exists.append(any((tmp_path / "store").glob("*/key.json")))
            return decided

    compute_targets(samples, Counting(), SETTINGS, tmp_path / "store", Watched())
    assert exists == [True], "the key was broadcast before the store was created"


def test_a_resumed_job_writes_the_same_bytes(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "SHARD_OBJECTS", 3)
    full = compute_targets(samples, Counting(), SETTINGS, tmp_path / "full")
    assert full.shards() == [0, 1]
    with pytest.raises(KeyboardInterrupt):
        compute_targets(samples, Counting(stop_after=3), SETTINGS, tmp_path / "stopped")
    stopped = TargetStore.open(tmp_path / "stopped", full.key)
    assert stopped.shards() == [0]
    assert stopped.missing(full.read()) == [f"ann/{image}/{index}" for image in (2, 3) for index in (0, 1)]
    rest = Counting()
    assert content(compute_targets(samples, rest, SETTINGS, tmp_path / "stopped")) == content(full)
    assert rest.images == 2


@pytest.mark.parametrize("judge", ["exact", "jittered", "none"])
def test_targets_do_not_depend_on_batch_size_or_order(samples: list[Sample], tmp_path: Path, judge: Any) -> None:
    segmenter = SegmentAnything(tiny_sam())
    settings = replace(SETTINGS, judge=judge)
    full = compute_targets(samples, segmenter, settings, tmp_path / "full").read()
    small = compute_targets(samples, segmenter, replace(settings, batch_size=5), tmp_path / "small").read()
    backwards = compute_targets(samples[::-1], segmenter, settings, tmp_path / "backwards").read()
    for other in (small, backwards):
        assert set(other) == set(full)
        for object_id, target in full.items():
            assert other[object_id].prompts == target.prompts
            assert other[object_id].mean_iou == pytest.approx(target.mean_iou, abs=2e-3)


def test_the_key_depends_on_all_that_changes_the_targets_and_nothing_else(
    samples: list[Sample], tmp_path: Path
) -> None:
    images = objects_by_image(samples)
    key = store_key(images, BoxSegmenter(), SETTINGS)
    also = [*samples, *under_other_ids(samples[:1], "other")]
    assert store_key(objects_by_image(samples), BoxSegmenter(), replace(SETTINGS, batch_size=1)) == key
    others = [
        store_key(images, BoxSegmenter(points_cut=True), SETTINGS),
        store_key(images, BoxSegmenter(), replace(SETTINGS, seed=1)),
        store_key(objects_by_image(samples[:-4]), BoxSegmenter(), SETTINGS),
        # The ids are in the shards, so a further id needs another store.
        store_key(objects_by_image(also), BoxSegmenter(), SETTINGS),
    ]
    moved = shutil.move(tmp_path / "images", tmp_path / "moved")
    elsewhere = [replace(sample, image=Path(moved) / sample.image.name) for sample in samples]
    assert store_key(objects_by_image(elsewhere), BoxSegmenter(), SETTINGS) == key
    # Other bytes under the same file name.
    shutil.copy(Path(moved) / "0.png", Path(moved) / "copy.png")
    with (Path(moved) / "0.png").open("ab") as file:
        file.write(b" ")
    others.append(store_key(objects_by_image(elsewhere), BoxSegmenter(), SETTINGS))
    assert len({str(sorted(other.items())) for other in [key, *others]}) == 6


def test_objects_without_a_target_are_stored_with_their_reason(samples: list[Sample], tmp_path: Path) -> None:
    size_wh = samples[0].size_wh
    full = mask_object("full", np.ones(size_wh[::-1], dtype=bool))
    first = replace(samples[0], objects=(samples[0].objects[0], full))
    segmenter = Counting()
    store = compute_targets([first], segmenter, SETTINGS, tmp_path / "store")
    assert list(store.read()) == ["ann/0/0"]
    assert store.skipped() == {"full": "the mask leaves 0 pixels of the image; no place for 1 negative points"}
    again = Counting(stop_after=0)
    assert compute_targets([first], again, SETTINGS, tmp_path / "store").missing(["full"]) == []


def test_min_iou_drops_groups_and_objects(samples: list[Sample], tmp_path: Path) -> None:
    segmenter = Counting()
    free = compute_targets(samples, segmenter, replace(SETTINGS, keep=8), tmp_path).read()
    floor = float(np.median([iou for target in free.values() for iou in target.ious]))
    store = compute_targets(samples, segmenter, replace(SETTINGS, keep=8, min_iou=floor), tmp_path)
    for object_id, target in free.items():
        over = tuple(iou for iou in target.ious if iou >= floor)
        assert target.ious == tuple(sorted(target.ious, reverse=True))
        if over:
            assert store.read()[object_id].ious == over
        else:
            assert f"is below min_iou {floor}" in store.skipped()[object_id]
    strict = compute_targets(samples, segmenter, replace(SETTINGS, min_iou=1.0), tmp_path)
    assert strict.read() == {}
    assert len(strict.skipped()) == 8


def test_random_choice_keeps_the_first_sampled_groups(samples: list[Sample], tmp_path: Path) -> None:
    top = compute_targets(samples, Counting(), replace(SETTINGS, keep=8), tmp_path).read()
    random = compute_targets(samples, Counting(), replace(SETTINGS, keep=2, choose="random"), tmp_path).read()
    for object_id, target in random.items():
        assert target.prompts != top[object_id].prompts[:2] or target.ious == top[object_id].ious[:2]
        assert set(target.prompts) <= set(top[object_id].prompts)
    assert np.mean([t.ious[0] for t in random.values()]) < np.mean([t.ious[0] for t in top.values()])


def test_an_id_of_two_objects_raises_an_error(samples: list[Sample], tmp_path: Path) -> None:
    other = replace(samples[4], objects=(replace(samples[4].objects[0], id="ann/0/0"),))
    with pytest.raises(DataError, match=r"two different objects have the id ann/0/0"):
        compute_targets([samples[0], other], BoxSegmenter(), SETTINGS, tmp_path)


def test_a_missing_or_wrongly_sized_image_raises_an_error(samples: list[Sample], tmp_path: Path) -> None:
    missing = replace(samples[0], image=tmp_path / "none.jpg")
    with pytest.raises(DataError, match=r"none.jpg cannot be read: No such file"):
        compute_targets([missing], BoxSegmenter(), SETTINGS, tmp_path / "store")
    text = tmp_path / "text.jpg"
    text.write_text("no image")
    with pytest.raises(DataError, match=r"text.jpg"):
        compute_targets([replace(samples[0], image=text)], BoxSegmenter(), SETTINGS, tmp_path / "store")
    with pytest.raises(DataError, match=r"1.png is \(61, 40\) \(W, H\), but its annotation is for \(60, 40\)"):
        compute_targets([replace(samples[0], image=samples[4].image)], BoxSegmenter(), SETTINGS, tmp_path / "store")


def test_shards_consist_of_complete_images(samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "SHARD_OBJECTS", 3)
    images = objects_by_image(samples)
    assert [len(shard) for shard in plan_shards(images)] == [2, 2]
    assert [image for shard in plan_shards(images) for image in shard] == images
    assert plan_shards([]) == []


def test_samples_without_objects_make_an_empty_store(samples: list[Sample], tmp_path: Path) -> None:
    store = compute_targets([replace(samples[0], objects=())], BoxSegmenter(), SETTINGS, tmp_path)
    assert store.read() == {}


def test_smaller_batches_where_memory_runs_out_give_the_same_store(
    samples: list[Sample], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class SmallDevice(Counting):
        def decode_points(self, embeddings: Any, index: Any, *arguments: Any) -> Any:
            if len(index) > 5:
                raise torch.OutOfMemoryError("no room")
            return super().decode_points(embeddings, index, *arguments)

    full = compute_targets(samples, Counting(), SETTINGS, tmp_path / "full")
    assert content(compute_targets(samples, SmallDevice(), SETTINGS, tmp_path / "small")) == content(full)
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory with 16 prompts at once; 4 at once from now on, with equal results up to rounding"
    ]


def test_an_image_that_vanishes_is_named_and_completed_shards_are_kept(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "SHARD_OBJECTS", 2)
    full = compute_targets(samples, Counting(), SETTINGS, tmp_path / "full")
    image = samples[8].image
    saved = image.read_bytes()

    class Vanishing(Counting):
        def embed(self, images: Any) -> Any:
            image.unlink(missing_ok=True)
            return super().embed(images)

    with pytest.raises(DataError, match=rf"{image.name}: no such file; an image was expected"):
        compute_targets(samples, Vanishing(), SETTINGS, tmp_path / "store")
    assert TargetStore.open(tmp_path / "store", full.key).shards() == [0, 1]
    image.write_bytes(saved)
    rest = Counting()
    assert content(compute_targets(samples, rest, SETTINGS, tmp_path / "store")) == content(full)
    assert rest.images == 2
