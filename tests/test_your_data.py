"""docs/your-data.md: its commands run in order on tiny models, and the readers accept its examples."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sam4mllm.cli.main import main
from sam4mllm.data.reading import read_dataset
from sam4mllm.recipe.loading import load_recipe
from sam4mllm.recipe.yaml_text import read_yaml
from tests.data.tiny_datasets import annotation, image_record, write_image, write_instances
from tests.test_readme import blocks, commands
from tests.tiny_home import tiny_settings

PAGE = (Path(__file__).parent.parent / "docs" / "your-data.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"`([\w.-]+)`:\n\n```\w+\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))


def test_from_ten_images_to_a_tuned_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        Path(name).write_text(text, encoding="utf-8")
    smaller = tiny_settings(tmp_path)
    run = [words for words in commands(PAGE) if words]
    subcommands = [words[1] for words in run]
    assert {words[0] for words in run} == {"sam4mllm"}
    assert subcommands[:7] == ["shapes", "convert", "convert", "check", "train", "prepare", "inspect"]
    for words in run:
        subcommand, *arguments = words[1:]
        arguments += smaller if subcommand in ("prepare", "inspect", "train") else []
        arguments += [] if subcommand in ("shapes", "convert", "check") else ["--device", "cpu"]
        # The answer of a random model may be malformed, for which `segment` exits with status 1.
        assert main([subcommand, *arguments]) in ((0, 1) if subcommand == "segment" else (0,)), words
    capsys.readouterr()

    assert len({sample.image for sample in read_dataset("jsonl", path=Path("train.jsonl"))}) == 10
    assert Path("runs/mine/adapter_model.safetensors").is_file() and Path("out.png").is_file()
    assert "leakage" not in json.loads(Path("scores.json").read_text())
    guard = json.loads(Path("runs/mine/leakage.json").read_text())
    assert list(guard["guarded"].values()) == [2] and guard["sets"][0]["phrases"] == 0
    chat = json.loads(Path("scores.json").read_text())["chat"]
    assert chat["file"] == "chat.jsonl"
    assert chat["tuned"]["yes_no"] == chat["base"]["yes_no"] == 2
    assert 0 <= chat["tuned"]["yes_no_accuracy"] <= 1
    ids = [sample.id for sample in read_dataset("jsonl", path=Path("val.jsonl"))]
    for folder in ("runs/answers", "runs/mine/evaluate/jsonl-val"):
        lines = (Path(folder) / "predictions.jsonl").read_text().splitlines()
        assert sorted(json.loads(line)["id"] for line in lines) == sorted(ids)


def test_the_recipe_loads_unchanged(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(FILES["mine.yaml"])
    assert load_recipe(tmp_path / "mine.yaml").data.train[0].path == Path("train.jsonl")


def test_the_example_lines_are_read(tmp_path: Path) -> None:
    (tmp_path / "labels.jsonl").write_text(FILES["labels.jsonl"])
    write_image(tmp_path / "photos/street.jpg", 240, 160)
    (tmp_path / "masks").mkdir()
    for number in (1, 2):
        pixels = np.zeros((160, 240), dtype=np.uint8)
        pixels[20:90, 60 * number : 60 * number + 10] = 255
        Image.fromarray(pixels).save(tmp_path / f"masks/lamp{number}.png")
    samples = read_dataset("jsonl", path=tmp_path / "labels.jsonl")
    assert [(each.phrase, len(each.objects), each.has_masks) for each in samples] == [
        ("the red car", 1, True),
        ("the two lamps", 2, True),
        ("what gives light at night", 2, True),
        ("the wall", 1, True),
        ("the dog", 1, False),
        ("the elephant", 0, True),
    ]


def test_the_phrases_of_coco_annotations_are_read(tmp_path: Path) -> None:
    (text,) = [block for block in blocks(PAGE, "jsonl") if "annotation_id" in block]
    (tmp_path / "phrases.jsonl").write_text(text)
    write_instances(tmp_path, [image_record(3)], [annotation(7, 3), annotation(8, 3, x=9), annotation(9, 3, x=13)])
    samples = read_dataset("coco", path=tmp_path / "instances.json", phrases=tmp_path / "phrases.jsonl")
    assert [len(each.objects) for each in samples] == [1, 2, 2, 0]


@pytest.mark.parametrize("text", [block for block in blocks(PAGE, "yaml") if block.startswith("data:")])
def test_the_recipe_sections_are_valid(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.yaml").write_text(FILES["mine.yaml"])
    data = read_yaml(text)["data"]
    overrides = ["data.validation=null"] + [f"data.{key}={json.dumps(value)}" for key, value in data.items()]
    assert load_recipe(tmp_path / "mine.yaml", overrides)


@pytest.mark.parametrize("entry", re.findall(r"`(\{dataset: .*?\})`", PAGE))
def test_every_data_entry_in_the_text_is_valid(tmp_path: Path, entry: str) -> None:
    (tmp_path / "mine.yaml").write_text(FILES["mine.yaml"])
    assert load_recipe(tmp_path / "mine.yaml", [f"data.train=[{entry}]", "data.validation=null"])
