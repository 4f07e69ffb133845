"""Flickr30k Entities: captions with mentions of objects, and a sample for each noun phrase with a box."""

from __future__ import annotations

from pathlib import Path

import pytest

from sam4mllm.data.entry import data_entry
from sam4mllm.data.grounded_caption import GroundedCaption, Mention
from sam4mllm.data.problems import listing_problems
from sam4mllm.data.reading import images_of_splits, read_captions, read_dataset, read_with_masks, split_names
from sam4mllm.data.sample import MaskObject
from sam4mllm.errors import DataError
from sam4mllm.geometry import Box
from tests.data.tiny_datasets import flickr30k_object, write_flickr30k

CAPTIONS = [
    "[/EN#1/people Two young guys] with [/EN#2/bodyparts shaggy  hair] look at [/EN#0/notvisual it] in "
    "[/EN#3/scene/other the yard] .",
    "",
    "[/EN#2/bodyparts Hair ]",
    "[/EN#9/other A thing] of no object .",
]
OBJECTS = [
    flickr30k_object(1, box=(1, 1, 5, 10)),
    flickr30k_object(1, 2, box=(6, 2, 20, 9)),
    flickr30k_object(3),
]


def captions(root: Path, split: str = "train", **options: object) -> list[GroundedCaption]:
    return read_captions(data_entry("flickr30k", root=root, split=split, **options))


def test_phrases_with_boxes_are_mentions_and_others_are_text(tmp_path: Path) -> None:
    folder = write_flickr30k(tmp_path, {"train": {36979: (CAPTIONS, OBJECTS)}})
    first, second, third = captions(tmp_path)
    left = MaskObject("flickr30k/36979/0", None, Box(0, 0, 5, 10))
    right = MaskObject("flickr30k/36979/1", None, Box(5, 1, 20, 9))
    assert first == GroundedCaption(
        "flickr30k/train/36979/0",
        folder / "flickr30k-images/36979.jpg",
        (20, 10),
        "Two young guys with shaggy hair look at it in the yard .",
        (Mention(0, 14, (left, right)), Mention(20, 31, (right,))),
    )
    assert [first.phrase(each) for each in first.mentions] == ["Two young guys", "shaggy hair"]
    assert first.where == f"{folder}/Sentences/36979.txt, line 1"
    assert (second.id, second.text, second.mentions) == ("flickr30k/train/36979/2", "Hair", (Mention(0, 4, (right,)),))
    assert (third.text, third.mentions) == ("A thing of no object .", ())
    assert captions(tmp_path, limit=2) == [first, second]


def test_each_mention_is_a_sample_without_a_mask(tmp_path: Path) -> None:
    write_flickr30k(tmp_path, {"val": {5: (CAPTIONS, OBJECTS)}})
    samples = read_dataset("flickr30k", tmp_path, "val")
    assert [(each.id, each.phrase, len(each.objects)) for each in samples] == [
        ("flickr30k/val/5/0/0", "Two young guys", 2),
        ("flickr30k/val/5/0/1", "shaggy hair", 1),
        ("flickr30k/val/5/2/0", "Hair", 1),
    ]
    assert read_dataset("flickr30k", tmp_path, "val", limit=2) == samples[:2]
    with pytest.raises(DataError, match="flickr30k val: flickr30k/val/5/0/0 has boxes and no masks"):
        read_with_masks(data_entry("flickr30k", root=tmp_path, split="val"))


def test_splits_and_their_images_are_listed_from_the_splits_files(tmp_path: Path) -> None:
    write_flickr30k(tmp_path, {"test": {3: (CAPTIONS, OBJECTS)}, "train": {1: ([], []), 2: ([], [])}})
    assert split_names("flickr30k", tmp_path) == ["train", "test"]
    found = images_of_splits(data_entry("flickr30k", root=tmp_path, split="test"))
    assert {split: [path.name for path in paths] for split, paths in found.items()} == {
        "train": ["1.jpg", "2.jpg"],
        "test": ["3.jpg"],
    }
    (tmp_path / "photos").mkdir()
    (caption, *_) = captions(tmp_path, "test", images=tmp_path / "photos")
    assert caption.image == tmp_path / "photos/3.jpg"
    with pytest.raises(DataError, match=r"flickr30k_entities: no split 'val'; it has: test, train"):
        captions(tmp_path, "val")


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        ("[/EN#1 a man]", r"7.txt, line 1: a phrase is \[/EN#chain/type words\], .* found '\[/EN#1'"),
        ("[sic] a man", r"found '\[sic\]'"),
        ("[/EN#1/people a [/EN#2/other red hat]]", r"without another one in it; found '\[/EN#2/other'"),
        ("[/EN#1/people a man", "the phrase of chain 1 is not closed"),
        ("[/EN#1/people ]", "the phrase of chain 1 has no words"),
        ("word " * 500, "7.txt, line 1: the caption: the phrase has 2499 characters"),
    ],
)
def test_a_bad_caption_is_named_and_can_be_left_out(tmp_path: Path, caption: str, message: str) -> None:
    write_flickr30k(tmp_path, {"train": {7: ([caption, CAPTIONS[0]], OBJECTS)}})
    with pytest.raises(DataError, match=message) as raised:
        captions(tmp_path)
    assert "skip_bad: true" in str(raised.value) and "\n" not in str(raised.value)
    assert [each.id for each in captions(tmp_path, skip_bad=True)] == ["flickr30k/train/7/1"]


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ([flickr30k_object(1, box=(0, 3, 2, 1))], r"object 0: a bndbox has xmin <= xmax .* found \[0, 3, 2, 1\]"),
        ([flickr30k_object(1, box=(1, 1, 40, 5))], r"object 0: the box \[0, 0, 40, 5\] .* leaves the image"),
        ([*OBJECTS, flickr30k_object(1, box=("1.5", 1, 4, 5))], "object 3: the field 'bndbox/xmin' must be an integer"),
        ([flickr30k_object(1, box=("", 1, 4, 5))], "'bndbox/xmin' must be an integer; found ''"),
        (
            ["<object><name>1</name><bndbox><xmin>1</xmin></bndbox></object>"],
            "'bndbox/ymin' must be an int.*found None",
        ),
        ([flickr30k_object()], r"object 0: an object has a name, .* found \[\]"),
        ([flickr30k_object("cat")], r"found \['cat'\]"),
        (["<object>"], "must be XML: mismatched tag"),
        (["<!DOCTYPE a>"], "defines a document type or entities; remove them"),
    ],
)
def test_bad_boxes_are_named_with_their_file_and_leave_out_the_image(
    tmp_path: Path, objects: list[str], message: str
) -> None:
    write_flickr30k(tmp_path, {"train": {7: (CAPTIONS, objects), 8: (CAPTIONS, OBJECTS)}})
    with pytest.raises(DataError, match=rf"7\.xml: .*{message}"):
        captions(tmp_path)
    with listing_problems() as problems:
        assert {each.image.stem for each in captions(tmp_path)} == {"8"}
    assert len(problems) == 1


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    folder = write_flickr30k(tmp_path, {"train": {7: (CAPTIONS, OBJECTS)}})
    xml = folder / "Annotations/7.xml"
    xml.write_text(xml.read_text().replace("<width>20<", "<width>21<"))
    with pytest.raises(DataError, match=r"7.xml: annotated at \(21, 10\), but .*7.jpg is \(20, 10\)"):
        captions(tmp_path)
    (folder / "flickr30k-images/7.jpg").unlink()
    assert len(captions(tmp_path)) == 3
    (folder / "Sentences/7.txt").unlink()
    with pytest.raises(DataError, match=r"7.txt: no such file; a file of an image's captions was"):
        captions(tmp_path)
    (folder / "train.txt").write_text("7.jpg\n")
    with pytest.raises(DataError, match=r"train.txt: image 1 is not a number; found '7.jpg'"):
        captions(tmp_path)
    (folder / "train.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"train.txt: the list of a split's images must be UTF-8"):
        captions(tmp_path)
    (folder / "train.txt").write_text("\n")
    with pytest.raises(DataError, match=r"train.txt: no image in it"):
        captions(tmp_path)
    (folder / "train.txt").unlink()
    with pytest.raises(DataError, match=r"train.txt: no such file, nor val.txt or test.txt; the lists"):
        captions(tmp_path)


@pytest.mark.parametrize("span", [(0, 0), (3, 2), (0, 6), (-1, 2)])
def test_a_mention_is_a_part_of_its_caption(span: tuple[int, int]) -> None:
    item = MaskObject("a", None, Box(0, 0, 1, 1))
    with pytest.raises(ValueError, match="caption c: a mention is a part of the text"):
        GroundedCaption("c", Path("a.jpg"), (2, 2), "a cat", (Mention(*span, (item,)),))
    with pytest.raises(ValueError, match="0 objects"):
        GroundedCaption("c", Path("a.jpg"), (2, 2), "a cat", (Mention(0, 5, ()),))
    with pytest.raises(ValueError, match="behind the previous one"):
        GroundedCaption("c", Path("a.jpg"), (2, 2), "a cat", (Mention(0, 5, (item,)), Mention(2, 5, (item,))))


@pytest.mark.parametrize("name", ["Sentences/7.txt", "Annotations/7.xml", "train.txt"])
def test_a_damaged_file_is_read_or_is_one_error_that_names_a_file(tmp_path: Path, name: str) -> None:
    folder = write_flickr30k(tmp_path, {"train": {7: (CAPTIONS, OBJECTS)}})
    content = (folder / name).read_bytes()
    step = max(1, len(content) // 20)
    for start in range(0, len(content), step):
        for changed in (b"", b"[", b"]", b"<", b">", b"\xff", b"&", b"9", b"\x00"):
            (folder / name).write_bytes(content[:start] + changed + content[start + 1 :])
            try:
                captions(tmp_path)
            except DataError as error:
                assert str(folder) in str(error) and "\n" not in str(error)
