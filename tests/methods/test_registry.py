"""Building a method from a recipe and from settings: coordinates are resolved once and kept in the run folder."""

import json
from pathlib import Path

import pytest

from sam4mllm.errors import RecipeError
from sam4mllm.geometry import ResizedGrid
from sam4mllm.methods.registry import METHODS, method_from_settings, method_of_recipe, plain_method
from sam4mllm.prompts.coordinates import Coordinates
from sam4mllm.recipe.loading import Recipe, load_recipe
from sam4mllm.runs.run_folder import RunFolder
from sam4mllm.testing import save_tiny_mllm


@pytest.fixture(scope="module")
def qwen2_5_vl(tmp_path_factory) -> str:
    return str(save_tiny_mllm("qwen2_5_vl", tmp_path_factory.mktemp("qwen2_5_vl")))


@pytest.fixture(scope="module")
def fast_vlm(tmp_path_factory) -> str:
    return str(save_tiny_mllm("fast_vlm", tmp_path_factory.mktemp("fast_vlm"), seed=1))


def make_recipe(folder: Path, base: str, *overrides: str) -> Recipe:
    file = folder / "recipe.yaml"
    file.write_text(
        f"output: {folder / 'run'}\nmodel: {{base: {base}}}\nsegmenter: {{checkpoint: none.pth}}\n"
        f"data: {{train: [{{dataset: shapes, root: {folder}, split: train}}]}}\n"
    )
    return load_recipe(file, overrides)


def test_coordinates_of_the_family_have_the_limits_of_the_recipe(tmp_path, qwen2_5_vl):
    method = method_of_recipe(make_recipe(tmp_path, qwen2_5_vl, "model.max_pixels=7840"))
    assert method.coordinates.frame == ResizedGrid(28, 784, 7840)
    assert method_from_settings(json.loads(json.dumps(method.settings()))) == method


def test_a_recipe_can_choose_the_plain_grid(tmp_path, qwen2_5_vl):
    method = method_of_recipe(make_recipe(tmp_path, qwen2_5_vl, "method.coordinates=grid", "method.grid=500"))
    assert method.coordinates is None and method.settings()["coordinates"] == "grid"
    assert method.grammar.coordinates.frame.bins_wh == (500, 500)


def test_internvl_writes_boxes_in_tags(tmp_path):
    save_tiny_mllm("internvl", tmp_path / "base")
    method = method_of_recipe(make_recipe(tmp_path, str(tmp_path / "base")))
    assert method.grammar.coordinates.tags == ("<box>", "</box>")


def test_a_family_without_native_coordinates_gets_the_grid(tmp_path, fast_vlm):
    assert method_of_recipe(make_recipe(tmp_path, fast_vlm)).coordinates is None


def test_a_run_folder_keeps_the_coordinates_that_it_was_started_with(tmp_path, qwen2_5_vl):
    recipe = make_recipe(tmp_path, qwen2_5_vl)
    run = RunFolder.create(recipe, method_of_recipe(recipe))
    started = run.method
    assert started.coordinates.frame == ResizedGrid(28, 784, 12544)
    assert (
        RunFolder.create(recipe, method_from_settings({**started.settings(), "coordinates": "grid"})).method == started
    )


def test_unknown_coordinates_are_refused(tmp_path, fast_vlm):
    with pytest.raises(RecipeError, match=r"method\.coordinates: .*'family' or 'grid'"):
        make_recipe(tmp_path, fast_vlm, "method.coordinates=pixels")
    settings = {"name": "ppg", "positives": 1, "negatives": 1, "grid": 1000, "phrases": 1}
    with pytest.raises(RecipeError, match="coordinates must be family, grid, or an object as in method"):
        method_from_settings({**settings, "coordinates": 3})
    native = Coordinates(padded=False)
    assert method_from_settings({**settings, "coordinates": "family"}, native).coordinates == native


@pytest.mark.parametrize("name", METHODS)
def test_every_row_of_the_table_builds_its_method_from_a_recipes_settings(tmp_path, name):
    recipe = make_recipe(tmp_path, "base", f"method.name={name}")
    method = plain_method(recipe)
    assert method.name == name == method.settings()["name"]
    assert method_from_settings(method.settings()) == method
