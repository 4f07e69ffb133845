"""The method of a recipe, its coordinates settled: how the model's family writes places is asked of its processor.

This module loads no weights.
"""

from __future__ import annotations

from sam4mllm.methods.registry import Method, method_from_settings
from sam4mllm.recipe.schema import Recipe


def method_of(recipe: Recipe) -> Method:
    """How `recipe` teaches and asks its model.

    The base's config and processor are read where `method.coordinates` leaves the choice to the family.

    Raises:
        ModelError: they cannot be loaded.
        RecipeError: a limit in `model` that the family's processor does not have.
    """
    native = None
    if recipe.method.coordinates == "family":
        from sam4mllm.mllm.image_size import own_coordinates
        from sam4mllm.mllm.loading import load_processor

        processor, family = load_processor(recipe.model.base, recipe.model.image_size)
        native = own_coordinates(family.coordinates, processor)
    return method_from_settings(recipe.method.model_dump(), native)


def reads_targets(recipe: Recipe) -> bool:
    """Whether SAM's choice is part of what the recipe teaches: by its method, or as it decides where points win."""
    return recipe.targets.only_winning or method_from_settings(recipe.method.model_dump()).needs_targets
