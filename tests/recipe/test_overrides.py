"""Overrides: `key=value` settings that replace those of the file."""

from __future__ import annotations

import typing
from pathlib import Path

import pytest

from sam4mllm.recipe.loading import load_recipe
from sam4mllm.recipe.schema import MethodSection
from tests.recipe.conftest import problems

_QUOTED = [repr(name) for name in typing.get_args(MethodSection.model_fields["name"].annotation)]
METHOD_NAMES = f"{', '.join(_QUOTED[:-1])} or {_QUOTED[-1]}"
"""The names of the methods as pydantic lists them: "'ppg' or 'pqpp'"."""
BOTH = "both was removed, because checking PPG's points by yes/no questions did not improve masks; use method: ppg"
METHODS_REMOVED = "methods: was removed, because a model is trained on one method"


def test_overrides_are_yaml_and_apply_in_order(small: Path) -> None:
    recipe = load_recipe(
        small,
        [
            "training.learning_rate=1e-4",
            "training.save_strategy=no",
            "training.validate.every_steps=5",
            "seed=1",
            "seed=2",
            "data.train.1.limit=7",
            "data.validation={dataset: refcoco, root: data, split: val}",
            "model.quantization=4bit",
            "lora.target_modules=[q_proj, v_proj]",
        ],
    )
    assert recipe.training.arguments == {"learning_rate": 1e-4, "save_strategy": "no"}
    assert recipe.training.validation.every_steps == 5
    assert recipe.seed == 2
    assert [entry.limit for entry in recipe.data.train] == [None, 7]
    assert recipe.data.validation is not None
    assert recipe.data.validation.split == "val"
    assert recipe.model.quantization == "4bit"
    assert recipe.lora == {"target_modules": ["q_proj", "v_proj"]}


def test_a_value_may_hold_an_equals_sign(small: Path) -> None:
    assert load_recipe(small, ["output=runs/a=b"]).output == Path("runs/a=b")


def test_home_is_expanded(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert load_recipe(small, ["output=~/run"]).output == Path("/home/someone/run")


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["method=pqpp"], "pqpp"),
        (["method=pqpp", "method.phrases=2"], "pqpp"),
        (["method.name=ppg"], "ppg"),
    ],
)
def test_a_method_can_be_given_by_its_name_alone(small: Path, tmp_path: Path, overrides: list[str], name: str) -> None:
    recipe = load_recipe(small, overrides)
    assert recipe.method.name == name
    (tmp_path / "again.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_recipe(tmp_path / "again.yaml") == recipe
    assert load_recipe(small, [f"method.name={name}", f"method.phrases={recipe.method.phrases}"]) == recipe


def test_a_method_given_by_its_name_leaves_the_sections_other_settings_unchanged(small: Path) -> None:
    assert load_recipe("shapes_ppg", ["method=pqpp"]) == load_recipe("shapes_ppg", ["method.name=pqpp"])
    recipe = load_recipe(small, ["method=pqpp", "method.form=single"])
    assert (recipe.method.name, recipe.method.form) == ("pqpp", "single")


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["method=both"], f"method.name: {BOTH}"),
        (["method.name=both", "method.phrases=2"], f"method.name: {BOTH}"),
        (["methods=[ppg, pqpp]"], f"{METHODS_REMOVED}; use method: ppg"),
        (["methods=[pqpp]", "method.name=ppg"], f"{METHODS_REMOVED}; use method: pqpp"),
        (["methods=3"], f"{METHODS_REMOVED}; use method: ppg"),
        (["method.name=[both]"], f"method.name: input should be {METHOD_NAMES}; got ['both']"),
        (["method=pgp"], f"method.name: input should be {METHOD_NAMES}; got 'pgp'"),
        (["method.box_jitter=0.5"], "method.box_jitter: input should be less than 0.5; got 0.5"),
    ],
)
def test_removed_and_invalid_methods_are_refused(small: Path, overrides: list[str], problem: str) -> None:
    assert problems(small, *overrides) == [problem]
