"""The schema: defaults, descriptions, the hash, and the YAML that a recipe is written as."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from sam4mllm.recipe.loading import Recipe, load_recipe
from sam4mllm.recipe.schema import TrainingSection
from tests.recipe.conftest import problems


def test_the_defaults_are_those_of_the_paper(small: Path) -> None:
    recipe = load_recipe(small)
    assert (recipe.method.positives, recipe.method.negatives, recipe.method.grid) == (2, 1, 1000)
    assert (recipe.targets.groups, recipe.targets.keep, recipe.targets.choose) == (64, 1, "top")
    assert recipe.lora == {}
    assert recipe.training.arguments == {}


def test_every_setting_is_described() -> None:
    def sections(model: type[BaseModel]) -> set[type[BaseModel]]:
        found = {model}
        for field in model.model_fields.values():
            for kind in (field.annotation, *get_args(field.annotation)):
                if isinstance(kind, type) and issubclass(kind, BaseModel):
                    found |= sections(kind)
        return found

    everything = sections(Recipe)
    assert TrainingSection in everything
    bare = [
        f"{section.__name__}.{name}"
        for section in everything
        for name, field in section.model_fields.items()
        if not field.description
    ]
    assert bare == []


def test_what_is_written_loads_to_an_equal_recipe(tmp_path: Path) -> None:
    recipe = load_recipe("shapes_ppg", ["training.save_strategy=no", "training.learning_rate=1e-5"])
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    again = load_recipe(path)
    assert again == recipe
    assert again.hash() == recipe.hash()
    assert again.to_yaml() == recipe.to_yaml()


def test_the_hash_depends_on_the_settings_and_not_on_their_order_or_spelling(small: Path) -> None:
    plain = load_recipe(small, ["training.learning_rate=1e-4", "training.max_steps=5"]).hash()
    assert load_recipe(small, ["training.max_steps=5", "training.learning_rate=0.0001"]).hash() == plain
    assert load_recipe(small, ["training.max_steps=5", "training.learning_rate=0.0001", "seed=0"]).hash() == plain
    assert load_recipe(small, ["training.max_steps=6", "training.learning_rate=0.0001"]).hash() != plain
    assert len(plain) == 64


def test_settings_of_locations_change_only_the_hash_of_recipes_that_use_them(small: Path) -> None:
    recipe = load_recipe(small)
    assert load_recipe(small, ["method.prompt=box", "method.cycle=false"]).hash() == recipe.hash()
    assert load_recipe(small, ["method.box_loss=0.5"]).hash() != recipe.hash()
    located = [load_recipe(small, ["method=pix2emb", *more]).hash() for more in ([], ["method.prompt=box"])]
    assert len({*located, recipe.hash()}) == 3


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (
            ["method=pqpp", "method.box_loss=1"],
            "method.box_loss: is for ppg, whose boxes are text, not for pqpp",
        ),
        (["method=pix2emb", "method.prompt=box", "method.train_mask_decoder=true"], "method.train_mask_decoder: "),
        (["method=pix2emb", "method.mask_weight=0", "method.train_mask_decoder=true"], "method.train_mask_decoder: "),
        (["method=pix2emb", "method.prompt=points"], "method.prompt: "),
        (["method=pix2emb", "method.giou_weight=-1"], "method.giou_weight: "),
        (["method=pix2emb", "method.sam_tokens=0"], "method.sam_tokens: "),
    ],
)
def test_contradicting_settings_of_locations_are_refused(small: Path, overrides: list[str], problem: str) -> None:
    (line,) = problems(small, *overrides)
    assert line.startswith(problem)
