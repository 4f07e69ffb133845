"""docs/data.md: its table is that of the code, and the readers accept its examples."""

from __future__ import annotations

import json
import re
from pathlib import Path

from sam4mllm.cli.main import main
from sam4mllm.data.entry import DataSection, data_entry
from sam4mllm.data.reading import read_captions, read_dataset, read_dialogues
from sam4mllm.data.registry import DATASETS
from sam4mllm.geometry import Box
from sam4mllm.recipe.yaml_text import read_yaml
from tests.data.tiny_datasets import write_image
from tests.test_readme import blocks, commands

PAGE = (Path(__file__).parent.parent / "docs" / "data.md").read_text(encoding="utf-8")


def test_the_table_lists_every_data_set_with_its_keys_and_tasks() -> None:
    rows = re.findall(r"^\| ((?:`[\w+-]+`(?:, )?)+) \| ([\w, ]+) \| ([\w, -]+) \|", PAGE, re.MULTILINE)
    listed = {name: (keys, tasks) for names, keys, tasks in rows for name in re.findall(r"`([\w+-]+)`", names)}
    assert set(listed) - {"segment", "region-caption", "grounded-caption"} >= set(DATASETS)
    for name, row in DATASETS.items():
        keys, tasks = (cell.split(", ") for cell in listed[name])
        assert set(keys) <= set(row.needs) and tasks[0] == row.usual_task and set(tasks) == set(row.tasks), name


def test_the_mixture_is_one_of_a_recipe() -> None:
    (mixture,) = blocks(PAGE, "yaml")
    section = DataSection.model_validate(read_yaml(mixture)["data"])
    assert [entry.used_task for entry in section.train] == [
        "segment",
        "region-caption",
        "grounded-caption",
        "region-caption",
        "chat",
    ]


def test_the_examples_are_read(tmp_path: Path) -> None:
    sentence = next(text for text in blocks(PAGE, "text") if text.startswith("[/EN#"))
    (xml,), (regions,), (own, question) = (blocks(PAGE, kind) for kind in ("xml", "json", "jsonl"))
    folder = tmp_path / "flickr30k_entities"
    for name, text in (("Sentences/7.txt", sentence), ("Annotations/7.xml", xml), ("val.txt", "7\n")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (caption,) = read_captions(data_entry("flickr30k", root=tmp_path, split="val"))
    assert [(caption.phrase(each), each.objects[0].box) for each in caption.mentions] == [
        ("Two young guys", Box(69, 20, 192, 333))
    ]

    write_image(tmp_path / json.loads(own)["image"], 250, 160)
    (tmp_path / "captions.jsonl").write_text(own)
    (caption,) = read_captions(data_entry("jsonl", path=tmp_path / "captions.jsonl", task="grounded-caption"))
    assert [(caption.phrase(each), len(each.objects)) for each in caption.mentions] == [
        ("A red car", 1),
        ("two lamps", 2),
    ]

    (tmp_path / "region_descriptions.json").write_text(regions)
    (tmp_path / "image_data.json").write_text(json.dumps([{"image_id": 1, "width": 800, "height": 600}]))
    (region,) = read_dataset("visual-genome", path=tmp_path / "region_descriptions.json")
    assert (region.id, region.objects[0].box) == ("visual-genome/1/1382", Box(421, 57, 503, 196))

    write_image(tmp_path / json.loads(question)["image"])
    (tmp_path / "coco_pope_random.json").write_text(question)
    (dialogue,) = read_dialogues(data_entry("pope", path=tmp_path / "coco_pope_random.json"))
    assert dialogue.exchanges[0][1] == "yes"


def test_the_commands_name_existing_options() -> None:
    for words in commands(PAGE.replace("```text\nsam4mllm", "```sh\nsam4mllm")):
        # The data are not here: each ends with the problems of missing files, not with one of its options.
        assert main([*words[1:], "--examples", "1"]) == 1
