"""The leakage filter finds a held-out image by its file, its COCO id or its bytes, and hashes only if names differ."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sam4mllm.data.entry import DataEntry, DataSection
from sam4mllm.data.leakage import LeakageFilter, coco_id, leakage_filter_for
from sam4mllm.data.registry import mark_generated
from tests.data.tiny_datasets import (
    IMAGES,
    annotation,
    image_record,
    rectangle,
    ref,
    region,
    write_image,
    write_instances,
    write_reasonseg,
    write_refs,
    write_visual_genome,
)


@pytest.mark.parametrize(
    ("name", "identity"),
    [
        ("COCO_train2014_000000123456.jpg", 123456),
        ("COCO_val2014_000000000001.jpg", 1),
        ("000000123456.jpg", 123456),
        ("COCO_train2014_000000123456_3.jpg", None),
        ("123456.jpg", None),
        ("4797837_a3a0a5e2ea_o.jpg", None),
        ("scene_000000123456.jpg", None),
        ("202601311200.jpg", None),
        ("000000000000.jpg", None),
    ],
)
def test_coco_ids_in_names(name: str, identity: int | None) -> None:
    assert coco_id(Path("folder") / name) == identity


def write_noise(path: Path, seed: int, *, side: int = 64) -> Path:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize((side, side), Image.Resampling.BILINEAR).save(path)
    return path


def test_a_name_of_twelve_digits_is_a_coco_id_only_if_the_files_show_one_image(tmp_path: Path) -> None:
    held = [write_noise(tmp_path / f"COCO_train2014_{n:012d}.jpg", seed=n) for n in (5, 6, 7)]
    held.append(write_noise(tmp_path / "held/000000000008.png", seed=8))
    leakage_filter = LeakageFilter({"val": held})
    (tmp_path / "copies").mkdir()
    equal = Path(shutil.copy(held[0], tmp_path / "copies/000000000005.jpg"))
    smaller = write_noise(tmp_path / "copies/000000000006.png", seed=6, side=40)
    frame = write_noise(tmp_path / "frames/000000000007.jpg", seed=70)
    other_frame = write_noise(tmp_path / "frames/000000000008.png", seed=80)
    renamed = Path(shutil.copy(held[3], tmp_path / "frames/000000000009.png"))
    assert leakage_filter.reason(equal) == leakage_filter.reason(smaller) == "coco id"
    assert leakage_filter.reason(frame) is leakage_filter.reason(other_frame) is None
    assert leakage_filter.reason(renamed) == "content"
    # Without the files, the names decide.
    assert leakage_filter.reason(tmp_path / "gone/000000000007.jpg") == "coco id"
    # Both names are COCO's of 2014, so the id decides, whatever the files hold.
    assert leakage_filter.reason(write_noise(tmp_path / "x/COCO_val2014_000000000005.jpg", seed=50)) == "coco id"


def test_an_image_is_found_by_file_by_id_and_by_content(tmp_path: Path) -> None:
    held = tmp_path / "COCO_train2014_000000000005.jpg"
    foreign = write_image(tmp_path / "foreign.jpg", 30, 20)
    write_image(held)
    leakage_filter = LeakageFilter({"val": [held, held], "test": [foreign]})
    assert leakage_filter.images == {"val": 1, "test": 1}
    copy = shutil.copy(held, tmp_path / "renamed.jpg")
    named = shutil.copy(foreign, tmp_path / "COCO_val2014_000000000009.jpg")
    other = write_image(tmp_path / "other.jpg", 31, 20)
    # Two COCO names with different ids are two images, even if their bytes are equal.
    twin = shutil.copy(held, tmp_path / "COCO_train2014_000000000007.jpg")
    assert leakage_filter.reason(held) == "file"
    assert leakage_filter.reason(tmp_path / "elsewhere" / "000000000005.jpg") == "coco id"
    assert leakage_filter.reason(Path(copy)) == leakage_filter.reason(Path(named)) == "content"
    assert [leakage_filter.reason(path) for path in (other, Path(twin), tmp_path / "missing.jpg")] == [None] * 3


def test_generated_images_are_compared_by_file_and_content_because_their_ids_are_not_cocos(tmp_path: Path) -> None:
    name = IMAGES + "/COCO_train2014_000000000005.jpg"
    one, other, real = (tmp_path / folder / name for folder in ("one", "other", "real"))
    write_image(one)
    write_image(other, 21, 10)
    write_image(real, 22, 10)
    for folder in ("one", "other"):
        mark_generated(tmp_path / folder, scenes=1, held_out=1, seed=0)
    leakage_filter = LeakageFilter({"val": [one]})
    assert leakage_filter.reason(one) == "file"
    assert leakage_filter.reason(other) is leakage_filter.reason(real) is None
    assert LeakageFilter({"val": [real]}).reason(one) is None
    copy = Path(shutil.copy(one, tmp_path / "other" / IMAGES / "COCO_train2014_000000000006.jpg"))
    assert leakage_filter.reason(copy) == "content"


def test_only_files_of_equal_length_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = [write_image(tmp_path / f"held{n}.png", 10 + n, 10) for n in range(3)]
    mine = [write_image(tmp_path / f"mine{n}.png", 200, 100 + n) for n in range(3)]
    read = []
    original = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, how: read.append(file.name) or original(file, how))
    leakage_filter = LeakageFilter({"val": held})
    assert [leakage_filter.reason(each) for each in mine if each.stat().st_size not in {h.stat().st_size for h in held}]
    assert read == []
    copy = Path(shutil.copy(held[1], tmp_path / "copy.png"))
    assert leakage_filter.reason(copy) == leakage_filter.reason(copy) == "content"
    assert len(read) == len(set(read)) and str(copy) in read


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """RefCOCO with four images in four splits, and ReasonSeg with one in each of two."""
    numbers = {"train": 1, "val": 2, "testA": 3, "testB": 4}
    images = [image_record(number) for number in numbers.values()]
    write_instances(tmp_path / "refcoco", images, [annotation(10 * n, n) for n in numbers.values()])
    write_refs(tmp_path / "refcoco", [ref(n, 10 * n, n, split, f"thing {n}") for split, n in numbers.items()])
    for each in images:
        write_image(tmp_path / IMAGES / each["file_name"])
    for split in ("train", "val"):
        write_reasonseg(tmp_path, split, f"{split}_scene", ["what is it?"], [rectangle("target", 2, 1, 8, 5)])
    return tmp_path


def entry(root: Path, name: str, split: str) -> DataEntry:
    return DataEntry(dataset=name, root=root, split=split)


def test_by_default_every_split_but_train_of_the_data_sets_in_the_mixture_is_held_out(root: Path) -> None:
    train = [entry(root, "refcoco", "train")]
    assert leakage_filter_for(DataSection(train=train)).images == {
        "refcoco val": 1,
        "refcoco testA": 1,
        "refcoco testB": 1,
    }
    also = DataSection(train=train, validation=entry(root, "reasonseg", "val"))
    assert leakage_filter_for(also).images == {
        "reasonseg val": 1,
        "refcoco val": 1,
        "refcoco testA": 1,
        "refcoco testB": 1,
    }
    explained = DataSection(train=[DataEntry(dataset="reasonseg-explanations", root=root)])
    assert leakage_filter_for(explained).images == {"reasonseg val": 1}


def test_a_split_that_is_trained_on_is_not_held_out_by_default(root: Path) -> None:
    data = DataSection(train=[entry(root, "refcoco", "train"), entry(root, "refcoco", "val")])
    assert leakage_filter_for(data).images == {"refcoco testA": 1, "refcoco testB": 1}


def test_a_list_replaces_the_default_and_off_holds_nothing_out(root: Path) -> None:
    train = [entry(root, "refcoco", "train")]
    held = [entry(root, "refcoco", "testA"), entry(root, "reasonseg", "val")]
    assert leakage_filter_for(DataSection(train=train, guard=held)).images == {"refcoco testA": 1, "reasonseg val": 1}
    off = DataSection.model_validate({"train": train, "guard": "off"})
    assert leakage_filter_for(off).images == {}
    assert off.model_dump(mode="json")["guard"] == "off"


def test_all_of_validation_is_held_out_also_beside_a_list(tmp_path: Path) -> None:
    for number in range(3):
        write_image(tmp_path / f"{number}.png", 10 + number)
    lines = [json.dumps({"image": f"{number}.png", "phrase": "it"}) for number in range(3)]
    (tmp_path / "val.jsonl").write_text("\n".join(lines))
    (tmp_path / "other.jsonl").write_text(lines[0])
    name = f"jsonl {tmp_path / 'val.jsonl'}"
    data: dict[str, object] = {
        "train": [{"dataset": "jsonl", "path": tmp_path / "train.jsonl"}],
        "validation": {"dataset": "jsonl", "path": tmp_path / "val.jsonl", "limit": 1},
    }
    assert leakage_filter_for(DataSection.model_validate(data)).images == {name: 3}
    listed = data | {"guard": [{"dataset": "jsonl", "path": tmp_path / "other.jsonl"}]}
    assert leakage_filter_for(DataSection.model_validate(listed)).images == {
        name: 3,
        f"jsonl {tmp_path / 'other.jsonl'}": 1,
    }
    assert leakage_filter_for(DataSection.model_validate(data | {"guard": "off"})).images == {}


def test_annotated_coco_ids_find_images_whose_names_and_bytes_do_not(tmp_path: Path) -> None:
    held = write_noise(tmp_path / "COCO_val2014_000000000005.jpg", seed=5)
    path = write_visual_genome(tmp_path / "vg", {1: [region(1, "it")], 2: [region(2, "it", 2)]}, of_2=5)
    guard = [DataEntry(dataset="jsonl", path=tmp_path / "held.jsonl")]
    (tmp_path / "held.jsonl").write_text(json.dumps({"image": held.name, "phrase": "it"}))
    data = DataSection(train=[DataEntry(dataset="visual-genome", path=path)], guard=guard)
    leakage_filter = leakage_filter_for(data)
    assert leakage_filter.reason(path.parent / "VG_100K_2/2.jpg") == "coco id"
    assert leakage_filter.reason(path.parent / "VG_100K/1.jpg") is None
    swapped = leakage_filter_for(DataSection(train=guard, guard=data.train))
    assert swapped.reason(held) == "coco id"
