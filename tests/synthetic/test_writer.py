"""The written data set is read by the readers of the real formats, and compared with the scenes."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sam4mllm.data.reading import read_dataset
from sam4mllm.data.registry import is_generated
from sam4mllm.data.sample import Sample
from sam4mllm.errors import DataError
from sam4mllm.synthetic.clues import KNOWN_FOR
from sam4mllm.synthetic.scenes import Scene, make_scene
from sam4mllm.synthetic.writer import write_dataset

SEED, TRAINING, HELD_OUT = 3, 6, 4
COUNTS = {"train": TRAINING, "val": HELD_OUT, "test": HELD_OUT}
COCO_SPLITS = ("train", "val", "testA", "testB")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    write_dataset(folder, scenes=TRAINING, held_out=HELD_OUT, seed=SEED)
    return folder


@pytest.fixture(scope="module")
def made() -> dict[str, list[Scene]]:
    """The scenes of each split, in order."""
    series = enumerate(COUNTS.items())
    return {
        split: [make_scene(SEED, number, k, shared_boxes=0.5) for k in range(count)]
        for number, (split, count) in series
    }


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _images(samples: list[Sample]) -> list[int]:
    """The number of each sample's image, from 1."""
    return [int(sample.image.stem.removeprefix("COCO_train2014_")) for sample in samples]


@pytest.mark.parametrize("name", ["refcoco", "grefcoco"])
def test_masks_boxes_and_images_are_those_of_the_scenes(root: Path, made: dict[str, list[Scene]], name: str) -> None:
    scenes = [scene for split in COUNTS for scene in made[split]]
    shapes = [shape for scene in scenes for shape in scene.shapes]
    samples = [sample for split in COCO_SPLITS for sample in read_dataset(name, root, split)]
    assert len({sample.id for sample in samples}) == len(samples) > 3 * len(scenes)
    for sample, image in zip(samples, _images(samples), strict=True):
        scene = scenes[image - 1]
        assert sample.size_wh == scene.size_wh
        for item in sample.objects:
            folder, kind, number = item.id.split("/")
            shape = shapes[int(number) - 1]
            assert (folder, kind) == (name, "ann") and any(shape is own for own in scene.shapes)
            assert np.array_equal(item.mask(), shape.mask) and item.box == shape.box
        seen = np.asarray(Image.open(sample.image)).astype(int)
        assert np.abs(seen - scene.image).mean() < 8


@pytest.mark.parametrize("name", ["refcoco", "grefcoco"])
def test_the_splits_hold_their_own_scenes(root: Path, name: str) -> None:
    numbers = {split: set(_images(read_dataset(name, root, split))) for split in COCO_SPLITS}
    assert numbers["train"] <= set(range(1, 7)) and numbers["val"] <= set(range(7, 11))
    assert numbers["testA"] <= {11, 12} and numbers["testB"] <= {13, 14}
    assert all(numbers.values())


def test_ids_are_those_of_the_real_data_sets(root: Path) -> None:
    assert read_dataset("refcoco", root, "train")[0].id == "refcoco/train/1/1"
    assert read_dataset("grefcoco", root, "val")[0].id.startswith("grefcoco/val/")
    assert read_dataset("reasonseg", root, "val")[0].id.startswith("reasonseg/val/scene_0000")
    assert read_dataset("shapes", root, "val") == read_dataset("refcoco", root, "val")


def test_refcoco_has_one_object_and_grefcoco_none_one_or_several(root: Path) -> None:
    assert {len(sample.objects) for sample in read_dataset("refcoco", root, "train")} == {1}
    samples = read_dataset("grefcoco", root, "train")
    assert {0, 1, 2} <= {len(sample.objects) for sample in samples}
    assert all(sample.mask().any() == bool(sample.objects) for sample in samples)


def test_a_ref_holds_all_sentences_about_its_shape_and_no_sentence_twice(root: Path) -> None:
    for name in ("refcoco", "grefcoco"):
        samples = read_dataset(name, root, "train")
        sentences = {(sample.image, sample.phrase) for sample in samples}
        assert len(sentences) == len(samples)
        described = [(sample.image, tuple(item.id for item in sample.objects)) for sample in samples]
        refs = {sample.id.rsplit("/", 1)[0] for sample in samples}
        assert len(refs) == len(set(described)) < len(described)


def test_a_refs_file_is_a_pickle_of_python_2_with_the_annotations_id_in_file_names(root: Path) -> None:
    content = (root / "refcoco" / "refs(unc).p").read_bytes()
    assert content[:2] == b"\x80\x02"
    ref = pickle.loads(content)[0]
    assert ref["file_name"] == f"COCO_train2014_{ref['image_id']:012d}_{ref['ann_id']}.jpg"
    assert ref["sent_ids"] == [sentence["sent_id"] for sentence in ref["sentences"]]


@pytest.mark.parametrize("split", COUNTS)
def test_reasonseg_holds_the_shape_of_its_text(root: Path, made: dict[str, list[Scene]], split: str) -> None:
    samples = read_dataset("reasonseg", root, split)
    for sample in samples:
        scene = made[split][int(sample.image.stem.removeprefix("scene_"))]
        clue, _, colour = sample.phrase.partition(", in ") if ", in " in sample.phrase else (sample.phrase, "", "")
        (name,) = (name for name, clues in KNOWN_FOR.items() if clue in clues)
        described = [shape for shape in scene.shapes if shape.name == name and colour in ("", shape.colour)]
        assert len(described) == 1 and sample.size_wh == scene.size_wh and sample.ignore is None
        assert np.array_equal(sample.mask(), described[0].mask)
    texts = [sum(other.image == sample.image for other in samples) for sample in samples]
    assert set(texts) == ({4} if split == "train" else {1})


def test_the_same_seed_and_counts_write_the_same_bytes(root: Path, tmp_path: Path) -> None:
    advanced: list[int] = []
    write_dataset(tmp_path / "again", scenes=TRAINING, held_out=HELD_OUT, seed=SEED, advance=advanced.append)
    assert _hashes(tmp_path / "again") == _hashes(root)
    assert sum(advanced) == TRAINING + 2 * HELD_OUT


def test_a_marker_file_records_the_generator_and_its_arguments(root: Path, tmp_path: Path) -> None:
    assert is_generated(root) and not is_generated(tmp_path)
    made = json.loads((root / "shapes.json").read_text())
    assert made == {"generator": "sam4mllm shapes", "scenes": TRAINING, "held_out": HELD_OUT, "seed": SEED}


def test_another_seed_writes_other_scenes(root: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path, scenes=2, held_out=2, seed=SEED + 1)
    ours, others = (
        {value for path, value in _hashes(folder).items() if path.endswith(".jpg")} for folder in (root, tmp_path)
    )
    assert ours and others and not ours & others


def test_no_scene_is_in_two_splits(root: Path) -> None:
    hashes = [value for path, value in _hashes(root).items() if path.startswith("images/")]
    assert len(hashes) == len(set(hashes)) == sum(COUNTS.values())


def test_a_fifth_of_the_scenes_and_two_at_least_are_held_out(tmp_path: Path) -> None:
    for scenes, held_out in ((1, 2), (15, 3)):
        advanced: list[int] = []
        write_dataset(str(tmp_path / str(scenes)), scenes=scenes, advance=advanced.append)
        assert sum(advanced) == scenes + 2 * held_out


@pytest.mark.parametrize(("scenes", "held_out"), [(0, 2), (3, 1)])
def test_a_split_without_scenes_is_refused(tmp_path: Path, scenes: int, held_out: int) -> None:
    with pytest.raises(ValueError, match=f"got {scenes} and {held_out}"):
        write_dataset(tmp_path / "none", scenes=scenes, held_out=held_out)
    assert not (tmp_path / "none").exists()


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="exists already"):
        write_dataset(tmp_path, scenes=2)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_interrupted_write_is_repeated(root: Path, tmp_path: Path) -> None:
    left = tmp_path / "shapes.part" / "ReasonSeg" / "train"
    left.mkdir(parents=True)
    (left / "scene_99999.json").write_text("{}")
    write_dataset(tmp_path / "shapes", scenes=TRAINING, held_out=HELD_OUT, seed=SEED)
    assert _hashes(tmp_path / "shapes") == _hashes(root)
    assert not (tmp_path / "shapes.part").exists()
