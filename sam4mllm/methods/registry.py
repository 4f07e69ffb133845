"""The table of methods, and the functions that build a method from settings or from a recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from sam4mllm.errors import RecipeError
from sam4mllm.methods.base import Method
from sam4mllm.methods.pix2emb import Pix2Emb
from sam4mllm.methods.ppg import Ppg
from sam4mllm.methods.pqpp import Pqpp
from sam4mllm.prompts.coordinates import Coordinates
from sam4mllm.recipe.schema import BOTH_REMOVED, MethodSection, Recipe

if TYPE_CHECKING:
    from sam4mllm.mllm.families import Family

Settings = Mapping[str, Any]
Built = TypeVar("Built")

METHODS: Mapping[str, Callable[[Settings], Method]] = MappingProxyType(
    {
        Ppg.name: lambda settings: _build(Ppg, settings),
        Pqpp.name: lambda settings: _build(Pqpp, settings),
        Pix2Emb.name: lambda settings: _build(Pix2Emb, settings),
    }
)
"""Each method's name in recipes, with the function that builds the method from the settings of a `method` section.

To add a method:
1. Write a dataclass that fulfills `base.Method` in a file of its own; its fields are its settings.
2. Add its settings and its name to `recipe.schema.MethodSection`.
3. Add a row here.
"""


def method_from_settings(settings: Settings, native: Coordinates | None = None) -> Method:
    """Build a method from a recipe's `method` section, or from `Method.settings()` read from `method.json`.

    `native` is the coordinate convention of the model family's own grounding data, None if there is none; it replaces
    `coordinates: family`. The settings in `method.json` hold the convention itself.

    Raises:
        RecipeError: The method is unknown or was removed, or a setting is unknown, missing or invalid.
    """
    name = settings.get("name")
    if name == "both":
        raise RecipeError(f"method {BOTH_REMOVED}")
    if name is None or name not in METHODS:
        raise RecipeError(f"method {name!r} is unknown; the methods are: {', '.join(sorted(METHODS))}")
    if unknown := sorted(settings.keys() - MethodSection.model_fields.keys()):
        known = sorted(MethodSection.model_fields.keys() - {"name"})
        raise RecipeError(f"method {name}: unknown setting {unknown[0]!r}; the settings are {', '.join(known)}")
    try:
        coordinates = _resolve_coordinates(settings.get("coordinates", "grid"), native)
        return METHODS[name]({**settings, "coordinates": coordinates})
    except (TypeError, ValueError) as error:
        raise RecipeError(f"method {name}: {error}") from error


def method_of_recipe(recipe: Recipe, loaded: tuple[Any, Family] | None = None) -> Method:
    """Build the method of a recipe; for `coordinates: family` the base model's processor is needed.

    `loaded` is what `load_processor` returned for the base; None to load it.

    Raises:
        ModelError: Config or processor cannot be loaded.
        RecipeError: A limit in the section `model` that the family's image processor does not have.
    """
    native = None
    if recipe.method.coordinates == "family" and recipe.method.name != Pix2Emb.name:
        from sam4mllm.mllm.image_size import native_coordinates
        from sam4mllm.mllm.loading import load_processor

        processor, family = loaded or load_processor(recipe.model.base, recipe.model.image_size)
        native = native_coordinates(family.coordinates, processor)
    return method_from_settings(recipe.method.model_dump(), native)


def plain_method(recipe: Recipe) -> Method:
    """Build the method of a recipe for what does not depend on coordinates: `coordinates: family` is the plain grid."""
    return method_from_settings(recipe.method.model_dump())


def _build(method: Callable[..., Built], settings: Settings) -> Built:
    """Call a method's class with those settings that are fields of it; the others belong to other methods.

    Raises:
        TypeError: A setting of this method is missing.
        ValueError: A value that the method refuses.
    """
    fields = {field.name for field in dataclasses.fields(method)}  # type: ignore[arg-type]
    return method(**{key: value for key, value in settings.items() if key in fields})


def _resolve_coordinates(setting: Any, native: Coordinates | None) -> Coordinates | None:
    """Return the coordinate convention that a setting names; None for the plain grid.

    Raises:
        ValueError: The setting is not one of the three forms.
    """
    if setting == "family":
        return native
    if setting == "grid":
        return None
    if isinstance(setting, Mapping):
        return Coordinates.from_json(setting)
    raise ValueError(f"coordinates must be family, grid, or an object as in method.json; got {setting!r}")
