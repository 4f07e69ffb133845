"""Write the generated data set in the published formats: RefCOCO's pickle, COCO's instances, gRefCOCO, ReasonSeg.

The folder has the layout of real data, quirks included (a ref's file name carries a suffix; a ref without target has
ann_id -1), and a marker file that records that it is generated. The same seed and counts write the same bytes.
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sam4mllm.data.masks import encode
from sam4mllm.data.readers.refs import COCO_IMAGES
from sam4mllm.data.registry import mark_generated
from sam4mllm.errors import DataError
from sam4mllm.synthetic.clues import KNOWN_FOR
from sam4mllm.synthetic.outlines import polygons_of
from sam4mllm.synthetic.phrases import Phrase, phrases_of
from sam4mllm.synthetic.scenes import Scene, make_scene
from sam4mllm.synthetic.silhouettes import SILHOUETTES
from sam4mllm.utils.atomic_io import atomic_path, atomic_write_text, writing
from sam4mllm.utils.folder_lock import folder_lock
from sam4mllm.utils.progress import Advance, bar, ignore

SHARED_BOXES = 0.5
"""The probability that a shape of the data set is placed on another one; the default of `make_scene` is 0."""

# The number of phrases of each kind per scene. Sentences about one shape share a ref, as in the real data.
_REFCOCO_KINDS = {"attribute": 2, "position": 1, "relation": 2, "superlative": 1, "overlap": 2}
_GREFCOCO_KINDS = {"attribute": 1, "overlap": 1, "plural": 2, "pair": 1, "nothing": 3}
_JPEG_QUALITY = 92
_SPLITS = ("train", "val", "test")


@dataclass
class _Files:
    """The records that are collected scene by scene and written at the end."""

    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    refs: list[dict[str, Any]] = field(default_factory=list)
    generalized_refs: list[dict[str, Any]] = field(default_factory=list)
    sentences: int = 0


def write_dataset(
    root: str | Path, *, scenes: int = 200, held_out: int | None = None, seed: int = 0, advance: Advance = ignore
) -> None:
    """Write a generated data set to the folder `root`.

    RefCOCO and gRefCOCO get the splits train, val, testA and testB (the halves of the test scenes), ReasonSeg train,
    val and test. In all scenes shapes are placed on others of nearly the same size with probability 0.5, so that many
    share their box with another (`shared_boxes` of `make_scene`). The write is atomic: the files are written to `root`
    with the suffix `.part`, which is then renamed.

    Args:
        root: The folder, which must not exist or be empty.
        scenes: The number of training scenes.
        held_out: The number of validation scenes, and of test scenes; a fifth of `scenes` if None.
        seed: The seed of scenes and phrases.
        advance: Called with 1 after each scene.

    Raises:
        DataError: `root` exists and is not empty.
        LaunchError: Another job writes to `root`.
        ValueError: Fewer than one training scene or two held-out ones.
    """
    root = Path(root)
    held_out = max(2, scenes // 5) if held_out is None else held_out
    if scenes < 1 or held_out < 2:
        raise ValueError(f"a data set has at least 1 training scene and 2 held-out ones; got {scenes} and {held_out}")
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DataError(f"{root}: exists already; remove it, or choose another folder")
    with folder_lock(root, "writing a data set", beside=True):
        _write_scenes(root, scenes, held_out, seed, advance)


def _write_scenes(root: Path, scenes: int, held_out: int, seed: int, advance: Advance) -> None:
    """Write the scenes and their annotations to `root`, atomically; see `write_dataset`."""
    part = root.with_name(root.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    (part / COCO_IMAGES).mkdir(parents=True)
    files = _Files()
    for series, (split, count) in enumerate(zip(_SPLITS, (scenes, held_out, held_out), strict=True)):
        reasoning = part / "ReasonSeg" / split
        reasoning.mkdir(parents=True)
        for index in range(count):
            scene = make_scene(seed, series, index, shared_boxes=SHARED_BOXES)
            rng = np.random.default_rng([seed, series, index, 1])
            coco_split = split if split != "test" else ("testA" if index < count // 2 else "testB")
            _add_scene(files, part, scene, coco_split, rng)
            _write_reasoning(reasoning / f"scene_{index:05d}", scene, rng)
            advance(1)
    _write_coco(part, files)
    mark_generated(part, scenes=scenes, held_out=held_out, seed=seed)
    part.replace(root)


def _add_scene(files: _Files, root: Path, scene: Scene, split: str, rng: np.random.Generator) -> None:
    image_id = len(files.images) + 1
    name = f"COCO_train2014_{image_id:012d}.jpg"
    _save_image(scene, root / COCO_IMAGES / name)
    width, height = scene.size_wh
    files.images.append({"id": image_id, "file_name": name, "width": width, "height": height})
    first_id = len(files.annotations) + 1
    for shape in scene.shapes:
        files.annotations.append(
            {
                "id": len(files.annotations) + 1,
                "image_id": image_id,
                "category_id": SILHOUETTES.index(shape.name) + 1,
                "bbox": [shape.box.x1, shape.box.y1, shape.box.width, shape.box.height],
                "area": int(shape.mask.sum()),
                "iscrowd": 0,
                "segmentation": encode(shape.mask),
            }
        )
    for target, phrases in _by_target(_phrases(scene, rng, _REFCOCO_KINDS)).items():
        ref = _ref(files, len(files.refs) + 1, image_id, split, phrases)
        (index,) = target
        ref |= {"ann_id": first_id + index, "category_id": files.annotations[first_id + index - 1]["category_id"]}
        ref["file_name"] = f"COCO_train2014_{image_id:012d}_{first_id + index}.jpg"
        files.refs.append(ref)
    for target, phrases in _by_target(_phrases(scene, rng, _GREFCOCO_KINDS)).items():
        ref = _ref(files, len(files.generalized_refs) + 1, image_id, split, phrases)
        ref |= {
            "ann_id": [first_id + index for index in target] or [-1],
            "category_id": [files.annotations[first_id + index - 1]["category_id"] for index in target] or [-1],
            "no_target": not target,
            "file_name": name,
        }
        files.generalized_refs.append(ref)


def _phrases(scene: Scene, rng: np.random.Generator, kinds: dict[str, int]) -> list[Phrase]:
    """Return at most `kinds[kind]` phrases of each kind, without repeated texts; fewer if no shape fits."""
    phrases: dict[str, Phrase] = {}
    for kind, count in kinds.items():
        for _ in range(count):
            phrase = phrases_of(scene, rng, kind)
            if phrase is not None:
                phrases.setdefault(phrase.text, phrase)
    return list(phrases.values())


def _by_target(phrases: Sequence[Phrase]) -> dict[tuple[int, ...], list[Phrase]]:
    groups: dict[tuple[int, ...], list[Phrase]] = {}
    for phrase in phrases:
        groups.setdefault(phrase.shapes, []).append(phrase)
    return groups


def _ref(files: _Files, ref_id: int, image_id: int, split: str, phrases: Sequence[Phrase]) -> dict[str, Any]:
    sentences = []
    for phrase in phrases:
        files.sentences += 1
        text = phrase.text
        sentences.append(
            {"sent_id": files.sentences, "raw": text, "sent": text, "tokens": text.replace(",", "").split()}
        )
    return {
        "ref_id": ref_id,
        "image_id": image_id,
        "split": split,
        "sentences": sentences,
        "sent_ids": [sentence["sent_id"] for sentence in sentences],
    }


def _write_reasoning(stem: Path, scene: Scene, rng: np.random.Generator) -> None:
    """Write one image of ReasonSeg with its JSON; a scene without a phrase for reasoning is skipped."""
    phrase = phrases_of(scene, rng, "reasoning")
    if phrase is None:
        return
    name = scene.shapes[phrase.shapes[0]].name
    clue = next(clue for clue in KNOWN_FOR[name] if phrase.text.startswith(clue))
    rest = phrase.text.removeprefix(clue)
    shapes = [
        {"label": "target", "labels": ["target"], "shape_type": "polygon", "points": polygon}
        for index in phrase.shapes
        for polygon in polygons_of(scene.shapes[index].mask)
    ]
    texts = [phrase.text, *(other + rest for other in KNOWN_FOR[name] if other != clue)]
    _save_image(scene, stem.with_suffix(".jpg"))
    content = {"text": texts, "is_sentence": False, "shapes": shapes}
    atomic_write_text(stem.with_suffix(".json"), json.dumps(content))


def _save_image(scene: Scene, file: Path) -> None:
    with writing(file):
        Image.fromarray(scene.image).save(file, quality=_JPEG_QUALITY)


def _write_coco(root: Path, files: _Files) -> None:
    categories = [{"id": index + 1, "name": name} for index, name in enumerate(SILHOUETTES)]
    instances = {"images": files.images, "annotations": files.annotations, "categories": categories}
    for folder in ("refcoco", "grefcoco"):
        (root / folder).mkdir(parents=True, exist_ok=True)
        atomic_write_text(root / folder / "instances.json", json.dumps(instances))
    # Python 2 wrote the real files with protocol 2.
    with atomic_path(root / "refcoco" / "refs(unc).p") as unfinished, unfinished.open("wb") as file:
        pickle.dump(files.refs, file, protocol=2)
    generalized = json.dumps(files.generalized_refs)
    atomic_write_text(root / "grefcoco" / "grefs(unc).json", generalized)


def shapes_in(work: Path, scenes: int, held_out: int, seed: int = 0) -> Path:
    """Return the folder of a generated data set below `work`; it is written if it does not exist yet."""
    data = work / f"shapes-{scenes}-{held_out}"
    if not data.is_dir():
        with bar("scenes", scenes + 2 * held_out) as advance:
            write_dataset(data, scenes=scenes, held_out=held_out, seed=seed, advance=advance)
    return data
