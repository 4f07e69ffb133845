"""The methods by name, and the one place that makes them from settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from sam4mllm.errors import RecipeError
from sam4mllm.methods.base import Answer, Method, Question
from sam4mllm.methods.ppg import Ppg
from sam4mllm.methods.pqpp import Pqpp
from sam4mllm.methods.verification import PpgWithVerification
from sam4mllm.prompts.coordinates import Coordinates

Made = TypeVar("Made")

METHODS: dict[str, Callable[[Mapping[str, Any]], Method]] = {
    Ppg.name: lambda settings: _made(Ppg, settings),
    Pqpp.name: lambda settings: _made(Pqpp, settings),
    PpgWithVerification.name: lambda settings: PpgWithVerification(_made(Ppg, settings), _made(Pqpp, settings)),
}

__all__ = ["METHODS", "Answer", "Method", "Question", "method_from_settings"]


def method_from_settings(settings: Mapping[str, Any], native: Coordinates | None = None) -> Method:
    """The method of the recipe's `method` section, or of `Method.settings()` read back from a file.

    `native` is how the model's family was taught to write places, None where it was not; `coordinates: family` means
    it. What `Method.settings()` holds is resolved already.

    Raises:
        RecipeError: an unknown method, or settings that it does not take.
    """
    name = settings.get("name")
    if name not in METHODS:
        raise RecipeError(f"method {name!r} is unknown; the methods are: {', '.join(sorted(METHODS))}")
    known = {field.name for kind in (Ppg, Pqpp) for field in dataclasses.fields(kind)}
    if unknown := sorted(settings.keys() - known - {"name"}):
        raise RecipeError(f"method {name}: unknown setting {unknown[0]!r}; the settings are {', '.join(sorted(known))}")
    try:
        return METHODS[name]({**settings, "coordinates": _resolved(settings.get("coordinates", "grid"), native)})
    except (TypeError, ValueError) as error:
        raise RecipeError(f"method {name}: {error}") from error


def _made(kind: Callable[..., Made], settings: Mapping[str, Any]) -> Made:
    """A method from those of the settings that are its own; the others are for other methods.

    Raises:
        TypeError: one of its own is missing.
    """
    own = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    return kind(**{key: value for key, value in settings.items() if key in own})


def _resolved(coordinates: Any, native: Coordinates | None) -> Coordinates | None:
    """The convention that a setting means; None for the plain grid.

    Raises:
        ValueError: a setting that means none.
    """
    if coordinates == "family":
        return native
    if coordinates == "grid":
        return None
    if isinstance(coordinates, Mapping):
        return Coordinates.from_json(coordinates)
    raise ValueError(f"coordinates are family, grid or what method.json holds; got {coordinates!r}")
