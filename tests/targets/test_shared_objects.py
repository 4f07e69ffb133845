"""Targets of objects that several data sets share: each is scored once and stored under each of its ids."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sam4mllm.data.entry import DataSection, data_entry
from sam4mllm.data.masks import encode
from sam4mllm.data.mixture import read_mixture
from sam4mllm.data.sample import Sample
from sam4mllm.targets import prepare
from sam4mllm.targets.prepare import compute_targets
from sam4mllm.targets.store import TargetStore
from tests.data.tiny_datasets import annotation, image_record, ref, write_instances, write_noise, write_refs
from tests.targets.examples import SETTINGS, Counting, content, disc, make_samples, mask_object, under_other_ids


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    return make_samples(tmp_path / "images")


def test_objects_that_data_sets_share_are_scored_once(samples: list[Sample], tmp_path: Path) -> None:
    alone = Counting()
    expected = compute_targets(samples, alone, SETTINGS, tmp_path / "alone").read()
    # The second data set has the same image files, the third one copies of them.
    shutil.copytree(tmp_path / "images", tmp_path / "copies")
    copied = [replace(sample, image=tmp_path / "copies" / sample.image.name) for sample in samples]
    shared = [*samples, *under_other_ids(samples, "second"), *under_other_ids(copied, "third")]
    segmenter = Counting()
    targets = compute_targets(shared, segmenter, SETTINGS, tmp_path / "all").read()
    assert (segmenter.images, segmenter.prompts) == (alone.images, alone.prompts) == (4, 8 * (8 + 1))
    assert len(targets) == 3 * len(expected) == 24
    for object_id, target in expected.items():
        for name in (object_id, f"second/{object_id}", f"third/{object_id}"):
            assert targets[name] == replace(target, object_id=name)


def test_an_object_of_several_phrases_and_published_data_sets_is_scored_once(tmp_path: Path) -> None:
    """RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO refer to the same annotations, each by several sentences."""
    write_noise(tmp_path, [5, 6])
    images = [image_record(5, 60, 40), image_record(6, 60, 40)]
    annotations = [annotation(50, 5), annotation(51, 5, x=20), annotation(60, 6, x=30)]
    for name, split_by in (("refcoco", "unc"), ("refcoco+", "unc"), ("refcocog", "umd"), ("grefcoco", "unc")):
        write_instances(tmp_path / name, images, annotations)
        refs = [
            ref(1, [50, 51] if name == "grefcoco" else 50, 5, "train", f"{name} left", "the left one", "first"),
            ref(2, 51, 5, "train", f"{name} right", "the right one"),
            ref(3, 60, 6, "train", "alone", f"{name} alone"),
        ]
        if name == "grefcoco":
            (tmp_path / name / "grefs(unc).json").write_text(json.dumps(refs))
        else:
            write_refs(tmp_path / name, refs, split_by=split_by)
    entries = [
        data_entry(name, root=tmp_path, split="train") for name in ("refcoco", "refcoco+", "refcocog", "grefcoco")
    ]
    samples = read_mixture(DataSection(train=entries, guard=[]), seed=0).samples
    assert len(samples) == 4 * 7
    segmenter = Counting()
    targets = compute_targets(samples, segmenter, SETTINGS, tmp_path / "store").read()
    assert (segmenter.images, segmenter.prompts) == (2, 3 * (8 + 1))
    assert len(targets) == 4 * 3
    assert len({target.prompts for target in targets.values()}) == 3


def test_the_target_of_a_shared_object_does_not_depend_on_which_data_set_is_first(
    samples: list[Sample], tmp_path: Path
) -> None:
    second = under_other_ids(samples, "second")
    settings = replace(SETTINGS, judge="jittered")
    first = compute_targets([*samples, *second], Counting(), settings, tmp_path / "first")
    last = compute_targets([*second[::-1], *samples], Counting(), settings, tmp_path / "last")
    assert first.path.name != last.path.name
    assert first.read() == last.read() and len(first.read()) == 16
    assert len({each.object_hash for each in first.results()}) == 8
    # Some phrases of each data set: the objects that are left have the same targets.
    part = compute_targets([samples[0], second[5]], Counting(), settings, tmp_path / "part").read()
    assert part == {name: first.read()[name] for name in ("ann/0/0", "second/ann/1/1")}


def test_another_mask_box_or_image_gets_its_own_target(samples: list[Sample], tmp_path: Path) -> None:
    first = samples[0]
    (item,) = first.objects
    other_mask = mask_object("other mask", disc((16, 16), 9.5, first.size_wh))
    other_box = replace(item, id="other box", box=item.box.widen(0.05, first.size_wh))
    other_image = tmp_path / "images" / "other.png"
    Image.new("RGB", first.size_wh).save(other_image)
    given = [
        first,
        replace(first, objects=(other_mask,)),
        replace(first, objects=(other_box,)),
        replace(first, image=other_image, objects=(replace(item, id="other image"),)),
        replace(first, ignore=encode(~item.mask()), objects=(replace(item, id="other ignored pixels"),)),
        replace(first, objects=(replace(item, id="same"),)),
    ]
    segmenter = Counting()
    store = compute_targets(given, segmenter, replace(SETTINGS, negatives=0), tmp_path / "store")
    assert (segmenter.images, segmenter.prompts) == (2, 5 * (8 + 1))
    targets = store.read()
    names = [item.id, "other mask", "other box", "other image", "other ignored pixels"]
    assert len({targets[name].prompts for name in names}) == 5
    assert targets["same"] == replace(targets[item.id], object_id="same")
    assert targets["other box"].prompts[0].box == other_box.box


def test_a_resumed_job_with_shared_objects_writes_the_same_bytes(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "SHARD_OBJECTS", 3)
    shared = [*samples, *under_other_ids(samples[4:], "other")]
    full = compute_targets(shared, Counting(), SETTINGS, tmp_path / "full")
    assert full.shards() == [0, 1]
    with pytest.raises(KeyboardInterrupt):
        compute_targets(shared, Counting(stop_after=3), SETTINGS, tmp_path / "stopped")
    stopped = TargetStore.open(tmp_path / "stopped", full.key)
    assert list(stopped.read()) == ["ann/0/0", "ann/0/1", "ann/1/0", "other/ann/1/0", "ann/1/1", "other/ann/1/1"]
    rest = Counting()
    assert content(compute_targets(shared, rest, SETTINGS, tmp_path / "stopped")) == content(full)
    assert rest.images == 2


def test_the_reason_for_skipping_a_shared_object_is_stored_under_each_id(samples: list[Sample], tmp_path: Path) -> None:
    full = replace(samples[0], objects=(mask_object("full", np.ones(samples[0].size_wh[::-1], dtype=bool)),))
    store = compute_targets([full, *under_other_ids([full], "other")], Counting(), SETTINGS, tmp_path / "store")
    reason = "the mask leaves 0 pixels of the image; no place for 1 negative points"
    assert store.skipped() == dict.fromkeys(["full", "other/full"], reason)
