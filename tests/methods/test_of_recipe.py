"""How a recipe's coordinates are settled: once, by the family or by the recipe, and kept in the run folder."""

import json

import pytest

from sam4mllm.errors import RecipeError
from sam4mllm.geometry import ResizedGrid
from sam4mllm.methods.of_recipe import method_of
from sam4mllm.methods.registry import method_from_settings
from sam4mllm.prompts.coordinates import Coordinates
from sam4mllm.runs.run_folder import RunFolder
from sam4mllm.testing.tiny_mllms import save_internvl
from sam4mllm.testing.tiny_qwen import save_qwen2_5_vl
from tests.train.conftest import make_recipe


@pytest.fixture(scope="module")
def qwen2_5_vl(tmp_path_factory) -> str:
    return str(save_qwen2_5_vl(tmp_path_factory.mktemp("qwen2_5_vl")))


def test_the_family_decides_with_the_limits_of_the_recipe(tmp_path, qwen2_5_vl):
    method = method_of(make_recipe(tmp_path, qwen2_5_vl, "model.max_pixels=7840"))
    assert method.coordinates.frame == ResizedGrid(28, 784, 7840)
    assert method_from_settings(json.loads(json.dumps(method.settings()))) == method


def test_the_recipe_may_decide_for_the_grid(tmp_path, qwen2_5_vl):
    method = method_of(make_recipe(tmp_path, qwen2_5_vl, "method.coordinates=grid", "method.grid=500"))
    assert method.coordinates is None and method.settings()["coordinates"] == "grid"
    assert method.grammar.coordinates.frame.bins_wh == (500, 500)


def test_internvl_has_its_brackets(tmp_path):
    save_internvl(tmp_path / "base")
    method = method_of(make_recipe(tmp_path, str(tmp_path / "base")))
    assert method.grammar.coordinates.tags == ("<box>", "</box>")


def test_a_family_without_coordinates_of_its_own_takes_the_grid(tmp_path, fast_vlm):
    assert method_of(make_recipe(tmp_path, fast_vlm)).coordinates is None


def test_a_run_folder_keeps_the_coordinates_that_it_was_started_with(tmp_path, qwen2_5_vl):
    recipe = make_recipe(tmp_path, qwen2_5_vl)
    run = RunFolder.create(recipe, method_of(recipe))
    started = run.method
    assert started.coordinates.frame == ResizedGrid(28, 784, 12544)
    assert (
        RunFolder.create(recipe, method_from_settings({**started.settings(), "coordinates": "grid"})).method == started
    )


def test_coordinates_that_are_none(tmp_path, fast_vlm):
    with pytest.raises(RecipeError, match=r"method\.coordinates: .*'family' or 'grid'"):
        make_recipe(tmp_path, fast_vlm, "method.coordinates=pixels")
    settings = {"name": "ppg", "positives": 1, "negatives": 1, "grid": 1000, "phrases": 1}
    with pytest.raises(RecipeError, match="coordinates are family, grid or what method"):
        method_from_settings({**settings, "coordinates": 3})
    native = Coordinates(padded=False)
    assert method_from_settings({**settings, "coordinates": "family"}, native).coordinates == native
