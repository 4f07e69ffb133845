"""The mixture of one epoch: what is removed, what is sampled, and that the sampling depends on the seed alone."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sam4mllm.data.entry import DataSection
from sam4mllm.data.mixture import Mixture, read_mixture
from sam4mllm.data.readers.refcoco import load_plain
from sam4mllm.errors import DataError
from tests.data.tiny_datasets import (
    IMAGES,
    annotation,
    image_record,
    ref,
    write_image,
    write_instances,
    write_refs,
)

SQUARE = [2, 1, 8, 1, 8, 5, 2, 5]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """RefCOCO and RefCOCOg over one pool of images, RefCOCOg training on one of RefCOCO's val images; a JSONL of
    ten images, one of them a copy of that one; a chat file."""
    splits = {
        "refcoco": {1: "train", 2: "val", 3: "testA"},
        "refcocog": {1: "train", 2: "train", 4: "train", 3: "test"},
    }
    for name, by_image in splits.items():
        write_instances(tmp_path / name, [image_record(n) for n in by_image], [annotation(10 * n, n) for n in by_image])
        write_refs(
            tmp_path / name,
            [ref(n, 10 * n, n, split, f"{name} {n}") for n, split in by_image.items()],
            split_by="umd" if name == "refcocog" else "unc",
        )
    for n in range(1, 5):
        write_image(tmp_path / IMAGES / image_record(n)["file_name"])
    for n in range(10):
        write_image(tmp_path / f"own{n}.png", 20 + n, 10)
    lines = [{"image": f"own{n}.png", "phrase": f"own {n}", "masks": [SQUARE]} for n in range(10)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    chats = [{"image": f"own{n}.png", "question": f"What is {n}?", "answer": "It."} for n in range(4)]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(line) + "\n" for line in chats))
    return tmp_path


def mix(home: Path, *train: dict[str, Any], seed: int = 0, **more: Any) -> Mixture:
    def complete(entry: dict[str, Any]) -> dict[str, Any]:
        own = {"jsonl": {"path": home / "own.jsonl"}, "chat": {"path": home / "chat.jsonl"}}
        return own.get(entry["dataset"], {"root": home, "split": "train"}) | entry

    held = {key: complete(value) if isinstance(value, dict) else value for key, value in more.items()}
    return read_mixture(DataSection.model_validate({"train": [complete(each) for each in train], **held}), seed)


def test_each_file_of_refs_is_parsed_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[Path] = []

    def counted(path: Path) -> Any:
        parsed.append(path)
        return load_plain(path)

    monkeypatch.setattr("sam4mllm.data.readers.refcoco.load_plain", counted)
    held = {"validation": {"dataset": "refcocog", "split": "test", "limit": 1}}
    mix(home, {"dataset": "refcoco"}, {"dataset": "refcocog"}, **held)
    assert parsed == [home / "refcoco" / "refs(unc).p", home / "refcocog" / "refs(umd).p"]


def test_chat_without_an_image_is_kept_by_the_filter_and_counted(home: Path) -> None:
    with (home / "chat.jsonl").open("a") as file:
        file.write('{"question": "Why?", "answer": "So."}\n')
    held_out = [{"image": name, "question": "?", "answer": "!"} for name in ("own0.png", "own1.png", None)]
    (home / "held.jsonl").write_text("".join(json.dumps(each) + "\n" for each in held_out))
    guard = [{"dataset": "chat", "path": home / "held.jsonl"}]
    mixed = mix(home, {"dataset": "chat", "weight": 2}, guard=guard)
    assert [each.image and each.image.name for each in mixed.dialogues] == ["own2.png", "own3.png", None] * 2
    (of_chat,) = mixed.sets
    assert (of_chat.count, len(of_chat.images), of_chat.without_image) == (6, 2, 2)
    assert mixed.notes() == [f"{of_chat.name}: 2 of 6 chats have no image and are trained on as text"]
    assert mixed.digest() != mix(home, {"dataset": "chat", "limit": 4}, guard="off").digest()


def test_images_of_held_out_splits_of_other_data_sets_are_removed_and_counted(home: Path) -> None:
    mixed = mix(home, {"dataset": "refcoco"}, {"dataset": "refcocog"})
    assert [sample.id for sample in mixed.samples] == [
        "refcoco/train/1/10",
        "refcocog/train/1/10",
        "refcocog/train/4/40",
    ]
    assert mixed.leakage() == {
        "guarded": {"refcoco val": 1, "refcoco testA": 1, "refcocog test": 1},
        "sets": [
            {"set": "refcoco train", "phrases": 0, "images": 0, "by": {"file": 0, "coco id": 0, "content": 0}},
            {"set": "refcocog train", "phrases": 1, "images": 1, "by": {"file": 1, "coco id": 0, "content": 0}},
        ],
    }
    assert mixed.leakage_lines()[-1] == "leakage filter: refcocog train: removed 1 phrases about 1 images"
    off = mix(home, {"dataset": "refcoco"}, {"dataset": "refcocog"}, guard="off")
    assert len(off.samples) == 4 and off.leakage_lines() == ["leakage filter: off, no split is held out"]


def test_a_copy_of_a_held_out_image_is_found_in_custom_data_and_in_chat(home: Path) -> None:
    held = write_image(home / IMAGES / image_record(2)["file_name"], 33, 44)
    for name in ("own3.png", "own0.png"):
        shutil.copy(held, home / name)
    mixed = mix(home, {"dataset": "refcoco"}, {"dataset": "jsonl"}, {"dataset": "chat"})
    assert [each["by"]["content"] for each in mixed.leakage()["sets"]] == [0, 2, 2]
    assert {sample.phrase for sample in mixed.samples} == {"refcoco 1", *(f"own {n}" for n in (1, 2, 4, 5, 6, 7, 8, 9))}
    assert len(mixed.dialogues) == 2


def test_a_duplicate_phrase_is_removed(home: Path) -> None:
    duplicated = [json.loads(line) for line in (home / "own.jsonl").read_text().splitlines()] * 2
    (home / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in duplicated))
    mixed = mix(home, {"dataset": "jsonl"})
    assert len(mixed.samples) == 10 and mixed.duplicates == 10


@pytest.mark.parametrize(
    ("share", "times"),
    [
        ({}, [1] * 10),
        ({"weight": 1}, [1] * 10),
        ({"weight": 2}, [2] * 10),
        ({"weight": 0.3}, [1] * 3),
        ({"weight": 2.5}, [2] * 5 + [3] * 5),
        ({"count": 4}, [1] * 4),
        ({"count": 13}, [1] * 7 + [2] * 3),
    ],
)
def test_weight_and_count_decide_how_often_a_phrase_is_used_in_an_epoch(
    home: Path, share: dict[str, Any], times: list[int]
) -> None:
    mixed = mix(home, {"dataset": "jsonl"} | share)
    phrases = [sample.phrase for samples in mixed.epochs for sample in samples]
    assert sorted(Counter(phrases).values()) == times
    assert {sample.phrase for sample in mixed.samples} == set(phrases)
    # No phrase is repeated within one part, so that a conversation never holds the answer to its own question.
    assert all(len({sample.id for sample in samples}) == len(samples) for samples in mixed.epochs)


def test_the_sampling_depends_on_the_seed_alone(home: Path) -> None:
    few = {"dataset": "jsonl", "count": 4}, {"dataset": "chat", "weight": 1.5}
    assert mix(home, *few, seed=1) == mix(home, *few, seed=1)
    assert any(mix(home, *few, seed=seed).samples != mix(home, *few, seed=1).samples for seed in range(2, 6))
    assert len(mix(home, *few).dialogues) == 6
    # Another data set in the mixture does not change what is sampled from the first.
    assert mix(home, *few).samples == mix(home, *few, {"dataset": "refcoco"}).samples[:4]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (
            [{"dataset": "jsonl"}, {"dataset": "refcocog", "limit": 1}],
            r"data.train.1 \(refcocog train\): nothing of this data set is left .* leakage filter removed 1 phrases",
        ),
        (
            [{"dataset": "jsonl", "weight": 0.01}],
            r"data.train.0 \(jsonl .*own.jsonl\): weight 0.01 of 10 phrases is less",
        ),
        ([{"dataset": "jsonl", "path": "/nowhere/x.jsonl"}], "/nowhere/x.jsonl: cannot be read"),
    ],
)
def test_a_data_set_without_samples_left_is_an_error_that_names_it(
    home: Path, train: list[dict[str, Any]], message: str
) -> None:
    guard = [{"dataset": "jsonl", "path": home / "held.jsonl"}]
    place = home / IMAGES / image_record(1)["file_name"]
    (home / "held.jsonl").write_text(json.dumps({"image": str(place), "phrase": "x"}))
    with pytest.raises(DataError, match=message) as raised:
        mix(home, *train, guard=guard)
    assert "\n" not in str(raised.value)
