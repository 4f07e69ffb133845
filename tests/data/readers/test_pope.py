"""POPE's and RePOPE's questions become dialogues of a yes or no each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sam4mllm.data.entry import data_entry
from sam4mllm.data.readers.chat import Dialogue
from sam4mllm.data.reading import read_dialogues
from sam4mllm.errors import DataError
from tests.data.tiny_datasets import write_image

NAME = "COCO_val2014_000000310196.jpg"


def question(number: object = 1, **changes: Any) -> dict[str, Any]:
    text = "Is there a snowboard in the image?"
    return {"question_id": number, "image": NAME, "text": text, "label": "yes"} | changes


def read_pope(folder: Path, *lines: Any, **options: Any) -> list[Dialogue]:
    write_image(folder / "val2014" / NAME)
    (folder / "coco_pope_random.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    path = folder / "coco_pope_random.json"
    return read_dialogues(data_entry("pope", path=path, images=folder / "val2014", **options))


def test_questions_and_labels_are_read_in_order(tmp_path: Path) -> None:
    first, second = read_pope(tmp_path, question(), question(5, label="no", text="Is there a car in the image?"))
    image = tmp_path / "val2014" / NAME
    assert first == Dialogue("pope/coco_pope_random/1", image, (("Is there a snowboard in the image?", "yes"),))
    assert (second.id, second.exchanges[0][1]) == ("pope/coco_pope_random/5", "no")
    assert second.where == f"{tmp_path}/coco_pope_random.json, line 2"
    assert read_pope(tmp_path, question(), {}, limit=1) == [first]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (question(2, label="Yes"), "the field 'label'"),
        (question("2"), "the field 'question_id' must be an integer"),
        (question(2, image="gone.jpg"), "gone.jpg: no such image; set images to the folder of COCO's val2014"),
        (question(2, image="../a.jpg"), "question 2: the image's name .* leaves the folder of the images"),
        (question(1), "the question_id 1 is also in line 1"),
        ({"question_id": 2, "image": NAME, "text": "?"}, "the field 'label' is missing"),
    ],
)
def test_a_bad_line_is_named_and_can_be_left_out(tmp_path: Path, bad: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=rf"coco_pope_random.json: 1 bad line: line 2: .*{message}"):
        read_pope(tmp_path, question(), bad, question(3))
    assert len(read_pope(tmp_path, question(), bad, question(3), skip_bad=True)) == 2


def test_a_file_without_questions_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no question in it"):
        read_pope(tmp_path)
