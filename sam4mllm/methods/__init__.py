"""The methods by name, and the one place that makes them from settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sam4mllm.chat.coordinates import Coordinates
from sam4mllm.errors import RecipeError
from sam4mllm.methods.base import Answer, Method, Question
from sam4mllm.methods.ppg import Ppg

METHODS: dict[str, Callable[..., Method]] = {Ppg.name: Ppg}

__all__ = ["METHODS", "Answer", "Method", "Question", "method_from_settings"]


def method_from_settings(settings: Mapping[str, Any], native: Coordinates | None = None) -> Method:
    """The method of the recipe's `method` section, or of `Method.settings()` read back from a file.

    `native` is how the model's family was taught to write places, None where it was not; `coordinates: family` means
    it. What `Method.settings()` holds is resolved already.

    Raises:
        RecipeError: an unknown method, or settings that it does not take.
    """
    options = {key: value for key, value in settings.items() if key != "name"}
    name = settings.get("name")
    if name not in METHODS:
        raise RecipeError(f"method {name!r} is unknown; the methods are: {', '.join(sorted(METHODS))}")
    try:
        return METHODS[name](**{**options, "coordinates": _resolved(options.get("coordinates", "grid"), native)})
    except (TypeError, ValueError) as error:
        raise RecipeError(f"method {name}: {error}") from error


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
