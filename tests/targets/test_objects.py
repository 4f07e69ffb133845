"""Distinct objects: what they depend on, how ids are grouped, and how often image files are read."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sam4mllm.data.masks import encode
from sam4mllm.data.sample import MaskObject, Sample
from sam4mllm.errors import DataError
from sam4mllm.geometry import Box
from sam4mllm.targets import objects
from sam4mllm.targets.objects import ImageObjects, object_hash, objects_by_image
from sam4mllm.utils.distributed import DistributedContext
from tests.targets.examples import disc, make_samples, mask_object, under_other_ids


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    return make_samples(tmp_path / "images", images=2)


def ids_of(images: list[ImageObjects]) -> list[list[tuple[str, ...]]]:
    return [[each.ids for each in image.objects] for image in images]


def test_each_object_is_listed_once_with_all_its_ids(samples: list[Sample], tmp_path: Path) -> None:
    assert ids_of(objects_by_image(samples)) == [[("ann/0/0",), ("ann/0/1",)], [("ann/1/0",), ("ann/1/1",)]]
    # A second data set with the same files, and a third one with copies of them.
    copies = tmp_path / "copies"
    shutil.copytree(tmp_path / "images", copies)
    third = [replace(sample, image=copies / sample.image.name) for sample in under_other_ids(samples, "third")]
    images = objects_by_image([*samples, *under_other_ids(samples, "second"), *third])
    assert ids_of(images) == [
        [(f"ann/{image}/{index}", f"second/ann/{image}/{index}", f"third/ann/{image}/{index}") for index in (0, 1)]
        for image in (0, 1)
    ]
    assert [image.image.parent for image in images] == [tmp_path / "images"] * 2
    first = samples[0].objects[0]
    assert images[0].objects[0].item == first and images[0].objects[0].ignore is None


def test_the_hash_of_an_object_does_not_depend_on_ids_paths_or_order(samples: list[Sample], tmp_path: Path) -> None:
    def hashes(images: list[ImageObjects]) -> set[str]:
        return {each.hash for image in images for each in image.objects}

    expected = hashes(objects_by_image(samples))
    assert len(expected) == 4
    assert hashes(objects_by_image(samples[::-1])) == expected
    (tmp_path / "images").rename(tmp_path / "moved")
    moved = [replace(sample, image=tmp_path / "moved" / sample.image.name) for sample in samples]
    assert hashes(objects_by_image(under_other_ids(moved, "other"))) == expected


def test_another_mask_box_image_or_ignore_mask_is_another_object() -> None:
    size_wh = (30, 20)
    item = mask_object("a", disc((10, 10), 6, size_wh))
    shifted = mask_object("a", disc((11, 10), 6, size_wh))
    assert item.box != shifted.box
    ignore = encode(disc((25, 5), 3, size_wh))
    hashes = [
        object_hash("image", item, None),
        object_hash("other image", item, None),
        object_hash("image", replace(item, rle=shifted.rle), None),
        object_hash("image", replace(item, box=shifted.box), None),
        object_hash("image", item, ignore),
        object_hash("image", item, shifted.rle),
    ]
    assert len(set(hashes)) == len(hashes)
    same = MaskObject("b", dict(reversed(item.rle.items())), Box(*(int(side) for side in item.box)))  # type: ignore
    assert object_hash("image", same, None) == hashes[0]


def test_ignored_pixels_are_those_of_the_first_sample_with_the_object(samples: list[Sample]) -> None:
    ignore = encode(np.eye(samples[0].size_wh[1], samples[0].size_wh[0], dtype=bool))
    first = replace(samples[0], ignore=ignore)
    (image,) = objects_by_image([first, *samples[1:4], *under_other_ids(samples[:4], "other")])
    # The other data set has no ignored pixels, so its first object is another one and its second object the same.
    assert [(each.ids, each.ignore) for each in image.objects] == [
        (("ann/0/0",), ignore),
        (("ann/0/1", "other/ann/0/1"), None),
        (("other/ann/0/0",), None),
    ]


def test_one_content_with_two_annotated_sizes_is_two_images(samples: list[Sample]) -> None:
    turned_wh = samples[0].size_wh[::-1]
    turned = replace(
        samples[0], size_wh=turned_wh, objects=(mask_object("turned", disc((15, 15), 9.5, turned_wh)),), ignore=None
    )
    images = objects_by_image([*samples[:4], turned])
    assert [image.size_wh for image in images] == [samples[0].size_wh, turned_wh]


def test_an_id_with_two_masks_boxes_or_images_raises_an_error_before_files_are_read(
    samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "file_sha256", lambda path: pytest.fail(f"{path} was read"))
    item, other = samples[2].objects
    for sample in (
        replace(samples[0], objects=(replace(item, rle=other.rle),)),
        replace(samples[0], objects=(replace(item, box=other.box),)),
        replace(samples[0], image=samples[0].image.with_name("other.png")),
    ):
        with pytest.raises(DataError, match=r"two different objects have the id ann/0/0: .* rename one of the two"):
            objects_by_image([samples[0], sample])


def test_each_file_with_an_object_is_read_once_and_only_by_the_main_process(
    samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: Counter[Path] = Counter()

    def counted(path: Path) -> str:
        read[path] += 1
        return path.name

    class Second(DistributedContext):
        """A process that receives the main process's results through JSON."""

        def broadcast_result(self, compute: Callable[[], Any]) -> Any:
            return json.loads(json.dumps(sent.pop(0)))

    class Main(DistributedContext):
        def broadcast_result(self, compute: Callable[[], Any]) -> Any:
            sent.append(compute())
            return sent[-1]

    sent: list[Any] = []
    monkeypatch.setattr(objects, "file_sha256", counted)
    monkeypatch.setattr(objects, "_BROADCAST_HASHES", 1)
    without_objects = replace(samples[0], image=Path("missing.png"), objects=())
    without_masks = replace(samples[0], image=Path("missing.png"), objects=(MaskObject("box", None, Box(0, 0, 1, 1)),))
    given = [*samples, *under_other_ids(samples, "other"), without_objects, without_masks]
    images = objects_by_image(given, Main())
    assert read == {samples[0].image: 1, samples[4].image: 1}
    assert sent == [["0.png"], ["1.png"]]
    assert objects_by_image(given, Second()) == images
    assert read.total() == 2 and not sent


def test_an_unreadable_image_raises_an_error(samples: list[Sample], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the image .*none.jpg cannot be read: No such file"):
        objects_by_image([replace(samples[0], image=tmp_path / "none.jpg")])
