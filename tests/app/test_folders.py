"""Folders of images: what may be chosen, and the answers as COCO."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pycocotools.coco import COCO

from sam4mllm.app.folders import ImageFolders
from sam4mllm.app.limits import Limits
from sam4mllm.errors import DataError
from tests.app.pages import scripted_models
from tests.data.tiny_datasets import write_image


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two folders with images, a link out of the root, and a folder without images."""
    folder = tmp_path / "root"
    for name in ("a/1.png", "a/2.JPG", "a/deep/3.png"):
        write_image(folder / name)
    (folder / "a/notes.txt").write_text("x")
    (folder / "empty").mkdir()
    write_image(tmp_path / "outside/secret.png")
    (folder / "link").symlink_to(tmp_path / "outside")
    (folder / "a/secret.png").symlink_to(tmp_path / "outside/secret.png")
    return folder


def test_folders_with_images_are_listed_without_links_out_of_the_root(root: Path) -> None:
    folders = ImageFolders(root, Limits())
    assert folders.names() == ["a", "a/deep"]
    assert [path.name for path in folders.images("a")] == ["1.png", "2.JPG"]


@pytest.mark.parametrize(
    "name", ["", "..", "../outside", "link", "a/../../outside", "/", "/etc", "none", "a\0", "a/1.png"]
)
def test_no_other_folder_is_read(root: Path, name: str) -> None:
    with pytest.raises(DataError, match="no such folder of images below the root"):
        ImageFolders(root, Limits()).images(name)


def test_folders_without_images_or_with_too_many_are_refused(root: Path) -> None:
    with pytest.raises(DataError, match="'empty': no image in it"):
        ImageFolders(root, Limits()).images("empty")
    with pytest.raises(DataError, match="'a': 2 images, and the page answers at most 1"):
        ImageFolders(root, Limits(folder_images=1)).images("a")
    with pytest.raises(DataError, match="no such folder; --root"):
        ImageFolders(root / "none", Limits())


def test_the_answers_about_a_folder_are_coco(root: Path, tmp_path: Path) -> None:
    (root / "a/4.png").write_text("damaged")
    done: list[int] = []
    folders = ImageFolders(root, Limits())
    answer = folders.answer(scripted_models(), "a", ["left", "dragon"], tmp_path, lambda count=1, /: done.append(count))
    assert sum(done) == 6 and (answer.summary.ok, answer.summary.no_object, answer.summary.error) == (2, 2, 2)
    assert "2 masks of 6 phrases" in answer.text() and "2 failed" in answer.text()
    coco = COCO(answer.coco)
    assert [image["file_name"] for image in coco.loadImgs(coco.getImgIds())] == ["a/1.png", "a/2.JPG"]
    assert [int(coco.annToMask(each).sum()) for each in coco.loadAnns(coco.getAnnIds())] == [24, 24]
    assert str(tmp_path) not in answer.coco.read_text() and json.loads(answer.coco.read_text())["categories"]
