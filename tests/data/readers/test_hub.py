"""Data sets of `datasets`, saved to a local folder as `save_to_disk` does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import datasets
import numpy as np
import pytest
from PIL import Image

from sam4mllm.data.entry import ColumnName
from sam4mllm.data.images import load_image
from sam4mllm.data.masks import encode
from sam4mllm.data.readers.hub import COLUMNS
from sam4mllm.data.reading import read_dataset
from sam4mllm.errors import DataError
from sam4mllm.geometry import Box
from tests.data.tiny_datasets import write_image

SQUARE = [2.0, 1.0, 8.0, 1.0, 8.0, 5.0, 2.0, 5.0]


def mask() -> np.ndarray:
    pixels = np.zeros((10, 20), dtype=bool)
    pixels[1:5, 2:8] = True
    return pixels


IMAGE_OF_MASK = Image.fromarray(mask().astype(np.uint8) * 255)


def make_images(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (10, 20, 3), dtype=np.uint8)) for _ in range(count)]


def save(folder: Path, columns: dict[str, list[Any]], **features: Any) -> Path:
    made = datasets.Dataset.from_dict(columns)
    for name, feature in features.items():
        made = made.cast_column(name, feature)
    made.save_to_disk(folder / "set")
    return folder / "set"


def test_stored_images_become_files_named_by_their_content(tmp_path: Path) -> None:
    first, second = make_images(2)
    path = save(
        tmp_path,
        {
            "image": [first, second, first],
            "phrase": ["one", "two", "three"],
            "masks": [[[SQUARE]], [], None],
            "extra": [1, 2, 3],
        },
    )
    samples = read_dataset("hub", path=path, images=tmp_path / "images")
    assert [(each.id, each.phrase, len(each.objects)) for each in samples] == [
        ("hub/set/0", "one", 1),
        ("hub/set/1", "two", 0),
        ("hub/set/2", "three", 0),
    ]
    assert np.array_equal(samples[0].mask(), mask())
    assert samples[0].image == samples[2].image != samples[1].image
    assert np.array_equal(load_image(samples[1].image), np.asarray(second))
    assert len(list((tmp_path / "images").iterdir())) == 2
    assert read_dataset("hub", path=path, images=tmp_path / "images", limit=1) == samples[:1]


@pytest.mark.parametrize(
    ("column", "value", "feature"),
    [
        ("segmentation", SQUARE, None),
        ("segmentation", [SQUARE], None),
        ("mask", dict(encode(mask())), None),
        ("mask", IMAGE_OF_MASK, None),
        ("masks", [dict(encode(mask()))], None),
        ("masks", [IMAGE_OF_MASK], datasets.List(datasets.Image())),
    ],
    ids=["flat polygon", "polygons", "run lengths", "image", "list of run lengths", "list of images"],
)
def test_masks_in_the_forms_that_data_sets_have(tmp_path: Path, column: str, value: Any, feature: Any) -> None:
    write_image(tmp_path / "photos" / "a.png")
    columns = {"image": ["a.png"], "phrases": [["it", "that"]], column: [value], "bbox": [[2.0, 1.0, 6.0, 4.0]]}
    path = save(tmp_path, columns, **({column: feature} if feature else {}))
    samples = read_dataset("hub", path=path, images=tmp_path / "photos")
    assert [each.id for each in samples] == ["hub/set/0/0", "hub/set/0/1"]
    assert all(np.array_equal(each.mask(), mask()) and each.objects[0].box == Box(2, 1, 8, 5) for each in samples)


def test_ids_do_not_depend_on_the_folder_that_stored_images_are_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path, {"image": make_images(1), "phrase": ["it"], "masks": [[[SQUARE]]]})
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    read = [read_dataset("hub", path=path, images=images)[0] for images in (None, tmp_path / "here", Path("there"))]
    assert [sample.image.parent.parent for sample in read] == [tmp_path / "cache", tmp_path, tmp_path]
    assert len({sample.objects[0].id for sample in read}) == 1 and str(tmp_path) not in read[0].objects[0].id


def test_reading_writes_nothing_into_the_data_set_and_stores_no_image_beyond_the_limit(tmp_path: Path) -> None:
    columns = {"image": make_images(3), "phrase": ["it"] * 3, "masks": [[IMAGE_OF_MASK]] * 3, "extra": make_images(3)}
    path = save(tmp_path, columns, masks=datasets.List(datasets.Image()))
    before = {file: file.stat().st_size for file in path.rglob("*")}
    (sample,) = read_dataset("hub", path=path, images=tmp_path / "images", limit=1)
    assert np.array_equal(sample.mask(), mask())
    assert {file: file.stat().st_size for file in path.rglob("*")} == before
    assert len(list((tmp_path / "images").iterdir())) == 1


OTHER = [12.0, 1.0, 18.0, 1.0, 18.0, 5.0, 12.0, 5.0]
LEFT, RIGHT, BOTH = Box(2, 1, 8, 5), Box(12, 1, 18, 5), Box(2, 1, 18, 5)


@pytest.mark.parametrize(
    ("form", "value", "feature", "boxes"),
    [
        ("masks", [SQUARE, OTHER], None, [LEFT, RIGHT]),
        ("masks", [[SQUARE, OTHER], [OTHER]], None, [BOTH, RIGHT]),
        ("masks", SQUARE, None, [LEFT]),
        ("masks", [dict(encode(mask()))], None, [LEFT]),
        ("masks", [IMAGE_OF_MASK], datasets.List(datasets.Image()), [LEFT]),
        ("masks", IMAGE_OF_MASK, None, [LEFT]),
        ("mask", [IMAGE_OF_MASK], datasets.List(datasets.Image()), [LEFT]),
        ("segmentation", [SQUARE, OTHER], None, [BOTH]),
        ("segmentation", [[SQUARE], [OTHER]], None, [LEFT, RIGHT]),
        ("boxes", [2.0, 1.0, 8.0, 5.0], None, [LEFT]),
        ("boxes", [[2.0, 1.0, 8.0, 5.0], [12.0, 1.0, 18.0, 5.0]], None, [LEFT, RIGHT]),
        ("bbox", [2.0, 1.0, 6.0, 4.0], None, [LEFT]),
        ("bbox", [[2.0, 1.0, 6.0, 4.0], [12.0, 1.0, 6.0, 4.0]], None, [LEFT, RIGHT]),
    ],
)
def test_a_mapped_column_is_read_by_its_form_and_its_values(
    tmp_path: Path, form: str, value: Any, feature: Any, boxes: list[Box]
) -> None:
    write_image(tmp_path / "a.png")
    columns = {"image": [str(tmp_path / "a.png")], "phrase": ["it"], "theirs": [value]}
    path = save(tmp_path, columns, **({"theirs": feature} if feature else {}))
    (sample,) = read_dataset("hub", path=path, columns={form: "theirs"})
    assert [item.box for item in sample.objects] == boxes


def test_the_column_names_are_those_that_a_recipe_accepts() -> None:
    assert [form for forms in COLUMNS.values() for form in forms] == list(get_args(ColumnName))


def test_two_columns_with_one_meaning_are_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    path = save(tmp_path, {"image": [str(tmp_path / "a.png")], "phrase": ["it"], "one": [SQUARE], "two": [[SQUARE]]})
    with pytest.raises(DataError, match="names both masks and mask, which have the same meaning; keep one of them"):
        read_dataset("hub", path=path, columns={"mask": "one", "masks": "two"})


def test_splits_other_names_and_boxes_alone(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    rows = {"file": [str(tmp_path / "a.png")], "answer": ["it"], "boxes": [[[1, 2, 3, 4]]], "id": [7]}
    datasets.DatasetDict({"val": datasets.Dataset.from_dict(rows)}).save_to_disk(tmp_path / "set")
    columns = {"image": "file", "phrase": "answer"}
    (sample,) = read_dataset("hub", path=tmp_path / "set", split="val", columns=columns)
    assert sample.id == "7" and sample.objects[0].box == Box(1, 2, 3, 4) and not sample.has_masks
    for split, names, message in (
        ("train", columns, "there is no split 'train'; it has: val"),
        ("val", {}, "no column image; name it as columns.image; it has: file, answer, boxes, id"),
        ("val", {"image": "image"}, "there is no column 'image'; it has: file"),
    ):
        with pytest.raises(DataError, match=message):
            read_dataset("hub", path=tmp_path / "set", split=split, columns=names)


def test_a_dataset_script_of_the_hub_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise RuntimeError("Dataset scripts are no longer supported, but found refcoco.py")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DataError, match=r"somebody/refcoco: not a data set of `datasets` \(Dataset scripts are"):
        read_dataset("hub", path=Path("somebody/refcoco"))


def test_a_folder_without_a_data_set_and_bad_rows_are_reported(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: not a data set of `datasets`"):
        read_dataset("hub", path=tmp_path / "empty")
    path = save(tmp_path, {"image": [str(tmp_path / "a.png")] * 2, "phrase": ["it", "that"], "boxes": [None, [[1, 2]]]})
    with pytest.raises(DataError, match="set: is one data set without splits; leave split='val' out"):
        read_dataset("hub", path=path, split="val")
    with pytest.raises(DataError, match=r"set, row 1: a box is \[x1, y1, x2, y2\] in pixels"):
        read_dataset("hub", path=path)


@pytest.mark.parametrize("column", ["segmentation_mask", "polygon", "target_boxes"])
def test_a_set_without_a_column_of_objects_is_refused_unless_that_is_asked_for(tmp_path: Path, column: str) -> None:
    columns = {"image": make_images(2), "phrase": ["one", "two"], column: [SQUARE, SQUARE]}
    path = save(tmp_path, columns)
    message = rf"set: there is no column of masks or boxes; name the column .*; the columns are: .*{column}"
    with pytest.raises(DataError, match=message):
        read_dataset("hub", path=path, images=tmp_path / "images")
    none = read_dataset("hub", path=path, images=tmp_path / "images", columns={"masks": ""})
    assert [sample.objects for sample in none] == [(), ()]
    if column != "target_boxes":
        named = read_dataset("hub", path=path, images=tmp_path / "images", columns={"masks": column})
        assert all(np.array_equal(sample.mask(), mask()) for sample in named)


def test_a_set_of_which_no_row_has_an_object_is_refused_unless_that_is_asked_for(tmp_path: Path) -> None:
    columns = {"image": make_images(2), "phrase": ["one", "two"], "masks": [None, []], "outline": [[SQUARE]] * 2}
    path = save(tmp_path, columns)
    with pytest.raises(DataError, match="set: no row has an object in masks; name the column"):
        read_dataset("hub", path=path, images=tmp_path / "images")
    for asked in ({"masks": ""}, {"boxes": ""}):
        assert len(read_dataset("hub", path=path, images=tmp_path / "images", columns=asked)) == 2
    assert not read_dataset("hub", path=path, images=tmp_path / "images", limit=1)[0].objects
    with pytest.raises(DataError, match=r"columns\.phrase is empty"):
        read_dataset("hub", path=path, columns={"phrase": ""})


def test_a_set_without_rows_is_reported(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"image": [], "phrase": [], "masks": []}).save_to_disk(tmp_path / "none")
    with pytest.raises(DataError, match="none: there is no row in it"):
        read_dataset("hub", path=tmp_path / "none")
    datasets.Dataset.from_dict({"image": ["a.png"], "phrase": ["x"], "masks": [None]}).select([]).save_to_disk(
        tmp_path / "selected"
    )
    with pytest.raises(DataError, match="selected: there is no row in it"):
        read_dataset("hub", path=tmp_path / "selected")


def test_a_stored_box_is_compared_with_its_mask(tmp_path: Path) -> None:
    write_image(tmp_path / "photos/a.png", 120, 80)
    outline = [60.0, 40.0, 100.0, 40.0, 100.0, 70.0, 60.0, 70.0]
    columns = {"image": ["a.png"], "phrase": ["it"], "masks": [[outline]], "bbox": [[60.0, 40.0, 100.0, 70.0]]}
    with pytest.raises(DataError, match=r"set, row 0: the box .* does not fit its mask.*are x1, y1, x2, y2, but"):
        read_dataset("hub", path=save(tmp_path, columns), images=tmp_path / "photos")


def write_parquet(folder: Path, name: str, phrases: list[str]) -> Path:
    rows = {"image": make_images(len(phrases)), "phrase": phrases, "masks": [[[SQUARE]]] * len(phrases)}
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).to_parquet(file)
    return file


def test_a_parquet_file_and_a_folder_of_them_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    file = write_parquet(tmp_path, "set/data/train-00000-of-00002.parquet", ["one", "two"])
    write_parquet(tmp_path, "set/data/train-00001-of-00002.parquet", ["three"])
    write_parquet(tmp_path, "set/data/test-00000-of-00001.parquet", ["four"])
    samples = read_dataset("hub", path=file, images=tmp_path / "images")
    assert [(each.phrase, len(each.objects), each.size_wh) for each in samples] == [
        ("one", 1, (20, 10)),
        ("two", 1, (20, 10)),
    ]
    assert (load_image(samples[0].image) == np.asarray(make_images(1)[0])).all()
    read = {
        split: [each.phrase for each in read_dataset("hub", path=tmp_path / "set", split=split, images=tmp_path / "i")]
        for split in ("train", "test")
    }
    assert read == {"train": ["one", "two", "three"], "test": ["four"]}
    with pytest.raises(DataError, match=r"there is no split None; it has: train, test"):
        read_dataset("hub", path=tmp_path / "set")


def test_a_folder_of_images_with_metadata_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    lines = []
    for number, image in enumerate(make_images(2)):
        (tmp_path / "set").mkdir(exist_ok=True)
        image.save(tmp_path / "set" / f"{number}.png")
        lines.append({"file_name": f"{number}.png", "phrase": f"phrase {number}", "masks": [[SQUARE]]})
    (tmp_path / "set/metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    samples = read_dataset("hub", path=tmp_path / "set")
    assert [(each.phrase, each.image.name, len(each.objects)) for each in samples] == [
        ("phrase 0", "0.png", 1),
        ("phrase 1", "1.png", 1),
    ]
    assert samples[0].image.samefile(tmp_path / "set/0.png")
