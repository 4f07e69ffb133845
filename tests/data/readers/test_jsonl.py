"""Data of one's own as JSONL: every form of a mask, what is refused and how; a converted set reads the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from sam4mllm.data.masks import encode
from sam4mllm.data.readers.jsonl import write_jsonl
from sam4mllm.data.reading import read_dataset
from sam4mllm.data.sample import MaskObject, Sample
from sam4mllm.errors import DataError
from sam4mllm.geometry import Box, box_of_mask
from sam4mllm.synthetic.writer import write_dataset
from tests.data.tiny_datasets import write_broken_avif, write_image

SQUARE = [2, 1, 8, 1, 8, 5, 2, 5]
WIDTH, HEIGHT = 20, 10


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_image(tmp_path / "a.png", WIDTH, HEIGHT)
    pixels = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    pixels[1:5, 2:8] = 7
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    Image.fromarray(pixels).convert("RGB").save(tmp_path / "colour.png")
    coloured = np.zeros((HEIGHT, WIDTH, 4), dtype=np.uint8)
    coloured[..., 0], coloured[1:5, 2:8, 3] = 255, 255
    Image.fromarray(coloured).save(tmp_path / "cut_out.png")
    palette = Image.fromarray(pixels)
    palette.putpalette([0, 0, 0] * 256)
    palette.save(tmp_path / "indexed.png")
    write_image(tmp_path / "small.png", 5, 5)
    Image.new("L", (20, 10)).save(tmp_path / "noisy.jpg")
    write_broken_avif(tmp_path / "broken.avif")
    return tmp_path


def write(folder: Path, *records: Any) -> Path:
    file = folder / "mine.jsonl"
    file.write_text("".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in records))
    return file


def rle(pixels: np.ndarray) -> dict[str, Any]:
    return dict(encode(pixels))


def square() -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[1:5, 2:8] = True
    return mask


@pytest.mark.parametrize(
    "mask",
    [
        SQUARE,
        [SQUARE],
        [SQUARE, [2, 1, 5, 1, 5, 3, 2, 3]],
        rle(square()),
        {"size": [HEIGHT, WIDTH], "counts": [21, 4, 6, 4, 6, 4, 6, 4, 6, 4, 6, 4, 125]},
        "mask.png",
        "colour.png",
        "cut_out.png",
        "indexed.png",
    ],
    ids=["polygon", "polygons", "overlapping", "rle", "uncompressed rle", "grey", "rgb", "rgba", "palette"],
)
def test_every_form_of_a_mask_is_the_same_mask(folder: Path, mask: Any) -> None:
    (sample,) = read_dataset("jsonl", path=write(folder, {"image": "a.png", "phrase": "it", "masks": [mask]}))
    assert np.array_equal(sample.mask(), square())
    (item,) = sample.objects
    assert item.box == Box(2, 1, 8, 5) and item.id.startswith("jsonl/mine/a.png/")
    assert (sample.id, sample.image, sample.size_wh) == ("jsonl/mine/1", folder / "a.png", (WIDTH, HEIGHT))


def test_phrases_boxes_and_no_target(folder: Path) -> None:
    samples = read_dataset(
        "jsonl",
        path=write(
            folder,
            {"image": "a.png", "phrases": ["one", "two"], "masks": [SQUARE, [9, 1, 12, 1, 12, 4, 9, 4]], "id": "mine"},
            "",
            {"image": "a.png", "phrase": "three", "boxes": [[2, 1, 8.5, 5]]},
            {"image": "a.png", "phrase": "a dragon"},
            {"image": "a.png", "phrase": "one again", "masks": [SQUARE]},
        ),
    )
    assert [(each.id, each.phrase, len(each.objects)) for each in samples] == [
        ("mine/0", "one", 2),
        ("mine/1", "two", 2),
        ("jsonl/mine/3", "three", 1),
        ("jsonl/mine/4", "a dragon", 0),
        ("jsonl/mine/5", "one again", 1),
    ]
    assert samples[2].objects[0].box == Box(2, 1, 8.5, 5) and not samples[2].has_masks
    with pytest.raises(DataError, match="has a box and no mask"):
        samples[2].mask()
    assert not samples[3].mask().any() and samples[3].has_masks
    # Two lines about one object give it one id, so its target is computed once.
    assert samples[4].objects[0] == samples[0].objects[0]
    assert read_dataset("jsonl", path=folder / "mine.jsonl", limit=3) == samples[:3]


GOOD = {"image": "a.png", "phrase": "it", "masks": [SQUARE]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "expected an object with image; found"),
        ({"phrase": "it"}, "the field 'image' is missing"),
        ({"image": "a.png"}, "give either phrase, a text, or phrases"),
        (GOOD | {"phrases": ["it"]}, "give either phrase, a text, or phrases"),
        ({"image": "a.png", "phrases": []}, "phrases is empty"),
        ({"image": "a.png", "phrases": [3]}, r"the field 'phrases\[0\]' must be text; found 3"),
        (GOOD | {"mask": SQUARE}, "unknown field 'mask'; the fields are id, phrase, phrases, image"),
        (GOOD | {"image": "b.png"}, "b.png: no such image"),
        (GOOD | {"masks": SQUARE[0]}, "the field 'masks' must be a list; found 2"),
        (GOOD | {"masks": ["nowhere.png"]}, "nowhere.png: no such file; a mask was expected"),
        (GOOD | {"masks": ["`0" * 300]}, "no such file; a mask was expected .an RLE is an object"),
        (GOOD | {"image": "a" * 300}, "no such image, or none that can be read"),
        (GOOD | {"masks": ["mine.jsonl"]}, "mine.jsonl: not an image that can be read as a mask"),
        (GOOD | {"masks": ["broken.avif"]}, "broken.avif: not an image that can be read as a mask .*: Failed"),
        (GOOD | {"masks": ["small.png"]}, r"the mask is \(5, 5\) \(H, W\), its image is \(10, 20\)"),
        (GOOD | {"masks": [[1, 2, 3, 4]]}, "three points"),
        (GOOD | {"masks": [{"size": [10, 20], "counts": [200]}]}, "a mask has no pixel; leave masks out"),
        (GOOD | {"masks": [{"size": [10, 20], "counts": [7]}]}, "fill 10 x 20 = 200 pixels; found the sum 7"),
        (GOOD | {"boxes": []}, "1 masks, but 0 boxes"),
        ({"image": "a.png", "phrase": "it", "boxes": [[1, 2, 3]]}, r"a box is \[x1, y1, x2, y2\] in pixels"),
        ({"image": "a.png", "phrase": "it", "boxes": [[1, 2, 3, 10**400]]}, "a box is .* found"),
        ({"image": "b.png", "phrase": "it", "size_wh": [10**400, 5], "masks": [SQUARE]}, "COCO's RLE holds fewer than"),
        ({"image": "a.png", "phrase": "it", "boxes": [[9, 2, 3, 4]]}, "with x1 <= x2 and y1 <= y2"),
        ({"image": "a.png", "phrase": "it", "boxes": [[30, 2, 40, 4]]}, "has no area in the image of"),
        ({"image": "a.png", "phrase": "it", "boxes": [[2, 5, 8, 19]]}, r"leaves the image of \(20, 10\)"),
        ({"image": "a.png", "phrase": "it", "boxes": [[0.1, 0.1, 0.5, 0.6]]}, "is normalized to the image's size"),
        (GOOD | {"phrase": " "}, "the phrase is empty; describe the object"),
        (GOOD | {"masks": ["noisy.jpg"]}, "the compression noise of JPEG adds pixels to the mask; save it as PNG"),
        (GOOD | {"object_ids": ["a", "b"]}, "object_ids holds one text for each of the 1 objects"),
        (GOOD | {"size_wh": [10, 20]}, r"size_wh is \(10, 20\), but .*a.png is \(20, 10\)"),
        (GOOD | {"size_wh": [0, 20]}, r"size_wh is \[width, height\], two positive integers"),
        (GOOD | {"id": 3}, "the field 'id' must be text"),
        (GOOD | {"id": "first"}, "the id 'first' is also in line 1"),
    ],
)
def test_a_bad_line_is_reported_with_its_number(folder: Path, line: Any, message: str) -> None:
    with pytest.raises(DataError, match=rf"mine.jsonl: 1 bad line: line 3: .*{message}") as raised:
        read_dataset("jsonl", path=write(folder, GOOD | {"id": "first"}, "", line))
    assert "\n" not in str(raised.value)


def test_files_without_samples(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere.jsonl: cannot be read: No such file"):
        read_dataset("jsonl", path=tmp_path / "nowhere.jsonl")
    with pytest.raises(DataError, match=r"mine.jsonl: no sample in it"):
        read_dataset("jsonl", path=write(tmp_path, ""))
    with pytest.raises(DataError, match=r"its folder .* does not exist"):
        write_jsonl([], tmp_path / "no" / "mine.jsonl")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    write_dataset(folder, scenes=3, held_out=2, seed=5)
    return folder


@pytest.mark.parametrize("inside", [True, False], ids=["beside the images", "elsewhere"])
@pytest.mark.parametrize("name", ["refcoco", "grefcoco", "reasonseg"])
def test_a_converted_set_reads_to_equal_samples(shapes: Path, tmp_path: Path, name: str, inside: bool) -> None:
    samples = read_dataset(name, shapes, "train")
    file = (shapes if inside else tmp_path) / f"{name}.jsonl"
    write_jsonl(samples, file)
    assert read_dataset("jsonl", path=file) == samples
    images = [json.loads(line)["image"] for line in file.read_text().splitlines()]
    assert all(Path(image).is_absolute() != inside for image in images)


@st.composite
def any_sample(draw: st.DrawFn) -> Sample:
    width, height = draw(st.integers(1, 12)), draw(st.integers(1, 12))

    def mask() -> np.ndarray:
        return np.array(draw(st.lists(st.booleans(), min_size=width * height, max_size=width * height))).reshape(
            height, width
        )

    offsets = st.floats(-0.4, 0.4, allow_nan=False)
    objects = []
    for index in range(draw(st.integers(0, 3))):
        pixels = mask()
        pixels[draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))] = True
        tight = box_of_mask(pixels)
        assert tight is not None
        objects.append(MaskObject(f"o{index}", encode(pixels), Box(*(edge + draw(offsets) for edge in tight))))
    ignore = encode(mask()) if draw(st.booleans()) else None
    phrase = draw(st.text(st.characters(exclude_categories=["Cs"])).filter(str.strip))
    return Sample("s", Path("/nowhere/image.jpg"), (width, height), phrase, tuple(objects), ignore)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sample=any_sample())
def test_any_sample_is_written_and_read_back(tmp_path: Path, sample: Sample) -> None:
    write_jsonl([sample], tmp_path / "one.jsonl")
    assert read_dataset("jsonl", path=tmp_path / "one.jsonl") == [sample]


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([60, 40, 60, 60], "has no area in the image"),
        ([0.5, 0.5, 0.8333, 0.875], "its numbers are shares of the image's sides"),
        ([10, 10, 30, 20], "does not fit its mask, whose box is"),
    ],
)
def test_a_box_is_compared_with_its_mask(tmp_path: Path, box: list[float], message: str) -> None:
    write_image(tmp_path / "a.png", 120, 80)
    mask = [60, 40, 100, 40, 100, 70, 60, 70]
    record = {"image": "a.png", "phrase": "it", "masks": [mask], "boxes": [box]}
    (tmp_path / "mine.jsonl").write_text(json.dumps(record))
    with pytest.raises(DataError, match=rf"line 1: the box .*{message}"):
        read_dataset("jsonl", path=tmp_path / "mine.jsonl")
    (tmp_path / "mine.jsonl").write_text(json.dumps(record | {"boxes": [[60.4, 40, 99, 71]]}))
    assert read_dataset("jsonl", path=tmp_path / "mine.jsonl")[0].objects[0].box == Box(60.4, 40, 99, 71)
