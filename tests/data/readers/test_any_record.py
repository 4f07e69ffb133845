"""Records of any content in every reader: a meaning, or one error that names the file; never another exception."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sam4mllm.data import records
from sam4mllm.data.entry import data_entry
from sam4mllm.data.predictions import read_predictions
from sam4mllm.data.query_files import read_queries
from sam4mllm.data.reading import coco_ids_of, images_of_splits, read_dataset, read_dialogues
from sam4mllm.errors import DataError, Sam4mllmError
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

NAN = float("nan")
# fmt: off
BAD: list[Any] = [
    None, True, -1, 0, 2**31, 2**32, 2**64, 10**400, 1.5, NAN, float("inf"), -1e308, "", "x", "\ud800", "a\0b", "-1",
    "../../x", "é" * 3000, [], [[]], [None], {}, {"a": 1}, {"size": [10, 20], "counts": "zz"}, [1, 2], [0.1] * 4,
    [[1, 2, 3, 4]], [NAN] * 6, [[NAN] * 6], [[2**31] * 6],
]
# fmt: on
SQUARE = [2, 1, 8, 1, 8, 5]
RLE = {"size": [10, 20], "counts": [10, 10, 180]}
INSTANCES = {"images": [image_record(5)], "annotations": [annotation(50, 5)]}
QUERY = {"id": "1", "image": "a.png", "phrase": "it"}
TURNS = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "this"}]
GOOD: dict[str, Any] = {
    "instances": INSTANCES,
    "refs": [ref(1, 50, 5, "val", "it")],
    "grefs": [ref(1, [50], 5, "val", "it") | {"no_target": False}],
    "reasonseg": {"text": ["it"], "shapes": [rectangle("target", 2, 1, 5, 3)]},
    "jsonl": QUERY
    | {"masks": [[SQUARE], RLE], "boxes": [[2, 1, 8, 5], [1, 0, 2, 10]], "object_ids": ["a", "b"]}
    | {"ignore": RLE, "size_wh": [20, 10]},
    "phrases": {"id": "1", "phrases": ["it"], "annotation_ids": [50], "image_id": 5},
    "chat": [{"image": "a.png", "conversations": TURNS}, {"image": "a.png", "question": "what?", "answer": "this"}],
    "explanations": [{"image": "s.jpg", "query": "what?", "outputs": "this"}],
    "regions": [{"id": 1, "image_id": 1, "regions": [region(1, "it"), region(2, "this", image_id=None)]}],
    "image data": [{"image_id": 1, "width": 20, "height": 10, "url": "https://x/VG_100K/1.jpg", "coco_id": 7}],
    "pope": {"question_id": 1, "image": "a.png", "text": "Is there a cup?", "label": "no"},
    "queries": QUERY,
    "predictions": {"id": "1", "status": "ok", "answer": "[]", "error": None, "score": 0.5, "confidence": {}}
    | {"objects": [{"segmentation": RLE, "box_xyxy": [1, 2, 3, 4], "points_xy": [[1, 2]], "point_labels": [1]}]},
}


@pytest.fixture
def readers(tmp_path: Path) -> dict[str, Callable[[Any], object]]:
    """For each kind of file, a function that writes a value to one and reads it."""
    for name in ("refcoco", "grefcoco"):
        write_instances(tmp_path / name, INSTANCES["images"], INSTANCES["annotations"])
    write_refs(tmp_path / "refcoco", GOOD["refs"])
    for image in (IMAGES / Path(image_record(5)["file_name"]), Path("a.png"), Path("ReasonSeg/train/s.jpg")):
        write_image(tmp_path / image)
    write_reasonseg(tmp_path, "val", "s", ["it"], [])
    write_instances(tmp_path, [image_record(5) | {"file_name": "a.png"}], INSTANCES["annotations"])
    (tmp_path / "ReasonSeg/explanatory").mkdir()

    def written(name: str, value: Any) -> Path:
        (tmp_path / name).write_text(json.dumps(value))
        return tmp_path / name

    def instances(value: Any) -> object:
        written("refcoco/instances.json", value)
        return read_dataset("refcoco", tmp_path, "val")

    def refs(value: Any) -> object:
        write_refs(tmp_path / "refcoco", value)
        images_of_splits(data_entry("refcoco", root=tmp_path, split="val"))
        return read_dataset("refcoco", tmp_path, "val")

    def rooted(dataset: str, name: str) -> Callable[[Any], object]:
        return lambda value: (written(name, value), read_dataset(dataset, tmp_path, "val"))[1]

    def chat(value: Any) -> object:
        return read_dialogues(data_entry("chat", path=written("chat.json", value)))

    def explanations(value: Any) -> object:
        written("ReasonSeg/explanatory/train.json", value)
        return read_dialogues(data_entry("reasonseg-explanations", root=tmp_path))

    def phrases(value: Any) -> object:
        return read_dataset("coco", path=tmp_path / "instances.json", phrases=written("phrases.jsonl", value))

    write_visual_genome(tmp_path, {1: [region(1, "it")]}, of_1=5)
    genome = tmp_path / "region_descriptions.json"

    def image_data(value: Any) -> object:
        written("image_data.json", value)
        return coco_ids_of(data_entry("visual-genome", path=genome)), read_dataset("visual-genome", path=genome)

    return {
        "regions": lambda value: read_dataset("visual-genome", path=written(genome.name, value)),
        "image data": image_data,
        "pope": lambda value: read_dialogues(data_entry("pope", path=written("coco_pope_random.json", value))),
        "instances": instances,
        "refs": refs,
        "grefs": rooted("grefcoco", "grefcoco/grefs(unc).json"),
        "reasonseg": rooted("reasonseg", "ReasonSeg/val/s.json"),
        "jsonl": lambda value: read_dataset("jsonl", path=written("mine.jsonl", value)),
        "phrases": phrases,
        "chat": chat,
        "explanations": explanations,
        "queries": lambda value: read_queries(written("queries.jsonl", value)),
        "predictions": lambda value: list(read_predictions(written("predictions.jsonl", value))),
    }


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield from places(value[key], (*path, key))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    made = copy.deepcopy(value)
    part = made
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = new
    return made


@pytest.mark.parametrize("name", GOOD)
def test_any_value_at_any_place_is_read_or_is_one_error(
    name: str, readers: dict[str, Callable[[Any], object]], tmp_path: Path
) -> None:
    read = readers[name]
    read(GOOD[name])
    for number, path in enumerate(places(GOOD[name])):
        # A third of the values at each place, others at the next one, for the time that all of them take.
        for bad in BAD[number % 3 :: 3]:
            try:
                read(replaced(GOOD[name], path, bad))
            except Sam4mllmError as error:
                assert str(tmp_path) in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("name", ["instances", "grefs", "reasonseg", "chat", "explanations"])
def test_a_field_that_occurs_twice_is_refused_in_json_files_as_in_lines(
    name: str, readers: dict[str, Callable[[Any], object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = json.dumps(GOOD[name])
    key = next(key for key in ("file_name", "ref_id", "text", "image") if f'"{key}":' in text)
    monkeypatch.setattr(json, "dumps", lambda value: text.replace(f'"{key}":', f'"{key}": 0, "{key}":'))
    with pytest.raises(DataError, match=rf"must be JSON: the field '{key}' occurs twice; remove one"):
        readers[name](None)


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\n\xef\xbb\xbf", b"\n\n \n"])
def test_byte_order_marks_and_line_ends_are_not_content(tmp_path: Path, start: bytes, end: bytes) -> None:
    lines = [json.dumps(QUERY | {"id": number}).encode() for number in "12"]
    (tmp_path / "q.jsonl").write_bytes(start + end.join(lines))
    assert [query.id for query in read_queries(tmp_path / "q.jsonl")] == ["1", "2"]


def test_a_line_that_does_not_end_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "_LONGEST_LINE_BYTES", 1 << 20)
    lines = [json.dumps(QUERY), json.dumps(QUERY | {"id": "2", "phrase": "x" * (1 << 20)})]
    (tmp_path / "q.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"q\.jsonl: line 2 is longer than 1 MiB; write one record per line"):
        read_queries(tmp_path / "q.jsonl")
    (tmp_path / "q.jsonl").write_text(json.dumps(QUERY | {"phrase": "it" + " " * 1000}))
    assert len(read_queries(tmp_path / "q.jsonl")) == 1


@pytest.mark.parametrize("points", [[[50, 50], [60, 50], [60, 60]], [[-9, -9], [-3, -9], [-3, -3]]])
def test_a_shape_outside_of_its_image_is_not_read_as_no_target(
    readers: dict[str, Callable[[Any], object]], points: list[list[int]]
) -> None:
    outside = {"label": "target", "points": points}
    with pytest.raises(DataError, match=r"s\.json, shape 1: it is outside of the image of \(20, 10\)"):
        readers["reasonseg"]({"text": ["it"], "shapes": [rectangle("target", 2, 1, 5, 3), outside]})
