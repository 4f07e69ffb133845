"""Polygons that stay text until they are used: the same values and errors as those of the JSON parser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sam4mllm.data.problems import listing_problems
from sam4mllm.data.readers.instances_json import UnparsedPolygons, read_instances
from sam4mllm.data.reading import read_dataset
from sam4mllm.data.records import read_json
from sam4mllm.errors import DataError
from tests.data.tiny_datasets import annotation, image_record, ref, write_instances, write_refs

POLYGONS = [[1.25, 2, 3e1, -4, 5, 6], [0, 0, 1, 0, 1, 1]]
RECORDS = [
    {"id": 1, "segmentation": POLYGONS, "bbox": [1, 2, 3, 4]},
    {"id": 2, "segmentation": [[]]},
    {"id": 3, "segmentation": []},
    {"id": 4, "segmentation": {"size": [2, 2], "counts": [4]}},
    {"id": 5, "segmentation": None, "note": 'a "segmentation": [[1, 2]] in text'},
    {"segmentation": [["1", 2]], "id": 6},
    {"segmentation": 'x"', "id": 7},
    {"nested": {"segmentation": POLYGONS}, "segmentation": POLYGONS, "id": 8},
]


def _parsed(value: Any) -> Any:
    if isinstance(value, UnparsedPolygons):
        return value.parse()
    if isinstance(value, dict):
        return {key: _parsed(item) for key, item in value.items()}
    return [_parsed(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    ("options", "unparsed"),
    [({}, True), ({"separators": (",", ":")}, True), ({"indent": 1}, False)],
    ids=["default", "compact", "indented"],
)
def test_every_form_of_segmentation_is_the_parsers_value(
    tmp_path: Path, options: dict[str, Any], unparsed: bool
) -> None:
    path = tmp_path / "instances.json"
    path.write_text(json.dumps({"annotations": RECORDS}, **options))
    content = read_instances(path)
    segmentation = content["annotations"][0]["segmentation"]
    assert isinstance(segmentation, UnparsedPolygons) == unparsed
    assert json.loads(repr(segmentation)) == POLYGONS
    assert _parsed(content) == read_json(path, "x") == {"annotations": RECORDS}


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_a_file_with_constants_beside_its_polygons_is_parsed_at_once(tmp_path: Path, constant: str) -> None:
    path = tmp_path / "instances.json"
    path.write_text(f'{{"area": {constant}, "segmentation": [[1, 2]], "b": {constant}}}')
    content = read_instances(path)
    assert content["segmentation"] == [[1, 2]] and repr(content) == repr(read_json(path, "x"))


@pytest.mark.parametrize(
    "text",
    [
        '{"segmentation": [[1, 2]], "id": }',
        '{"segmentation": [[1, 2], "id": 1}',
        '{"segmentation": [[1, 2]], "segmentation": [[1, 2]]}',
        '{"segmentation": [[1, 2]]} {}',
        "[" * 100_000,
        "",
    ],
)
def test_errors_of_json_are_those_of_the_whole_text(tmp_path: Path, text: str) -> None:
    path = tmp_path / "instances.json"
    path.write_text(text)
    with pytest.raises(DataError) as whole:
        read_json(path, "COCO's instances")
    with pytest.raises(DataError) as found:
        read_instances(path)
    assert (str(found.value), found.value.kind) == (str(whole.value), whole.value.kind)


def test_polygons_that_are_not_json_are_an_error_of_their_annotation(tmp_path: Path) -> None:
    folder = tmp_path / "refcoco"
    write_instances(folder, [image_record(5)], [annotation(50, 5), annotation(51, 5), annotation(52, 5)])
    write_refs(folder, [ref(1, 50, 5, "val", "left"), ref(2, 51, 5, "val", "right"), ref(3, 50, 5, "test", "left")])
    path = folder / "instances.json"
    first, second, third, last = path.read_text().split('"segmentation": [[2,')
    path.write_text('"segmentation": [[2,'.join([first, second + '"segmentation": [[2.e,' + third, last]))
    message = r"instances\.json, annotation 51: the segmentation must be JSON: Expecting ',' delimiter"
    with pytest.raises(DataError, match=message) as error:
        read_dataset("refcoco", tmp_path, "val")
    assert error.value.kind == "mask"
    with listing_problems() as problems:
        (sample,) = read_dataset("refcoco", tmp_path, "val")
    assert sample.phrase == "left" and len(problems) == 1
    assert len(read_dataset("refcoco", tmp_path, "test")) == 1
