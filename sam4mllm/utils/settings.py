"""Section, the pydantic base class of a recipe's sections, and the field types that several sections share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

ExpandedPath = Annotated[Path, AfterValidator(Path.expanduser)]
"""The path of a file or folder, whose leading `~` is expanded."""


class Section(BaseModel):
    """A section of a recipe: immutable, without unknown keys, fields described by their attribute docstrings."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())
