"""Load a `Recipe` from a YAML file and `key=value` overrides.

Unknown keys are rejected with the nearest valid one, and all errors are reported at once. Settings that were removed
are accepted with the value that had no effect, because the recipe.yaml of earlier run folders holds them. `lora` and
`training` hold peft's and transformers' own keys, which `load_recipe` checks against the installed libraries. Relative
paths are relative to the working directory. No data set is opened and no model is loaded.
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
from sam4mllm.recipe.validation import drop_removed, library_problems, nearest, section_problems
from sam4mllm.recipe.yaml_text import read_yaml


def load_recipe(path_or_name: str | Path, overrides: Sequence[str] = (), *, to_train: bool = True) -> Recipe:
    """Load a recipe from a YAML file, or a shipped one by its name, and apply `overrides` in order.

    An override is `dotted.key=value`, its value YAML; a number in the key indexes a list (`data.train.0.limit=100`).
    With `to_train` the keys of `lora` and `training` are checked against the installed libraries. The recipe of a
    finished run is loaded without this check, because the run can be used with later versions of the libraries.

    >>> recipe = load_recipe("shapes_ppg", ["training.max_steps=10", "method.positives=3"])
    >>> recipe.training.arguments["max_steps"], recipe.method.positives
    (10, 3)

    Raises:
        RecipeError: An unknown recipe, invalid YAML or unusable settings; one line per problem.
    """
    source, text = _read(path_or_name)
    try:
        settings = read_yaml(text)
    except ValueError as error:
        raise RecipeError(f"{source}: is not valid YAML: {error}") from error
    if not isinstance(settings, dict):
        raise RecipeError(f"{source}: a recipe is a mapping of sections; got {type(settings).__name__}")
    problems = [problem for override in overrides if (problem := _override(settings, override))]
    problems += drop_removed(settings)
    recipe: Recipe | None = None
    try:
        # Through JSON, because there pydantic's strict mode still converts text to a path.
        recipe = Recipe.model_validate_json(json.dumps(settings), strict=True)
    except pydantic.ValidationError as error:
        problems += section_problems(error, Recipe)
    problems += library_problems(settings) if to_train else []
    if problems or recipe is None:
        raise RecipeError("\n".join(f"{source}: {problem}" for problem in problems))
    return recipe


def shipped_recipes() -> dict[str, Traversable]:
    """Return the shipped recipes by name; they are beside the package in a checkout, inside it when installed."""
    package = resources.files("sam4mllm")
    inside, beside = package / "recipes", Path(str(package)).parent / "recipes"
    folder: Traversable = inside if inside.is_dir() else beside
    if not folder.is_dir():
        return {}
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".yaml")), key=lambda file: file.name)
    return {file.name.removesuffix(".yaml"): file for file in files}


def _read(path_or_name: str | Path) -> tuple[str, str]:
    """Return the recipe's path or name, for messages, and its text."""
    path = Path(path_or_name).expanduser()
    file: Traversable = path
    if not path.is_file():
        shipped = shipped_recipes()
        if str(path_or_name) not in shipped:
            hint = nearest(path.stem, shipped, "shipped recipes")
            raise RecipeError(f"{path_or_name}: neither a recipe file nor the name of a shipped recipe; {hint}")
        file = shipped[str(path_or_name)]
    try:
        return str(path_or_name), file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path_or_name}: cannot be read as UTF-8 text: {error}") from error


def _override(settings: dict[str, Any], override: str) -> str | None:
    """Apply one `key=value` to `settings`; return the problem with it, or None."""
    # 1. Split the override into a dotted key and a value.
    dotted, equals, text = override.partition("=")
    if not equals or not all(dotted.split(".")):
        return f"override {override!r}: write key=value, for instance training.max_steps=100"
    try:
        value = read_yaml(text)
    except ValueError as error:
        return f"override {override!r}: the value is not valid YAML: {error}"

    # 2. A method given by its name alone leaves the section's other settings unchanged.
    if isinstance(settings.get("method"), str):
        settings["method"] = {"name": settings["method"]}
    dotted = "method.name" if dotted == "method" and isinstance(value, str) else dotted

    # 3. Find the mapping or list that holds the last part of the key, and set it.
    *parents, last = dotted.split(".")
    parent: Any = settings
    for part in parents:
        if isinstance(parent, list) and part.isdecimal() and int(part) < len(parent):
            parent = parent[int(part)]
        elif isinstance(parent, dict):
            if parent.get(part) is None:
                parent[part] = {}
            parent = parent[part]
        else:
            return f"override {override!r}: there is nothing at {part!r} in which {last!r} could be set"
    if isinstance(parent, list) and last.isdecimal() and int(last) < len(parent):
        parent[int(last)] = value
    elif isinstance(parent, dict):
        parent[last] = value
    else:
        return f"override {override!r}: there is nothing at {last!r} to set"
    return None
