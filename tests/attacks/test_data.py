"""Data stays data: names of images stay in their folder, and pages show hostile text as text."""

from __future__ import annotations

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sam4mllm.data.masks import encode
from sam4mllm.data.predictions import PredictedObject, PredictionLine
from sam4mllm.data.readers import chat
from sam4mllm.data.reading import read_dataset
from sam4mllm.data.registry import dataset_row
from sam4mllm.data.sample import MaskObject, Sample
from sam4mllm.errors import DataError
from sam4mllm.evaluation.cases import write_cases
from sam4mllm.evaluation.metrics import SentenceScore
from sam4mllm.geometry import Box
from sam4mllm.methods.registry import method_from_settings
from sam4mllm.recipe.schema import MethodSection
from sam4mllm.training import check as check_page
from sam4mllm.training import inspect as inspect_page
from tests.data.tiny_datasets import IMAGES, annotation, image_record, ref, write_image, write_instances, write_refs

LEAVING = ["../secret.jpg", "a/../../secret.jpg", "/secret.jpg", "FOLDER/../secret.jpg", "..", "a\0b.jpg"]
STAYING = ["a.jpg", "./a.jpg", "b/../a.jpg", "linked/a.jpg", "FOLDER/a.jpg"]


def read_refcoco(root: Path, folder: Path, name: str) -> Path:
    write_instances(root / "refcoco", [{**image_record(1), "file_name": name}], [annotation(7, 1)])
    write_refs(root / "refcoco", [ref(1, 7, 1, "train", "it")])
    return read_dataset("refcoco", root=root, split="train", images=folder)[0].image


def read_coco(root: Path, folder: Path, name: str) -> Path:
    write_instances(root, [{**image_record(1), "file_name": name}], [annotation(7, 1)])
    (root / "phrases.jsonl").write_text(json.dumps({"phrase": "it", "annotation_id": 7}))
    return read_dataset("coco", path=root / "instances.json", phrases=root / "phrases.jsonl", images=folder)[0].image


def read_explanations(root: Path, folder: Path, name: str) -> Path:
    file = root / "ReasonSeg/explanatory/train.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps([{"image": name, "query": "what?", "outputs": "it"}]))
    return chat.read_explanations(dataset_row("reasonseg-explanations"), root=root, images=folder)[0].image


READERS = [read_refcoco, read_coco, read_explanations]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of images with a symbolic link to another one, and an image beside it."""
    for path in (tmp_path / "secret.jpg", tmp_path / IMAGES / "a.jpg", tmp_path / "disk/a.jpg"):
        write_image(path)
    (tmp_path / IMAGES / "b").mkdir()
    (tmp_path / IMAGES / "linked").symlink_to(tmp_path / "disk")
    return tmp_path / IMAGES


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("name", LEAVING)
def test_a_name_that_leaves_the_folder_of_the_images_is_refused(
    tmp_path: Path, folder: Path, read: Callable[[Path, Path, str], Path], name: str
) -> None:
    with pytest.raises(
        DataError, match=r"(image|entry) \d.*the image's name .* leaves the folder of the images, .*mages"
    ):
        read(tmp_path, folder, name.replace("FOLDER", str(folder)))


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("name", STAYING)
def test_a_name_in_the_folder_is_read_and_symbolic_links_are_followed(
    tmp_path: Path, folder: Path, read: Callable[[Path, Path, str], Path], name: str
) -> None:
    image = read(tmp_path, folder, name.replace("FOLDER", str(folder)))
    assert image.name == "a.jpg" and image.is_file()


@pytest.mark.parametrize("read", READERS)
def test_the_root_as_folder_of_images_allows_absolute_names(
    tmp_path: Path, folder: Path, read: Callable[[Path, Path, str], Path]
) -> None:
    assert read(tmp_path, Path("/"), str(tmp_path / "secret.jpg")) == tmp_path / "secret.jpg"


def test_json_lines_name_any_path(tmp_path: Path, folder: Path) -> None:
    names = [str(tmp_path / "secret.jpg"), "../../../../secret.jpg"]
    (folder / "own.jsonl").write_text("".join(json.dumps({"image": name, "phrase": "it"}) + "\n" for name in names))
    samples = read_dataset("jsonl", path=folder / "own.jsonl")
    assert [sample.image.resolve() for sample in samples] == [tmp_path / "secret.jpg"] * 2


HOSTILE = """"><script>alert(1)</script><img src=x onerror=alert(2)>'--><a href="javascript:alert(3)">&lt;b&#62;<!--"""


class Markup(HTMLParser):
    """Collects tags, the names and values of attributes, and the text of a page."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[tuple[str, str | None]] = set()
        self.text = ""
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes.update(attrs)

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")


def hostile_samples(folder: Path) -> list[Sample]:
    file = folder / (HOSTILE.replace("/", "") + ".png")
    Image.new("RGB", (20, 10)).save(file)
    mask = np.zeros((10, 20), dtype=bool)
    mask[2:6, 2:9] = True
    item = MaskObject(HOSTILE, encode(mask), Box(2, 2, 9, 6))
    gone = folder / f"gone {HOSTILE.replace('/', '')}.png"
    return [Sample(HOSTILE, file, (20, 10), HOSTILE, (item,)), Sample("gone", gone, (20, 10), HOSTILE, (item,))]


def write_cases_page(folder: Path, samples: list[Sample]) -> Path:
    rle = encode(np.zeros((10, 20), dtype=bool))
    line = PredictionLine(HOSTILE, "ok", (PredictedObject(rle, None),), answer=HOSTILE, error=HOSTILE)
    sentences = {sample.id: SentenceScore(0, 1, 0.0, True, True) for sample in samples}
    return write_cases(samples, [line], sentences, folder / "out", title=HOSTILE, summary=HOSTILE, count=2)


def write_inspect_page(folder: Path, samples: list[Sample]) -> Path:
    method = method_from_settings(MethodSection().model_dump())
    reasons = {HOSTILE: HOSTILE}
    return inspect_page.write_page(samples[:1], {}, method, folder / "out", title=HOSTILE, reasons=reasons)


def write_check_page(folder: Path, samples: list[Sample]) -> Path:
    problem = check_page.Problem("image", HOSTILE)
    check = check_page.DatasetCheck(HOSTILE, tuple(samples), 2, (problem,))
    return check_page.write_page(check, folder / "out", limit=9, examples=9)


@pytest.mark.parametrize("write", [write_cases_page, write_inspect_page, write_check_page])
def test_pages_show_hostile_text_as_text(tmp_path: Path, write: Callable[[Path, list[Sample]], Path]) -> None:
    page = Markup(write(tmp_path, hostile_samples(tmp_path)))
    allowed = "html head meta title style body h1 h2 p main article img div pre table tr th td"
    assert page.tags <= set(allowed.split())
    assert {name for name, _ in page.attributes} <= {
        "lang",
        "charset",
        "name",
        "content",
        "class",
        "src",
        "alt",
        "colspan",
    }
    sources = {value for name, value in page.attributes if name == "src"}
    assert sources and all(value and value.startswith("images/") and "<" not in value for value in sources)
    assert page.text.count(HOSTILE) >= 3
