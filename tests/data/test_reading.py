"""Reading by name and by a recipe's entry: which arguments a data set takes, and what is wrong with them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sam4mllm.data.entry import DataEntry
from sam4mllm.data.reading import read_dataset, read_dialogues, read_samples
from sam4mllm.data.registry import dataset_names
from sam4mllm.data.sample import Sample
from sam4mllm.errors import DataError
from tests.data.tiny_datasets import (
    annotation,
    image_record,
    ref,
    write_image,
    write_instances,
    write_reasonseg,
    write_refs,
)

UNDER_A_ROOT = dataset_names("benchmark", "generated")


@pytest.mark.parametrize("name", UNDER_A_ROOT)
def test_a_missing_root_is_reported(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder; root must be the folder that holds the folder"):
        read_dataset(name, tmp_path / "nowhere", "val")


@pytest.mark.parametrize("name", UNDER_A_ROOT)
def test_the_missing_file_of_an_empty_root_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"refs\(\w+\)\.(p|json): no such file|ReasonSeg/val: no such split"):
        read_dataset(name, tmp_path, "val")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("coca", {}, "dataset: unknown data set; did you mean coco.; got 'coca'"),
        ("coco", {}, "path: is missing; coco needs path and phrases"),
        ("refcoco", {"limit": 0}, "limit: input should be greater than 0; got 0"),
        ("refcoco", {"path": "x"}, "path: has no meaning for refcoco, which takes root, split, split_by, images"),
        ("refcoco", {"images": Path("/nowhere")}, "/nowhere: no such folder; images must be the folder that holds"),
        ("reasonseg", {"split_by": "unc"}, "split_by: has no meaning for reasonseg, which takes root, split, images"),
    ],
)
def test_bad_arguments_are_reported(tmp_path: Path, name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_dataset(name, tmp_path, "val", **options)


def write_custom(folder: Path) -> None:
    """One phrase about one object, as a file of each format."""
    import datasets

    polygon = annotation(50, 5)["segmentation"][0]
    image = write_image(folder / image_record(5)["file_name"])
    (folder / "mine.jsonl").write_text(json.dumps({"image": image.name, "phrase": "it", "masks": [polygon]}))
    write_instances(folder, [image_record(5)], [annotation(50, 5)])
    (folder / "phrases.jsonl").write_text(json.dumps({"phrase": "it", "annotation_id": 50}))
    rows = {"image": [str(image)], "answer": ["it"], "segmentation": [polygon]}
    datasets.Dataset.from_dict(rows).save_to_disk(folder / "set")


CUSTOM: dict[str, dict[str, Any]] = {
    "jsonl": {"path": "mine.jsonl"},
    "coco": {"path": "instances.json", "phrases": "phrases.jsonl"},
    "hub": {"path": "set", "columns": {"phrase": "answer"}},
}


@pytest.mark.parametrize(
    ("name", "source"),
    [("jsonl", "mine.jsonl, line 1"), ("coco", "phrases.jsonl, line 1"), ("hub", "set, row 0")],
)
def test_a_sample_names_the_record_that_it_was_read_from(tmp_path: Path, name: str, source: str) -> None:
    write_custom(tmp_path)
    located = {key: tmp_path / value if isinstance(value, str) else value for key, value in CUSTOM[name].items()}
    (sample,) = read_dataset(name, **located)
    assert sample.source == sample.where == f"{tmp_path}/{source}"
    unknown = replace(sample, source="")
    assert unknown == sample and unknown.where == f"sample {sample.id}"


def test_samples_of_benchmarks_and_dialogues_name_their_records(tmp_path: Path) -> None:
    write_instances(tmp_path / "refcoco", [image_record(5)], [annotation(50, 5)])
    refs = write_refs(tmp_path / "refcoco", [ref(7, 50, 5, "val", "it", "this")])
    assert [each.source for each in read_dataset("refcoco", tmp_path, "val")] == [f"{refs}, ref 7"] * 2
    file = write_reasonseg(tmp_path, "val", "a", ["x"], [])
    assert [each.source for each in read_dataset("reasonseg", tmp_path, "val")] == [str(file)]
    chat = tmp_path / "chat.jsonl"
    image = write_image(tmp_path / "a.jpg")
    chat.write_text(json.dumps({"image": image.name, "question": "what?", "answer": "it"}))
    (dialogue,) = read_dialogues(DataEntry(dataset="chat", path=chat))
    assert dialogue.source == f"{chat}, line 1"


def test_the_same_data_in_each_custom_format_is_read_alike(tmp_path: Path) -> None:
    write_custom(tmp_path)
    samples: dict[str, Sample] = {}
    for name, settings in CUSTOM.items():
        located = in_folder(settings, tmp_path)
        (samples[name],) = read_samples(DataEntry.model_validate({"dataset": name, "limit": 5} | located))
        assert read_dataset(name, **located) == [samples[name]]
    assert {(each.image, each.phrase, each.size_wh) for each in samples.values()} == {
        (tmp_path / image_record(5)["file_name"], "it", (20, 10))
    }
    objects = [each.objects[0] for each in samples.values()]
    assert len({(item.rle["counts"], item.box) for item in objects if item.rle is not None}) == 1
    with pytest.raises(DataError, match="/nowhere: no such folder; images must be the folder that holds the images"):
        read_dataset("jsonl", path=tmp_path / "mine.jsonl", images="/nowhere")


def in_folder(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    return settings | {key: folder / settings[key] for key in ("path", "phrases") if key in settings}


def test_chat_is_read_as_dialogues_and_not_as_samples(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="chat has no masks; use it for training, or pass it to `sam4mllm evaluate`"):
        read_samples(DataEntry(dataset="chat", path=tmp_path / "c.json"))
    with pytest.raises(DataError, match=r"c.json: no such file; a chat file was expected there"):
        read_dialogues(DataEntry(dataset="chat", path=tmp_path / "c.json"))
    with pytest.raises(
        DataError, match="nowhere: no such folder; root must be the folder that holds the folder Reason"
    ):
        read_dialogues(DataEntry(dataset="reasonseg-explanations", root=tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"dataset": "refcoco", "root": "nowhere", "split": "val"}, "nowhere (relative to {}): no such folder; root"),
        ({"dataset": "refcoco", "root": ".", "split": "val"}, "refcoco/refs(unc).p (relative to {}): no such file"),
        ({"dataset": "reasonseg", "root": ".", "split": "val"}, "ReasonSeg/val (relative to {}): no such split"),
        ({"dataset": "jsonl", "path": "none.jsonl"}, "none.jsonl (relative to {}): cannot be read: No such file"),
        ({"dataset": "coco", "path": "i.json", "phrases": "p.jsonl"}, "i.json (relative to {}): no such file"),
        ({"dataset": "jsonl", "path": "x", "images": "pics"}, "pics (relative to {}): no such folder; images"),
        ({"dataset": "chat", "path": "chat.json"}, "chat.json (relative to {}): no such file; a chat file"),
    ],
)
def test_a_missing_relative_path_is_named_with_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    located = DataEntry.model_validate(
        {key: Path(value) if key not in ("dataset", "split") else value for key, value in entry.items()}
    )
    with pytest.raises(DataError, match=re.escape(message.format(tmp_path))):
        read_dialogues(located) if located.is_chat else read_samples(located)
