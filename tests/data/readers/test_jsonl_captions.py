"""Custom grounded captions: the phrases of a caption, in its order, with masks or boxes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sam4mllm.cli.main import main
from sam4mllm.data.entry import data_entry
from sam4mllm.data.grounded_caption import GroundedCaption
from sam4mllm.data.reading import read_captions
from sam4mllm.errors import DataError
from sam4mllm.geometry import Box
from tests.data.tiny_datasets import write_image

SQUARE = [2, 1, 8, 1, 8, 5, 2, 5]
CAPTION = "A cup beside a cup and two plates ."
MENTIONS: list[dict[str, Any]] = [
    {"phrase": "A cup", "masks": [SQUARE]},
    {"phrase": "a cup", "boxes": [[9, 1, 12, 5]]},
    {"phrase": "two plates", "boxes": [[1, 6, 5, 9], [6, 6, 10, 9]], "object_ids": ["left", "right"]},
]


def line(**changes: Any) -> dict[str, Any]:
    return {"image": "a.png", "caption": CAPTION, "mentions": MENTIONS} | changes


def read(folder: Path, *lines: Any, **options: Any) -> list[GroundedCaption]:
    write_image(folder / "a.png")
    (folder / "mine.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    return read_captions(data_entry("jsonl", path=folder / "mine.jsonl", **options))


def test_phrases_are_found_in_their_order_with_their_objects(tmp_path: Path) -> None:
    first, second = read(tmp_path, line(), line(id="own", mentions=[]))
    assert (first.id, first.image, first.size_wh) == ("jsonl/mine/1", tmp_path / "a.png", (20, 10))
    assert [first.phrase(each) for each in first.mentions] == ["A cup", "a cup", "two plates"]
    assert [each.start for each in first.mentions] == [0, 13, 23]
    masked, boxed, plates = (each.objects for each in first.mentions)
    assert masked[0].rle is not None and masked[0].box == Box(2, 1, 8, 5)
    assert (boxed[0].rle, boxed[0].box) == (None, Box(9, 1, 12, 5))
    assert [each.id for each in plates] == ["left", "right"]
    assert first.where == f"{tmp_path}/mine.jsonl, line 1"
    assert (second.id, second.mentions) == ("own", ())
    assert read(tmp_path, line(), {}, limit=1) == [first]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (line(mentions=MENTIONS[::-1]), r"mentions\[1\]: the phrase 'a cup' is not in the rest of the caption, ' \.'"),
        (line(mentions=[{"phrase": "a bowl", "masks": [SQUARE]}]), "the phrase 'a bowl' is not in the rest"),
        (line(mentions=[{"phrase": "A cup"}]), r"mentions\[0\]: it has no object; give masks or boxes"),
        (line(mentions=[{"phrase": "A cup", "boxes": [[1, 1, 60, 5]]}]), r"mentions\[0\]: .* leaves the image"),
        (line(mentions=[{"masks": [SQUARE]}]), r"mentions\[0\]: give either phrase"),
        (line(mentions=[{"phrase": "A cup", "maks": []}]), r"mentions\[0\]: unknown field 'maks'"),
        (line(mentions=["A cup"]), r"the field 'mentions\[0\]' must be an object"),
        (line(caption=" "), "the phrase is empty"),
        (line(captions="x"), "unknown field 'captions'"),
        ({"image": "a.png", "phrase": "a cup", "masks": [SQUARE]}, "unknown field 'phrase'"),
        (line(image="gone.png"), "gone.png: no such image"),
        (line(size_wh=[9, 9]), r"size_wh is \(9, 9\)"),
        (line(id="jsonl/mine/1"), "the id 'jsonl/mine/1' is also in .*mine.jsonl, line 1"),
    ],
)
def test_a_bad_line_is_named_and_can_be_left_out(tmp_path: Path, bad: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=rf"mine.jsonl: 1 bad line: line 2: {message}|line 2: .*{message}"):
        read(tmp_path, line(), bad, line())
    assert len(read(tmp_path, line(), bad, line(), skip_bad=True)) == 2


def test_a_file_without_captions_is_an_error_and_check_reads_captions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError, match=r"mine.jsonl: no caption in it; a line is"):
        read(tmp_path)
    read(tmp_path, line())
    arguments = ["check", "--dataset", "jsonl", "--path", str(tmp_path / "mine.jsonl")]
    assert main([*arguments, "--task", "grounded-caption"]) == 0
    assert "1 captions about 1 images can be read; no problem" in capsys.readouterr().out
    assert main(arguments) == 1
    assert "unknown field" in capsys.readouterr().out
    assert main(["check", "--dataset", "pope", "--path", "x.json", "--task", "segment"]) == 2
    assert "--task: pope has no data for segment" in capsys.readouterr().err
