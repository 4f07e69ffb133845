"""Phrases of one image with different objects in several records."""

from __future__ import annotations

import json
from pathlib import Path

from sam4mllm.data.contradictions import contradiction_note, contradictions
from sam4mllm.data.entry import DataEntry, DataSection
from sam4mllm.data.mixture import read_mixture
from sam4mllm.data.reading import read_samples
from sam4mllm.data.sample import Sample
from tests.data.tiny_datasets import write_image

LEFT, RIGHT = [1, 1, 5, 1, 5, 5, 1, 5], [11, 1, 15, 1, 15, 5, 11, 5]


def write(folder: Path, *records: tuple[str, str, list[list[int]] | None]) -> Path:
    lines = []
    for image, phrase, masks in records:
        write_image(folder / image)
        lines.append({"image": image, "phrase": phrase} | ({} if masks is None else {"masks": masks}))
    file = folder / "t.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def read(file: Path) -> list[Sample]:
    return read_samples(DataEntry(dataset="jsonl", path=file))


def test_equal_phrases_of_one_image_with_other_objects_contradict(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        ("a.png", "the cup", [LEFT]),
        ("a.png", "The  cup", [RIGHT]),
        ("a.png", "the cup", None),
        ("b.png", "the cup", [RIGHT]),
        ("a.png", "both", [LEFT, RIGHT]),
        ("a.png", "both", [RIGHT, LEFT]),
        ("a.png", "it", [LEFT]),
        ("a.png", "it", [LEFT]),
    )
    (group,) = found = contradictions(read(file))
    assert [sample.phrase for sample in group] == ["the cup", "The  cup", "the cup"]
    note = contradiction_note(found)
    assert note.startswith("1 phrase(s) have different objects in several records of one image")
    assert f"'the cup' ({file}, line 1, 2, 3);" in note


def test_of_many_phrases_the_first_ones_are_listed(tmp_path: Path) -> None:
    records = [("a.png", f"cup {n}", [mask]) for n in range(7) for mask in (LEFT, RIGHT)]
    note = contradiction_note(contradictions(read(write(tmp_path, *records))))
    assert note.startswith("7 phrase(s)") and "'cup 4' (" in note and "'cup 5'" not in note and ", and 2 more;" in note


def test_the_mixture_notes_contradictions_within_a_data_set(tmp_path: Path) -> None:
    file = write(tmp_path, ("a.png", "the cup", [LEFT]), ("a.png", "the cup", [RIGHT]), ("a.png", "it", None))
    (tmp_path / "other").mkdir()
    other = write(tmp_path / "other", ("a.png", "it", [LEFT]))
    train = [{"dataset": "jsonl", "path": file}, {"dataset": "jsonl", "path": other, "images": tmp_path}]
    mixture = read_mixture(DataSection.model_validate({"train": train}), 0)
    assert [[sample.source for sample in group] for group in mixture.contradictory] == [
        [f"{file}, line 1", f"{file}, line 2"]
    ]
    assert [note[:11] for note in mixture.notes()] == ["1 phrase(s)"]
    assert not read_mixture(DataSection.model_validate({"train": train[1:]}), 0).notes()
