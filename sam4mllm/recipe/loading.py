"""Recipe: everything that decides a run, typed, from a YAML file and `key=value` overrides.

Unknown keys are refused with the nearest valid one, and all errors are told at once. `lora` and `training` hold peft's
and transformers' own keys, which `load_recipe` checks against the installed libraries. Relative paths are relative to
the working directory. This module opens no data set and loads no model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import pydantic

from sam4mllm.errors import RecipeError
from sam4mllm.recipe.schema import Recipe
from sam4mllm.recipe.validation import library_problems, nearest, section_problems
from sam4mllm.recipe.yaml_text import read_yaml


def load_recipe(path_or_name: str | Path, overrides: Sequence[str] = (), *, to_train: bool = True) -> Recipe:
    """The recipe of a YAML file, or of a shipped one by its name ("shapes_ppg"), with `overrides` put over it in order.

    An override is `dotted.key=value`, its value YAML; a number in the key indexes a list (`data.train.0.limit=100`).
    `to_train` says whether the keys of `lora` and `training` are to suit the installed libraries: a run that is trained
    may be asked when they have moved on.

    Raises:
        RecipeError: no such recipe, no YAML, or settings that cannot be used: one line for each.
    """
    source, text = _read(path_or_name)
    try:
        settings = read_yaml(text)
    except ValueError as error:
        raise RecipeError(f"{source}: is no YAML: {error}") from error
    if not isinstance(settings, dict):
        raise RecipeError(f"{source}: a recipe is a mapping of sections; got {type(settings).__name__}")
    problems = [problem for override in overrides if (problem := _override(settings, override))]
    recipe: Recipe | None = None
    try:
        # By way of JSON, because pydantic's strict mode then still takes text for a path.
        recipe = Recipe.model_validate_json(json.dumps(settings), strict=True)
    except pydantic.ValidationError as error:
        problems += section_problems(error, Recipe)
    problems += library_problems(settings) if to_train else []
    if problems or recipe is None:
        raise RecipeError("\n".join(f"{source}: {problem}" for problem in problems))
    return recipe


def shipped_recipes() -> dict[str, Traversable]:
    """The recipes that come with sam4mllm, by name: beside the package in a checkout, inside it when installed."""
    package = resources.files("sam4mllm")
    inside, beside = package / "recipes", Path(str(package)).parent / "recipes"
    folder: Traversable = inside if inside.is_dir() else beside
    if not folder.is_dir():
        return {}
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".yaml")), key=lambda file: file.name)
    return {file.name.removesuffix(".yaml"): file for file in files}


def _read(path_or_name: str | Path) -> tuple[str, str]:
    """Where the recipe was found, and its text."""
    path = Path(path_or_name).expanduser()
    file: Traversable = path
    if not path.is_file():
        shipped = shipped_recipes()
        if str(path_or_name) not in shipped:
            hint = nearest(path.stem, shipped, "shipped recipes")
            raise RecipeError(f"{path_or_name}: no such recipe file, and no shipped recipe of that name; {hint}")
        file = shipped[str(path_or_name)]
    try:
        return str(path_or_name), file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path_or_name}: cannot be read as UTF-8 text: {error}") from error


def _override(settings: dict[str, Any], override: str) -> str | None:
    """Put one `key=value` into `settings`; returns what is wrong with it, or None."""
    dotted, equals, text = override.partition("=")
    if isinstance(settings.get("method"), str):
        settings["method"] = {"name": settings["method"]}
    if not equals or not all(dotted.split(".")):
        return f"override {override!r}: write key=value, for instance training.max_steps=100"
    try:
        value = read_yaml(text)
    except ValueError as error:
        return f"override {override!r}: the value is no YAML: {error}"
    # A method by its name alone leaves the section's other settings as they are.
    dotted = "method.name" if dotted == "method" and isinstance(value, str) else dotted
    *parents, last = dotted.split(".")
    place: Any = settings
    for part in parents:
        if isinstance(place, list) and part.isdecimal() and int(part) < len(place):
            place = place[int(part)]
        elif isinstance(place, dict):
            if place.get(part) is None:
                place[part] = {}
            place = place[part]
        else:
            return f"override {override!r}: there is nothing at {part!r} to set {last!r} in"
    if isinstance(place, list) and last.isdecimal() and int(last) < len(place):
        place[int(last)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        return f"override {override!r}: there is nothing at {last!r} to set"
    return None
