"""COCO's instances whose phrases are attributes or names of categories; exports are read back with all phrases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sam4mllm.cli.main import main
from sam4mllm.data.reading import read_dataset
from sam4mllm.errors import DataError
from tests.data.tiny_datasets import annotation, image_record, write_image
from tests.export.answers import write_predictions

CATEGORIES = [{"id": 1, "name": "red car"}, {"id": 2, "name": "lamp"}]


def write(folder: Path, annotations: list[dict[str, Any]], **of_image: Any) -> Path:
    """Write two images and their annotations."""
    images = [{**image_record(5), **of_image}, image_record(6)]
    for record in images:
        write_image(folder / record["file_name"])
    file = folder / "instances.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": CATEGORIES}))
    return file


def test_annotations_of_one_phrase_are_its_objects(tmp_path: Path) -> None:
    annotations = [
        {**annotation(60, 6), "category_id": 2},
        {**annotation(50, 5), "category_id": 1},
        {**annotation(51, 5, x=10), "category_id": 1},
        {**annotation(52, 5), "category_id": 2, "attributes": {"phrase": "what gives light", "occluded": False}},
        {**annotation(53, 5), "category_id": 2, "attributes": {"phrase": " "}},
    ]
    file = write(tmp_path, annotations, no_object=["dragon"])
    samples = read_dataset("coco-categories", path=file)
    assert [(each.id, each.phrase, [item.id.split("/")[-1] for item in each.objects]) for each in samples] == [
        ("coco-categories/instances/5/0", "red car", ["50", "51"]),
        ("coco-categories/instances/5/1", "what gives light", ["52"]),
        ("coco-categories/instances/5/2", "lamp", ["53"]),
        ("coco-categories/instances/5/3", "dragon", []),
        ("coco-categories/instances/6/0", "lamp", ["60"]),
    ]
    assert samples[0].image == tmp_path / image_record(5)["file_name"] and samples[0].has_masks
    assert read_dataset("coco-categories", path=file, limit=2) == samples[:2]


@pytest.mark.parametrize(
    ("change", "of_image", "message"),
    [
        ({"category_id": 3}, {}, "annotation 50: has no attribute 'phrase', and no category has the id 3"),
        ({}, {}, "annotation 50: has no attribute 'phrase', and no category has the id None"),
        ({"category_id": 1, "image_id": 9}, {}, "instances.json has no image 9"),
        ({"category_id": 1}, {"no_object": ["red car"]}, "image 5: 'red car' has annotations and is in no_object"),
        ({"category_id": 1}, {"no_object": [" "]}, "image 5: the phrase is empty"),
    ],
)
def test_an_annotation_without_a_phrase_or_image_is_an_error(
    change: dict[str, Any], of_image: dict[str, Any], message: str, tmp_path: Path
) -> None:
    record = {key: value for key, value in annotation(50, 5).items() if key != "category_id"}
    file = write(tmp_path, [{**record, **change}, {**annotation(60, 6), "category_id": 2}], **of_image)
    with pytest.raises(DataError, match=message):
        read_dataset("coco-categories", path=file)
    skipped = read_dataset("coco-categories", path=file, skip_bad=True)
    assert [each.phrase for each in skipped if each.objects] == ["lamp"]


def test_a_file_without_annotations_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no annotation in it"):
        read_dataset("coco-categories", path=write(tmp_path, []))


@pytest.mark.parametrize("phrase_as", ["category", "attribute"])
def test_an_export_is_read_back(phrase_as: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    predictions = write_predictions(tmp_path / "answers")
    command = ["export", str(predictions), "--to", "coco", "--output", "a.json", "--phrase-as", phrase_as]
    assert main(command) == 0
    answered = [json.loads(line) for line in predictions.read_text().splitlines()]
    expected = {line["phrase"]: len(line["objects"]) for line in answered if line["status"] in ("ok", "no_object")}
    samples = read_dataset("coco-categories", path=Path("a.json"), images=Path("/"))
    assert {each.phrase: len(each.objects) for each in samples} == expected
