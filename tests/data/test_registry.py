from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sam4mllm.data.entry import DataEntry
from sam4mllm.data.registry import DATASETS, read_dataset, read_dialogues, read_samples
from sam4mllm.data.sample import Sample
from sam4mllm.errors import DataError
from tests.data.tiny_datasets import annotation, image_record, write_image, write_instances

PUBLISHED = ["refcoco", "refcoco+", "refcocog", "grefcoco", "reasonseg", "shapes"]
OWN = ["jsonl", "coco", "hub"]


def test_the_names_are_the_contracts() -> None:
    assert list(DATASETS) == [*PUBLISHED, *OWN]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_missing_root_is_told(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder; root must be the folder that holds the folder"):
        read_dataset(name, tmp_path / "nowhere", "val")


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_empty_root_is_told_by_what_is_missing(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"refs\(\w+\)\.(p|json): no such file|ReasonSeg/val: no such split"):
        read_dataset(name, tmp_path, "val")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("coca", {}, "unknown data set 'coca'; the known ones are: refcoco, refcoco"),
        ("coco", {}, "coco is named by its path, not by root and split"),
        ("refcoco", {"limit": 0}, "a limit is at least one sample; got 0"),
        ("refcoco", {"images": Path("/nowhere")}, "/nowhere: no such folder; images must be the folder that holds"),
        ("reasonseg", {"split_by": "unc"}, "reasonseg has one way to be split"),
    ],
)
def test_bad_arguments_are_told(tmp_path: Path, name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_dataset(name, tmp_path, "val", **options)


def write_own(folder: Path) -> None:
    """One phrase about one object, as a file of each format."""
    import datasets

    polygon = annotation(50, 5)["segmentation"][0]
    image = write_image(folder / image_record(5)["file_name"])
    (folder / "mine.jsonl").write_text(json.dumps({"image": image.name, "phrase": "it", "masks": [polygon]}))
    write_instances(folder, [image_record(5)], [annotation(50, 5)])
    (folder / "phrases.jsonl").write_text(json.dumps({"phrase": "it", "annotation_id": 50}))
    rows = {"image": [str(image)], "answer": ["it"], "segmentation": [polygon]}
    datasets.Dataset.from_dict(rows).save_to_disk(folder / "set")


OWN_ENTRIES: dict[str, dict[str, Any]] = {
    "jsonl": {"path": "mine.jsonl"},
    "coco": {"path": "instances.json", "phrases": "phrases.jsonl"},
    "hub": {"path": "set", "columns": {"phrase": "answer"}},
}


def test_the_same_data_in_each_format_of_ones_own_is_read_alike(tmp_path: Path) -> None:
    write_own(tmp_path)

    def entry(name: str) -> DataEntry:
        return DataEntry.model_validate({"dataset": name, "limit": 5} | in_folder(OWN_ENTRIES[name], tmp_path))

    found: dict[str, Sample] = {}
    for name in OWN:
        (found[name],) = read_samples(entry(name))
    assert {(each.image, each.phrase, each.size_wh) for each in found.values()} == {
        (tmp_path / image_record(5)["file_name"], "it", (20, 10))
    }
    assert len({(each.objects[0].rle["counts"], each.objects[0].box) for each in found.values()}) == 1
    with pytest.raises(DataError, match="/nowhere: no such folder; images must be the folder that holds the images"):
        read_samples(entry("jsonl").model_copy(update={"images": Path("/nowhere")}))


def in_folder(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    return settings | {key: folder / settings[key] for key in ("path", "phrases") if key in settings}


def test_chat_is_no_data_set_of_samples(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="chat has no masks; it can be trained on, or given to evaluate as --chat"):
        read_samples(DataEntry(dataset="chat", path=tmp_path / "c.json"))
    with pytest.raises(DataError, match=r"c.json: no such file; a chat file was expected there"):
        read_dialogues(DataEntry(dataset="chat", path=tmp_path / "c.json"))
    with pytest.raises(
        DataError, match="nowhere: no such folder; root must be the folder that holds the folder Reason"
    ):
        read_dialogues(DataEntry(dataset="reasonseg-explanations", root=tmp_path / "nowhere"))
