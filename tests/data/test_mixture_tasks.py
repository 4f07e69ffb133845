"""Mixtures of several tasks: which items each task gets, and that region captions and captions need no targets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sam4mllm.data.entry import DataSection
from sam4mllm.data.mixture import Mixture, read_mixture
from sam4mllm.errors import DataError
from tests.data.tiny_datasets import CAPTION, write_image, write_tasks


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The data sets of `write_tasks`, and a JSONL of phrases with one object, two and none."""
    write_tasks(tmp_path)
    lines = [{"phrase": "one", "boxes": [[1, 1, 5, 5]]}, {"phrase": "two", "boxes": [[1, 1, 5, 5], [2, 2, 6, 6]]}]
    write_image(tmp_path / "own.png")
    lines = [line | {"image": "own.png"} for line in [*lines, {"phrase": "none"}]]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def mix(home: Path, *train: dict[str, Any], **more: Any) -> Mixture:
    paths = {"visual-genome": home / "vg/region_descriptions.json", "jsonl": home / "own.jsonl"}

    def complete(entry: dict[str, Any]) -> dict[str, Any]:
        if entry["dataset"] in paths:
            return {"path": paths[entry["dataset"]]} | entry
        google = {"split_by": "google"} if entry["dataset"] == "refcocog" else {}
        return {"root": home, "split": "train"} | google | entry

    return read_mixture(DataSection.model_validate({"train": [complete(each) for each in train], **more}), seed=0)


GOOGLE = {"dataset": "refcocog"}
AS_REGIONS = {"dataset": "refcocog", "task": "region-caption"}


def test_each_task_has_its_own_items(home: Path) -> None:
    mixed = mix(home, GOOGLE, AS_REGIONS, {"dataset": "flickr30k"}, {"dataset": "visual-genome", "count": 3})
    assert [sample.phrase for sample in mixed.samples] == ["the left cup", "a cup"] and mixed.duplicates == 0
    (regions,) = mixed.regions
    assert regions[:2] == mixed.samples and len(regions) == 5
    assert [caption.id for caption in mixed.captions] == ["flickr30k/train/1/0", "flickr30k/train/2/0"]
    assert mixed.annotated == (*mixed.samples, *regions, *mixed.captions) == mixed.items
    assert [(each.name.partition(" ")[0], each.count) for each in mixed.sets] == [
        ("refcocog", 2),
        ("refcocog", 2),
        ("flickr30k", 2),
        ("visual-genome", 3),
    ]
    assert mixed.sets[1].name == "refcocog train (region-caption)"


def test_held_out_images_are_removed_from_every_task(home: Path) -> None:
    everything = [AS_REGIONS, {"dataset": "flickr30k"}, {"dataset": "visual-genome"}]
    mixed = mix(home, *everything)
    # The images of the val splits of both roots, one of which Visual Genome has under another name.
    assert mixed.guarded == {"refcocog val": 1, "flickr30k val": 1}
    assert [removal.to_json()["by"]["coco id"] for removal in mixed.removals] == [0, 0, 1]
    assert len(mixed.regions[0]) == 2 + 10
    (home / "flickr30k_entities/val.txt").write_text("2\n")
    assert [caption.id for caption in mix(home, {"dataset": "flickr30k"}).captions] == ["flickr30k/train/1/0"]


def test_only_samples_of_one_object_and_captions_with_a_mention_are_used_and_the_others_noted(home: Path) -> None:
    mixed = mix(home, {"dataset": "jsonl", "task": "region-caption"}, {"dataset": "flickr30k"}, guard="off")
    assert [sample.phrase for sample in mixed.regions[0]] == ["one"] and mixed.samples == ()
    assert [each.unusable for each in mixed.sets] == [2, 1]
    first, second = mixed.notes()
    assert "own.jsonl (region-caption): 2 items are left out" in first and "flickr30k train: 1 items" in second
    (home / "own.jsonl").write_text(json.dumps({"image": "own.png", "phrase": "none"}))
    with pytest.raises(DataError, match=r"nothing of this data set .* lack what the task region-caption needs"):
        mix(home, {"dataset": "jsonl", "task": "region-caption"})


def test_weight_and_count_repeat_regions_and_captions(home: Path) -> None:
    mixed = mix(home, AS_REGIONS | {"weight": 2.5}, {"dataset": "flickr30k", "count": 5})
    assert [len(regions) for regions in mixed.regions] == [2, 2, 1] and len(mixed.captions) == 5


def test_captions_as_phrases_are_boxes_to_be_located(home: Path) -> None:
    mixed = mix(home, {"dataset": "flickr30k", "task": "segment"}, guard="off")
    assert [sample.phrase for sample in mixed.samples] == ["A man", "A man"] and not mixed.captions


def test_the_digest_depends_on_the_task_and_is_as_before_without_other_tasks(home: Path) -> None:
    digests = [
        mix(home, *sets).digest()
        for sets in ([GOOGLE], [AS_REGIONS], [GOOGLE, AS_REGIONS], [GOOGLE, {"dataset": "flickr30k"}])
    ]
    assert len(set(digests)) == 4
    assert mix(home, GOOGLE | {"task": "segment"}).digest() == digests[0]
    (home / "flickr30k_entities/Sentences/1.txt").write_text(CAPTION.replace("man", "boy") + "\n")
    assert mix(home, GOOGLE, {"dataset": "flickr30k"}).digest() != digests[3]
