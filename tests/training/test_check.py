"""`check` lists every bad record and image of each kind of data set in one pass."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from sam4mllm.cli.main import main
from sam4mllm.data.problems import listing_problems
from sam4mllm.data.reading import read_dataset
from sam4mllm.errors import ArgumentError, DataError
from sam4mllm.training.check import DatasetCheck, check_dataset, write_page
from tests.data.tiny_datasets import (
    IMAGES,
    annotation,
    flickr30k_object,
    image_record,
    rectangle,
    ref,
    region,
    write_flickr30k,
    write_image,
    write_instances,
    write_reasonseg,
    write_refs,
    write_visual_genome,
)

SQUARE = [2, 1, 8, 1, 8, 5, 2, 5]


def kinds(check: DatasetCheck) -> dict[str, int]:
    return dict(sorted(check.counts().items()))


def has(check: DatasetCheck, kind: str, *parts: str) -> bool:
    """Whether a problem of the kind names all the parts."""
    return any(problem.kind == kind and all(part in problem.text for part in parts) for problem in check.problems)


def write_lines(path: Path, *records: Any) -> Path:
    path.write_text("".join(f"{each if isinstance(each, str) else json.dumps(each)}\n" for each in records))
    return path


def cut(path: Path) -> None:
    """Cut an image in the middle of its pixels; its header stays."""
    noise = np.random.default_rng(0).integers(0, 256, (10, 20, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-200])


def write_custom(folder: Path) -> Path:
    for name in ("a.png", "cut.png"):
        write_image(folder / name)
    cut(folder / "cut.png")
    good = {"image": "a.png", "phrase": "it", "masks": [SQUARE]}
    return write_lines(
        folder / "mine.jsonl",
        good,
        "{not JSON",
        {"image": "a.png", "phrase": "two points", "masks": [SQUARE[:4]]},
        {"image": "a.png", "phrase": "other size", "masks": [{"size": [20, 10], "counts": [200]}]},
        {"image": "a.png", "phrase": "normalized", "boxes": [[0.1, 0.1, 0.4, 0.5]]},
        {"image": "gone.png", "phrase": "missing"},
        {"image": "cut.png", "phrase": "damaged"},
        {"image": "a.png", "phrase": ""},
        good | {"id": "jsonl/mine/1"},
        good | {"colour": "red"},
    )


def test_jsonl(tmp_path: Path) -> None:
    check = check_dataset("jsonl", path=write_custom(tmp_path))
    assert kinds(check) == {"box": 1, "duplicate": 1, "field": 1, "image": 2, "json": 1, "mask": 2, "phrase": 1}
    assert (len(check.items), check.images) == (3, 2)
    assert has(check, "mask", f"{tmp_path}/mine.jsonl, line 3: a mask: a polygon has three points")
    assert has(check, "image", "line 6", "gone.png: no such image")
    assert has(check, "image", "mine.jsonl, line 7", "cut.png: the image is damaged")


def test_a_good_set_has_no_problem(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    file = write_lines(tmp_path / "mine.jsonl", {"image": "a.png", "phrase": "it", "masks": [SQUARE]})
    check = check_dataset("jsonl", path=file)
    assert check.problems == () and "1 phrases or chats about 1 images can be read; no problem" in check.headline()


def test_a_phrase_with_two_meanings_is_a_note_and_no_problem(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    records = [{"image": "a.png", "phrase": "it", "boxes": [[0, 0, side, side]]} for side in (5, 9)]
    check = check_dataset("jsonl", path=write_lines(tmp_path / "mine.jsonl", *records))
    assert check.problems == () and len(check.notes) == 1 and "'it'" in check.notes[0]
    assert f"\nnote: {check.notes[0]}\n" in check.summary(3) and check.to_json()["notes"] == list(check.notes)


def test_only_bad_lines_are_not_called_an_empty_file(tmp_path: Path) -> None:
    check = check_dataset("jsonl", path=write_lines(tmp_path / "mine.jsonl", "{", "{"))
    assert kinds(check) == {"json": 2}
    assert kinds(check_dataset("jsonl", path=write_lines(tmp_path / "none.jsonl"))) == {"file": 1}
    assert kinds(check_dataset("jsonl", path=tmp_path / "gone.jsonl")) == {"file": 1}


def test_coco(tmp_path: Path) -> None:
    write_image(tmp_path / image_record(5)["file_name"])
    bad_box = annotation(51, 5) | {"bbox": [12, 1, 6, 4]}
    write_instances(tmp_path, [image_record(5), image_record(5)], [annotation(50, 5), bad_box, annotation(52, 9)])
    phrases = [{"phrase": "it", "annotation_id": number} for number in (50, 51, 52, 53)]
    file = write_lines(tmp_path / "phrases.jsonl", *phrases)
    check = check_dataset("coco", path=tmp_path / "instances.json", phrases=file)
    assert kinds(check) == {"box": 1, "duplicate": 1, "reference": 2} and len(check.items) == 1
    assert has(check, "duplicate", "instances.json, images[1]: an earlier record has the id 5")
    assert has(check, "reference", "phrases.jsonl, line 4", "no annotation 53")


def write_refcoco(root: Path) -> Path:
    images = [image_record(5), image_record(6), image_record(7, width=21)]
    objects = [annotation(50, 5), annotation(51, 5) | {"segmentation": [[1, 1, 2, 2]]}, annotation(60, 6)]
    write_instances(root / "refcoco", images, [*objects, annotation(70, 7)])
    refs = [
        ref(1, 50, 5, "train", "good"),
        ref(2, 51, 5, "train", "bad mask"),
        ref(3, 51, 5, "val", "the same mask"),
        ref(4, 60, 6, "val", "image is missing", "twice"),
        ref(5, 70, 7, "val", "other size"),
        ref(6, 99, 5, "testA", "no annotation"),
        {"ref_id": 7},
    ]
    write_refs(root / "refcoco", refs)
    for number in (5, 7):
        write_image(root / IMAGES / image_record(number)["file_name"])
    return root


def test_refcoco_in_all_of_its_splits(tmp_path: Path) -> None:
    check = check_dataset("refcoco", root=write_refcoco(tmp_path))
    assert check.name == "refcoco train, refcoco val, refcoco testA"
    # The bad mask of annotation 51 and the bad ref 7 are one problem each, although two splits meet them.
    assert kinds(check) == {"field": 1, "image": 2, "mask": 1, "reference": 1}
    assert has(check, "image", "refs(unc).p, ref 4 and 1 more: ", "000000000006.jpg: no such file")
    assert has(check, "image", "image 7: annotated at (21, 10)")
    assert kinds(check_dataset("refcoco", root=tmp_path, split="train")) == {"field": 1, "mask": 1}


def test_grefcoco_names_every_bad_object_of_a_phrase(tmp_path: Path) -> None:
    bad = [annotation(number, 5) | {"bbox": [0, 0, 0, 0], "segmentation": []} for number in (51, 52)]
    write_instances(tmp_path / "grefcoco", [image_record(5)], [annotation(50, 5), *bad])
    (tmp_path / "grefcoco/grefs(unc).json").write_text(json.dumps([ref(1, [50, 51, 52], 5, "val", "all")]))
    check = check_dataset("grefcoco", root=tmp_path, split="val")
    assert kinds(check) == {"mask": 2} and not check.items


def test_reasonseg(tmp_path: Path) -> None:
    for stem, shape in (("a", rectangle("t", 2, 1, 5, 3)), ("b", {"label": "t", "points": []}), ("c", {"points": []})):
        write_reasonseg(tmp_path, "val", stem, ["x"], [shape])
    write_reasonseg(tmp_path, "val", "d", ["x"], []).write_text("{")
    write_reasonseg(tmp_path, "val", "e", ["x"], []).with_suffix(".jpg").unlink()
    check = check_dataset("reasonseg", root=tmp_path)
    assert kinds(check) == {"field": 1, "image": 1, "json": 1, "mask": 1} and len(check.items) == 1
    assert has(check, "mask", "b.json, shape 0: a shape has a list of points")


def test_hub(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    rows = {
        "image": [str(tmp_path / name) for name in ("a.png", "gone.png", "a.png")],
        "phrase": ["it", "it", "it"],
        "masks": [[SQUARE], [SQUARE], [SQUARE[:4]]],
    }
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "set")
    check = check_dataset("hub", path=tmp_path / "set", images=tmp_path)
    assert kinds(check) == {"image": 1, "mask": 1} and len(check.items) == 1
    assert has(check, "mask", "set, row 2: a mask: a polygon has three points")


@pytest.mark.parametrize("as_list", [True, False])
def test_chat(tmp_path: Path, as_list: bool) -> None:
    write_image(tmp_path / "a.png")
    entries = [
        {"image": "a.png", "question": "Red?", "answer": "yes"},
        {"image": "a.png", "question": "Red?"},
        {"image": "gone.png", "question": "Red?", "answer": "yes"},
    ]
    file = write_lines(tmp_path / "chat.json", *([entries] if as_list else entries))
    check = check_dataset("chat", path=file)
    assert kinds(check) == {"field": 1, "image": 1} and len(check.items) == 1
    assert has(check, "field", f"chat.json, {'entry' if as_list else 'line'} 2: the field 'answer' is missing")


def test_chat_without_an_image_is_counted_and_shown(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    entries = [{"image": "a.png", "question": "Red?", "answer": "yes"}, {"question": "Why <i>?", "answer": "So."}]
    check = check_dataset("chat", path=write_lines(tmp_path / "chat.jsonl", *entries))
    assert check.problems == () and check.images == 1
    assert check.notes == (f"1 chat(s) have no image: {tmp_path}/chat.jsonl, line 2",)
    page = write_page(check, tmp_path / "page", limit=2, examples=1).read_text()
    assert "Why &lt;i&gt;?" in page and "no image" in page and len(list((tmp_path / "page/images").iterdir())) == 1


def test_explanations(tmp_path: Path) -> None:
    folder = tmp_path / "ReasonSeg/explanatory"
    folder.mkdir(parents=True)
    write_image(tmp_path / "ReasonSeg/train/a.jpg")
    entries = [{"image": "a.jpg", "query": "what?", "outputs": "this"}, {"image": "a.jpg"}, {"image": 3}]
    (folder / "train.json").write_text(json.dumps(entries))
    check = check_dataset("reasonseg-explanations", root=tmp_path)
    assert kinds(check) == {"field": 2} and len(check.items) == 1


def test_readers_stop_at_the_first_problem_outside_of_a_check(tmp_path: Path) -> None:
    write_refcoco(tmp_path)
    with listing_problems():
        read_dataset("refcoco", tmp_path, "train")
    with pytest.raises(DataError, match="ref 7: the field 'image_id' is missing"):
        read_dataset("refcoco", tmp_path, "train")


def test_an_argument_is_not_a_problem_of_the_data(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="phrases: is missing"):
        check_dataset("coco", path=tmp_path)
    with pytest.raises(ArgumentError, match="root: is missing"):
        check_dataset("refcoco")


def test_the_page_shows_problems_and_drawn_samples_and_escapes_them(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    good = {"image": "a.png", "phrase": "a <b>", "masks": [SQUARE]}
    records = [good] * 3 + [{"image": "gone<i>.png", "phrase": "x"}, {"image": "a.png", "phrase": "x", "size_wh": [1]}]
    check = check_dataset("jsonl", path=write_lines(tmp_path / "mine.jsonl", *records))
    page = write_page(check, tmp_path / "out", limit=2, examples=1)
    html = page.read_text()
    assert "a &lt;b&gt;" in html and "<b>" not in html and "gone&lt;i&gt;.png: no such image" in html
    assert sorted(path.name for path in (tmp_path / "out").rglob("*.png")) == ["0000.png", "0001.png", "sheet.png"]
    with Image.open(tmp_path / "out/images/0000.png") as drawn:
        pixels = np.asarray(drawn.convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 1


def test_the_subcommand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_custom(tmp_path)
    arguments = ["check", "--dataset", "jsonl", "--path", str(file)]
    assert main([*arguments, "--examples", "1", "--output", str(tmp_path / "out")]) == 1
    out = capsys.readouterr().out
    assert "3 phrases or chats about 2 images can be read; 9 problem(s): " in out
    assert "mask: 2\n  " in out and "\n  and 1 more\n" in out and f"{tmp_path}/out/index.html" in out
    assert main([*arguments, "--json", "-"]) == 1
    record = json.loads(capsys.readouterr().out)
    assert record["problems"] == 9 and sum(kind["count"] for kind in record["kinds"]) == 9
    assert [len(kind["records"]) for kind in record["kinds"]] == [kind["count"] for kind in record["kinds"]]
    write_lines(file, {"image": "a.png", "phrase": "it", "masks": [SQUARE]})
    assert main(arguments) == 0
    assert main(["check", "--dataset", "coco", "--path", str(file)]) == 2
    assert "--phrases: is missing; coco needs path and phrases" in capsys.readouterr().err


def test_flickr30k(tmp_path: Path) -> None:
    caption, box = "[/EN#1/people A man] runs .", flickr30k_object(1, box=(2, 2, 6, 8))
    images = {1: ([caption, "[oops] a man"], [box]), 2: ([caption], [flickr30k_object(1, box=(2, 2, 60, 8))])}
    folder = write_flickr30k(tmp_path, {"train": images, "val": {3: ([caption], [box])}})
    cut(folder / "flickr30k-images/3.jpg")
    check = check_dataset("flickr30k", root=tmp_path)
    assert kinds(check) == {"box": 1, "field": 1, "image": 1}
    assert "flickr30k train, flickr30k val: 2 captions about 2 images can be read" in check.headline()
    assert has(check, "image", "Sentences/3.txt, line 1", "3.jpg: the image is damaged")
    page = write_page(check, tmp_path / "page", limit=2, examples=1).read_text()
    assert "A man runs ." in page and "1 object(s)" in page


def test_visual_genome(tmp_path: Path) -> None:
    path = write_visual_genome(tmp_path, {1: [region(1, "it"), region(2, "it", x=3), region(3, "out", x=30)], 2: []})
    write_image(tmp_path / "VG_100K/1.jpg", 20, 10)
    check = check_dataset("visual-genome", path=path)
    # One phrase for several boxes is usual in descriptions of regions, and is not noted.
    assert kinds(check) == {"box": 1} and check.notes == ()
    assert (len(check.items), check.images) == (2, 1)
    assert "it" in write_page(check, tmp_path / "page", limit=5, examples=1).read_text()


def test_pope(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg")
    question = {"question_id": 1, "image": "a.jpg", "text": "Is there a car?", "label": "no"}
    file = write_lines(
        tmp_path / "coco_pope_random.json", question, question, question | {"question_id": 2, "label": 1}
    )
    check = check_dataset("pope", path=file)
    assert kinds(check) == {"duplicate": 1, "field": 1} and len(check.items) == 1
