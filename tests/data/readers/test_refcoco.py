from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sam4mllm.data.entry import data_entry
from sam4mllm.data.reading import images_of_splits, read_dataset
from sam4mllm.errors import DataError
from sam4mllm.geometry import Box
from tests.data.tiny_datasets import IMAGES, annotation, image_record, ref, write_image, write_instances, write_refs


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "refcoco"
    write_instances(
        folder,
        [image_record(5), image_record(6, 8, 8)],
        [annotation(50, 5), annotation(51, 5, x=10), annotation(60, 6, x=0)],
    )
    refs = [
        ref(2, 51, 5, "val", "the right one", "not the left"),
        ref(1, 50, 5, "train", "left"),
        ref(3, 60, 6, "val", ""),
        ref(4, 50, 5, "val", "left"),
    ]
    write_refs(folder, refs)
    return tmp_path


def test_a_sample_for_each_sentence_in_the_order_of_the_file(root: Path) -> None:
    samples = read_dataset("refcoco", root, "val")
    assert [sample.id for sample in samples] == [
        "refcoco/val/2/20",
        "refcoco/val/2/21",
        "refcoco/val/3/30",
        "refcoco/val/4/40",
    ]
    assert [sample.phrase for sample in samples] == ["the right one", "not the left", "", "left"]
    first = samples[0]
    assert first.image == root / IMAGES / "COCO_train2014_000000000005.jpg"
    assert first.size_wh == (20, 10)
    (item,) = first.objects
    assert item.id == "refcoco/ann/51"
    assert item.box == Box(10, 1, 16, 5)
    expected = np.zeros((10, 20), dtype=bool)
    expected[1:5, 10:16] = True
    assert np.array_equal(first.mask(), expected)
    assert samples[0].objects[0] is samples[1].objects[0]


@pytest.mark.parametrize(("limit", "count"), [(1, 1), (3, 3), (None, 4), (9, 4)])
def test_a_limit_counts_samples(root: Path, limit: int | None, count: int) -> None:
    assert read_dataset("refcoco", root, "val", limit=limit) == read_dataset("refcoco", root, "val")[:count]


def test_the_images_may_be_in_another_folder(root: Path) -> None:
    (root / "photos").mkdir()
    sample = read_dataset("refcoco", root, "train", images=root / "photos")[0]
    assert sample.image == root / "photos" / "COCO_train2014_000000000005.jpg"


@pytest.mark.parametrize(("name", "split_by"), [("refcoco+", "unc"), ("refcocog", "umd")])
def test_the_other_data_sets_have_their_own_folder_split_and_ids(tmp_path: Path, name: str, split_by: str) -> None:
    write_instances(tmp_path / name, [image_record(5)], [annotation(50, 5)])
    write_refs(tmp_path / name, [ref(1, 50, 5, "val", "a")], split_by=split_by)
    write_refs(tmp_path / name, [ref(9, 50, 5, "val", "b")], split_by="google")
    (sample,) = read_dataset(name, tmp_path, "val")
    assert (sample.id, sample.objects[0].id) == (f"{name}/val/1/10", f"{name}/ann/50")
    (other,) = read_dataset(name, tmp_path, "val", split_by="google")
    assert other.id == f"{name}/val/9/90"


def test_the_name_shapes_reads_the_refcoco_part(root: Path) -> None:
    assert read_dataset("shapes", root, "val") == read_dataset("refcoco", root, "val")


def test_an_annotation_without_bbox_has_the_box_of_its_mask(root: Path) -> None:
    without = annotation(50, 5)
    del without["bbox"]
    write_instances(root / "refcoco", [image_record(5)], [without])
    assert read_dataset("refcoco", root, "train")[0].objects[0].box == Box(2, 1, 8, 5)


def _changed(record: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {key: value for key, value in {**record, **changes}.items() if value is not ...}


REF = ref(1, 50, 5, "val", "left")


@pytest.mark.parametrize(
    ("refs", "message"),
    [
        ({"refs": []}, "a refs file is a list of refs; found dict"),
        ([REF, 7], "record 1: expected an object with ref_id, image_id, split, sentences, ann_id; found 7"),
        ([_changed(REF, ref_id="1")], "record 0: the field 'ref_id' must be an integer; found '1'"),
        ([_changed(REF, ref_id=True)], "the field 'ref_id' must be an integer; found True"),
        ([_changed(REF, ann_id=[50])], r"ref 1: the field 'ann_id' must be an integer; found \[50\]"),
        ([_changed(REF, image_id=...)], "ref 1: the field 'image_id' is missing"),
        ([_changed(REF, split=None)], "ref 1: the field 'split' must be text; found None"),
        ([_changed(REF, sentences="left")], "ref 1: the field 'sentences' must be a list; found 'left'"),
        (
            [_changed(REF, sentences=[{"sent_id": 1}])],
            r"ref 1: the field 'sentences\[0\].sent' is missing; found",
        ),
        ([_changed(REF, sentences=["left"])], r"ref 1: the field 'sentences\[0\]' must be an object; found 'left'"),
        ([_changed(REF, ann_id=99)], r"ref 1: .*instances\.json has no annotation 99"),
        ([_changed(REF, image_id=99)], r"ref 1: .*instances\.json has no image 99"),
        ([_changed(REF, ann_id=60)], "ref 1: annotation 60 belongs to image 6, not to 5"),
        ([REF, REF], "the sentence 10 comes twice, so refcoco/val/1/10 would name two queries"),
        ([_changed(REF, split="testA")], "no ref belongs to the split 'val'; the file has: testA"),
        ([], "no ref belongs to the split 'val'; the file has: none"),
    ],
)
def test_a_bad_ref_is_reported_with_file_and_ref(root: Path, refs: Any, message: str) -> None:
    write_refs(root / "refcoco", refs)
    with pytest.raises(DataError, match=message) as error:
        read_dataset("refcoco", root, "val")
    assert "refs(unc).p" in str(error.value)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (_changed(annotation(50, 5), segmentation=...), "annotation 50: a segmentation is a list of polygons"),
        (_changed(annotation(50, 5), bbox=[1, 2, 3]), r"annotation 50: a bbox is \[x, y, width, height\]"),
        (_changed(annotation(50, 5), bbox=[1, 2, -3, 4]), "annotation 50: a bbox"),
        (_changed(annotation(50, 5), bbox=[1, 2, 3, 10**400]), "annotation 50: a bbox"),
        (
            _changed(annotation(50, 5), segmentation={"size": [20, 10], "counts": [200]}),
            r"annotation 50: the mask is \(20, 10\) \(H, W\), its image is \(10, 20\)",
        ),
        (
            _changed(annotation(50, 5), bbox=..., segmentation=[[0, 0, 0, 0, 0, 0]]),
            "annotation 50: the mask has no pixel",
        ),
    ],
)
def test_a_bad_annotation_is_reported_with_file_and_id(root: Path, record: dict[str, Any], message: str) -> None:
    write_instances(root / "refcoco", [image_record(5)], [record])
    with pytest.raises(DataError, match=r"instances\.json, " + message):
        read_dataset("refcoco", root, "train")


def test_a_duplicate_id_is_reported(root: Path) -> None:
    write_instances(root / "refcoco", [image_record(5)], [annotation(50, 5), annotation(50, 5, x=9)])
    with pytest.raises(DataError, match="annotations\\[1\\]: an earlier record has the id 50 as well; remove one"):
        read_dataset("refcoco", root, "train")


def test_an_image_of_another_size_than_annotated_is_reported(root: Path) -> None:
    path = root / IMAGES / "COCO_train2014_000000000005.jpg"
    write_image(path, 40, 20)
    with pytest.raises(DataError, match=r"image 5: annotated at \(20, 10\).*is \(40, 20\)"):
        read_dataset("refcoco", root, "val")


def test_a_broken_image_is_not_an_error_while_reading(root: Path) -> None:
    path = write_image(root / IMAGES / "COCO_train2014_000000000005.jpg")
    path.write_bytes(b"no image")
    assert len(read_dataset("refcoco", root, "val")) == 4


def test_instances_that_are_not_json_are_reported(root: Path) -> None:
    (root / "refcoco" / "instances.json").write_text("{")
    with pytest.raises(DataError, match=r"instances\.json: COCO's instances must be JSON"):
        read_dataset("refcoco", root, "val")


def test_the_images_of_all_splits_are_listed_anew_after_the_file_of_refs_has_changed(root: Path) -> None:
    entry = data_entry("refcoco", root=root, split="val")
    assert len(read_dataset("refcoco", root, "val")) == 4
    assert {split: len(images) for split, images in images_of_splits(entry).items()} == {"val": 2, "train": 1}
    write_refs(root / "refcoco", [ref(1, 50, 5, "testA", "the left one")])
    assert {split: len(images) for split, images in images_of_splits(entry).items()} == {"testA": 1}
