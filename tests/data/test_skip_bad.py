"""Bad records are left out and counted when that is asked for; otherwise the error names the setting."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from sam4mllm.cli.main import main
from sam4mllm.data.entry import DataEntry, DataSection
from sam4mllm.data.mixture import read_mixture
from sam4mllm.data.readers.jsonl import write_jsonl
from sam4mllm.data.reading import read_dataset, read_dialogues, read_samples
from sam4mllm.errors import DataError
from tests.data.tiny_datasets import (
    IMAGES,
    annotation,
    image_record,
    rectangle,
    ref,
    write_image,
    write_instances,
    write_reasonseg,
    write_refs,
)

POINT = [3, 3, 4, 4]
BAD_BOX = {"bbox": [2, 1, 500, 400]}


def write_coco(folder: Path, *annotations: dict[str, Any]) -> dict[str, Any]:
    write_image(folder / image_record(5)["file_name"])
    write_instances(folder, [image_record(5)], list(annotations))
    lines = [{"phrase": f"the {each['id']}", "annotation_id": each["id"]} for each in annotations]
    (folder / "phrases.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"path": folder / "instances.json", "phrases": folder / "phrases.jsonl"}


def test_a_bad_annotation_is_passed_over_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    located = write_coco(tmp_path, annotation(1, 5), annotation(2, 5, x=9) | BAD_BOX, annotation(3, 5, x=12))
    with pytest.raises(DataError, match=r"1 bad line: line 2: .*annotation 2: the box .*skip_bad: true.*--skip-bad"):
        read_dataset("coco", **located)
    assert [each.phrase for each in read_dataset("coco", **located, skip_bad=True)] == ["the 1", "the 3"]
    (message,) = caplog.messages
    assert message.startswith(f"coco {located['phrases']}: 1 bad record(s) left out: ") and "annotation 2" in message


def test_a_polygon_of_two_points_beside_a_good_one_leaves_the_object(tmp_path: Path, caplog) -> None:
    damaged, good = annotation(1, 5), annotation(1, 5)
    damaged["segmentation"] = [*good["segmentation"], POINT, [1, 1]]
    with pytest.raises(DataError, match=r"got 4 numbers in polygon 2 of 3.*skip_bad"):
        read_dataset("coco", **write_coco(tmp_path, damaged))
    (sample,) = read_dataset("coco", **write_coco(tmp_path, damaged), skip_bad=True)
    assert "annotation 1: polygon 2 of 3 has fewer than three points" in caplog.text
    (expected,) = read_dataset("coco", **write_coco(tmp_path, good))
    assert sample == expected and sample.mask().sum() == 24
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps({"image": sample.image.name, "phrase": "it", "masks": [damaged["segmentation"]]}))
    (same,) = read_dataset("jsonl", path=file, skip_bad=True)
    assert same.objects[0].rle == sample.objects[0].rle
    assert f"{file}, line 1: polygon 3 of 3" in caplog.text


def test_a_set_of_bad_records_only_is_an_error(tmp_path: Path) -> None:
    located = write_coco(tmp_path, annotation(2, 5) | BAD_BOX)
    with pytest.raises(DataError, match=r"all of its records are bad, the first one: .*annotation 2"):
        read_dataset("coco", **located, skip_bad=True)


def test_every_reader_passes_over_bad_records(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import datasets

    polygon = annotation(1, 5)["segmentation"][0]
    for name in ("a.png", "b.png"):
        write_image(tmp_path / name)
    good = {"image": "a.png", "phrase": "good", "masks": [polygon]}
    lines = [json.dumps(good), "{", json.dumps(good | {"image": "none.png"}), json.dumps(good | {"phrase": " "})]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    rows = {"image": [str(tmp_path / "a.png"), "none.png"], "phrase": ["good", "bad"], "segmentation": [polygon] * 2}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "set")
    records = [image_record(5), image_record(6)]
    write_instances(tmp_path / "refcoco", records, [annotation(50, 5), annotation(60, 6) | BAD_BOX])
    write_refs(tmp_path / "refcoco", [ref(7, 50, 5, "val", "good"), ref(8, 60, 6, "val", "bad")])
    write_image(tmp_path / IMAGES / image_record(5)["file_name"])
    write_reasonseg(tmp_path, "val", "a", ["good"], [rectangle("target", 2, 1, 5, 3)])
    write_reasonseg(tmp_path, "val", "b", ["bad"], [{"label": "target", "points": [[1]]}])
    entries = [
        DataEntry(dataset="jsonl", path=tmp_path / "t.jsonl", skip_bad=True),
        DataEntry(dataset="hub", path=tmp_path / "set", skip_bad=True),
        DataEntry(dataset="refcoco", root=tmp_path, split="val", skip_bad=True),
        DataEntry(dataset="reasonseg", root=tmp_path, split="val", skip_bad=True),
    ]
    for entry, left_out in zip(entries, (3, 1, 1, 1), strict=True):
        caplog.clear()
        assert [sample.phrase for sample in read_samples(entry)] == ["good"]
        assert f"{left_out} bad record(s) left out" in caplog.text
        with pytest.raises(DataError, match="skip_bad: true") as caught:
            read_samples(entry.model_copy(update={"skip_bad": False}))
        assert str(caught.value).count("skip_bad") == 1
    (tmp_path / "chat.json").write_text(
        json.dumps([{"image": "a.png", "question": "?", "answer": "good"}, {"image": "none.png", "question": "?"}])
    )
    chat = DataEntry(dataset="chat", path=tmp_path / "chat.json", skip_bad=True)
    assert [dialogue.exchanges for dialogue in read_dialogues(chat)] == [(("?", "good"),)]


def test_a_recipe_and_convert_take_the_setting(tmp_path: Path, capsys, caplog) -> None:
    located = write_coco(tmp_path, annotation(1, 5), annotation(2, 5, x=9) | BAD_BOX)
    entry = {"dataset": "coco", **located, "skip_bad": True}
    assert len(read_mixture(DataSection.model_validate({"train": [entry]}), 0).samples) == 1
    command = ["convert", "--dataset", "coco", "--path", str(located["path"]), "--phrases", str(located["phrases"])]
    out = tmp_path / "out.jsonl"
    assert main([*command, "-o", str(out)]) == 2 and not out.exists()
    with caplog.at_level(logging.WARNING):
        assert main([*command, "-o", str(out), "--skip-bad"]) == 0
    expected = tmp_path / "expected.jsonl"
    write_jsonl(read_dataset("coco", **located, skip_bad=True), expected)
    assert out.read_bytes() == expected.read_bytes()
