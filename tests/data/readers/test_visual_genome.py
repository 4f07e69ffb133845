"""Visual Genome's regions: a phrase and a box each, read image by image, with the images' COCO ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sam4mllm.data.entry import data_entry
from sam4mllm.data.problems import listing_problems
from sam4mllm.data.reading import coco_ids_of, read_dataset, read_items
from sam4mllm.data.sample import MaskObject, Sample
from sam4mllm.errors import DataError
from sam4mllm.geometry import Box
from tests.data.tiny_datasets import region, write_image, write_visual_genome


def test_each_region_is_a_sample_with_a_box(tmp_path: Path) -> None:
    regions = {1: [region(7, "the clock"), region(8, "Grün ist sie", x=0, width=20)], 2: [], 4: [region(7, "it", 4)]}
    path = write_visual_genome(tmp_path, regions)
    samples = read_dataset("visual-genome", path=path)
    box = MaskObject("visual-genome/1/7", None, Box(2, 1, 8, 5))
    assert samples[0] == Sample(box.id, tmp_path / "VG_100K/1.jpg", (20, 10), "the clock", (box,))
    assert samples[0].where == f"{path}, image 1, region 7"
    assert (samples[1].phrase, samples[1].objects[0].box) == ("Grün ist sie", Box(0, 1, 20, 5))
    assert (samples[2].id, samples[2].image) == ("visual-genome/4/7", tmp_path / "VG_100K_2/4.jpg")
    assert read_dataset("visual-genome", path=path, limit=2) == samples[:2]
    # Made on access, again and again equal.
    lazily = read_items(data_entry("visual-genome", path=path))
    assert len(lazily) == 3 and list(lazily) == samples == [lazily[index] for index in (0, 1, -1)]
    assert lazily[1:] == samples[1:]
    with pytest.raises(IndexError):
        lazily[3]


def test_images_of_one_folder_and_the_numbers_of_early_versions_are_read(tmp_path: Path) -> None:
    path = write_visual_genome(tmp_path / "data", {2: [region(1, "it", 2)]})
    path.write_text(json.dumps([{"image_id": 2, "regions": [region(1, "it", 2)]}]))
    image = write_image(tmp_path / "photos/2.jpg")
    (sample,) = read_dataset("visual-genome", path=path, images=tmp_path / "photos")
    assert sample.image == image


def test_coco_ids_are_those_of_image_data(tmp_path: Path) -> None:
    path = write_visual_genome(tmp_path, {1: [], 2: [], 3: []}, of_2=547168)
    entry = data_entry("visual-genome", path=path)
    assert coco_ids_of(entry) == {tmp_path / "VG_100K_2/2.jpg": 547168}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (region(2, "it", y=-9), r"regions\[1\] \(region 2\): the box \[2, -9, 8, -5\] has no area"),
        (region(2, "it", y=-5, height=8), r"the box \[2, -5, 8, 3\] .* leaves the image"),
        (region(2, "it", width=0), "has no area"),
        (region(2, " "), r"\(region 2\): the phrase is empty"),
        (region(2, "it", image_id=3), r"\(region 2\): it belongs to image 3"),
        (region(1, "it"), r"\(region 1\): an earlier region has its region_id"),
        (region(2, "it", x=1.5), r"regions\[1\]: the field 'x' must be an integer; found 1.5"),
        (region(2, 3), "the field 'phrase' must be text"),
        (region(2**64, "it"), "the field 'region_id': input should be less than"),
        (region(-1, "it"), "the field 'region_id': input should be greater than"),
        ({"region_id": 2}, "the field 'x' is missing"),
        (5, "expected an object"),
    ],
)
def test_a_bad_region_is_named_and_can_be_left_out(tmp_path: Path, bad: Any, message: str) -> None:
    path = write_visual_genome(tmp_path, {1: [region(1, "good"), bad, region(3, "good too")]})
    with pytest.raises(DataError, match=rf"region_descriptions.json, image 1, .*{message}") as raised:
        read_dataset("visual-genome", path=path)
    assert "skip_bad: true" in str(raised.value)
    kept = read_dataset("visual-genome", path=path, skip_bad=True)
    assert [each.phrase for each in kept] == ["good", "good too"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"id": 1, "regions": []}, "entry 1: its image is missing, or an earlier one's: 1"),
        ({"regions": []}, "entry 1: its image is missing, or an earlier one's: None"),
        ({"id": 9, "regions": []}, "image 9: image_data.json has no such image"),
        ({"id": 2}, "entry 1: the field 'regions' is missing"),
    ],
)
def test_a_bad_image_is_named(tmp_path: Path, entry: dict[str, Any], message: str) -> None:
    path = write_visual_genome(tmp_path, {1: [region(1, "it")], 2: []})
    path.write_text(json.dumps([{"id": 1, "regions": [region(1, "it")]}, entry]))
    with pytest.raises(DataError, match=message):
        read_dataset("visual-genome", path=path)
    with listing_problems() as problems:
        assert len(read_dataset("visual-genome", path=path)) == 1
    assert len(problems) == 1


def test_missing_and_contradicting_files_are_named(tmp_path: Path) -> None:
    path = write_visual_genome(tmp_path, {1: [region(1, "it")]})
    data = json.loads((tmp_path / "image_data.json").read_text())
    write_image(tmp_path / "VG_100K/1.jpg", 30, 10)
    with pytest.raises(DataError, match=r"image 1: annotated at \(20, 10\), but .*1.jpg is \(30, 10\)"):
        read_dataset("visual-genome", path=path)
    (tmp_path / "VG_100K/1.jpg").unlink()
    assert len(read_dataset("visual-genome", path=path)) == 1
    (tmp_path / "image_data.json").write_text(json.dumps([data[0] | {"width": 10**6, "height": 10**6}]))
    with pytest.raises(DataError, match=r"region_descriptions.json, image 1: .* has 1000000 x 1000000 pixels"):
        read_dataset("visual-genome", path=path)
    (tmp_path / "image_data.json").write_text(json.dumps([*data, *data]))
    with pytest.raises(DataError, match=r"image_data.json, entry 1: an earlier entry has the image 1"):
        read_dataset("visual-genome", path=path)
    (tmp_path / "image_data.json").unlink()
    with pytest.raises(DataError, match=r"image_data.json: no such file; the sizes of Visual Genome's images"):
        read_dataset("visual-genome", path=path)
    with pytest.raises(DataError, match=r"nowhere.json: no such file|image_data.json: no such file"):
        read_dataset("visual-genome", path=tmp_path / "nowhere.json")


def test_a_file_without_a_region_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"region_descriptions.json: no region in it"):
        read_dataset("visual-genome", path=write_visual_genome(tmp_path, {1: []}))
