"""The licenses of what recipes use: every model and published data set of the shipped recipes has a line."""

from __future__ import annotations

from pathlib import Path

import pytest

from sam4mllm.data.registry import dataset_names, mark_generated
from sam4mllm.recipe.licenses import BASES, DATASETS, SEGMENTERS, license_lines, markdown
from sam4mllm.recipe.loading import load_recipe, shipped_recipes

PAGE = (Path(__file__).parents[2] / "docs" / "licenses.md").read_text(encoding="utf-8")


def test_the_page_shows_the_tables() -> None:
    assert all(markdown(rows) in PAGE for rows in (BASES, SEGMENTERS, DATASETS))


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_every_recipe_has_a_line_for_its_base_its_segmenter_and_its_data(name: str) -> None:
    recipe = load_recipe(name)
    base, segmenter, *data = license_lines(recipe)
    assert base.startswith(f"license of the base {recipe.model.base}: ")
    # Later stages begin with a merged model, whose folder does not exist here.
    assert ("docs/licenses.md" in base) == recipe.model.base.startswith("runs/")
    assert segmenter.startswith(f"license of the segmenter {recipe.segmenter.checkpoint}: Apache-2.0 (commercial use: ")
    published = {entry.dataset for entry in recipe.data.train} - set(dataset_names("custom")) - {"chat"}
    assert all(any(row.matches(dataset) for row in DATASETS) for dataset in published)
    assert len(data) == len(set(data)) and len(data) >= 1


def test_every_published_data_set_has_a_row() -> None:
    for name in dataset_names("benchmark", "boxes", "generated"):
        assert sum(row.matches(name) for row in DATASETS) == 1, name


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("model.base=google/gemma-3-4b-it", "base google/gemma-3-4b-it: Gemma Terms of Use (commercial use: with cond"),
        (
            "model.base=apple/FastVLM-0.5B",
            "base apple/FastVLM-0.5B: Apple Machine Learning Research Model License (commer",
        ),
        ("model.base=owner/model", "base owner/model: not in docs/licenses.md; read its card"),
        (
            "segmenter.checkpoint=facebook/sam3",
            "segmenter facebook/sam3: SAM License, which excludes some uses (commer",
        ),
        ("segmenter.checkpoint=owner/sam", "segmenter owner/sam: not in docs/licenses.md"),
        (
            "data.train=[{dataset: chat, path: data/llava_instruct_150k.json}]",
            "data LLaVA-Instruct: CC BY 4.0, and OpenAI's terms of use (commercial use: with conditions; https://",
        ),
        ("data.train=[{dataset: pope, path: coco_pope_random.json}]", "data COCO (images and masks): annotations CC"),
        (
            "data.train=[{dataset: flickr30k, root: d, split: train}]",
            "data Flickr30k Entities: images for non-commercial",
        ),
    ],
)
def test_names_are_recognized(setting: str, line: str) -> None:
    lines = license_lines(load_recipe("refcoco_ppg_qwen3_vl_8b", [setting]))
    assert any(each.startswith(f"license of the {line}") for each in lines), lines


def test_local_models_are_under_the_license_of_what_they_were_made_from(tmp_path: Path) -> None:
    (tmp_path / "mine.pth").touch()
    settings = [f"model.base={tmp_path}", f"segmenter.checkpoint={tmp_path / 'mine.pth'}"]
    base, segmenter, *_ = license_lines(load_recipe("shapes_ppg", settings))
    assert base == f"license of the base {tmp_path}: that of the model that this file or folder was made from"
    assert segmenter.endswith("mine.pth: that of the model that this file or folder was made from")


def test_custom_data_have_no_line_and_generated_data_are_ours(tmp_path: Path) -> None:
    custom = license_lines(load_recipe("shapes_ppg", ["data.train=[{dataset: jsonl, path: a.jsonl}]"]))
    assert len(custom) == 2
    mark_generated(tmp_path, scenes=1, held_out=1, seed=0)
    entries = f"data.train=[{{dataset: refcoco, root: {tmp_path}, split: train}}]"
    generated = license_lines(load_recipe("shapes_ppg", [entries]))
    assert [line.partition(":")[0] for line in generated[2:]] == ["license of the data shapes (embedded)"]
