"""Coordinates: how places are written in an answer, as values: on which grid, between which signs, in which digits.

A model was taught one such convention with its own grounding data, and a LoRA builds on what is there already. This
module knows no model and no answer; `grammar.py` writes and reads by it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sam4mllm.geometry import Frame, Grid, ResizedGrid

Signs = tuple[str, str]
"""What stands before and behind."""


@dataclass(frozen=True, slots=True)
class Coordinates:
    """A convention for places in text.

    `frame` is the grid, or the rule that gives one for an image's size. `box` and `point` enclose the numbers, which
    `separator` parts. `tags` stand around a whole box; they may be missing when an answer is read, because tokenizers
    that know them as special tokens drop them. `padded` numbers have zeros up to the digits of the grid's last bin.
    `far_edge` says that the number of bins itself may be read: models that were taught 0 to 1000 write it for the
    image's far edge, which belongs to the last bin.

    Raises:
        ValueError: a missing sign, or one that holds a digit.
    """

    frame: Frame = Grid()  # noqa: RUF009 - frozen, so one instance serves all
    box: Signs = ("[", "]")
    point: Signs = ("(", ")")
    tags: Signs = ("", "")
    separator: str = ","
    padded: bool = True
    far_edge: bool = False

    def __post_init__(self) -> None:
        signs = (*self.box, *self.point, self.separator)
        if not all(sign.strip() for sign in signs) or any(c.isdigit() for sign in (*signs, *self.tags) for c in sign):
            raise ValueError(f"boxes, points and numbers are told apart by signs without digits; got {self}")

    def to_json(self) -> dict[str, Any]:
        """All values as JSON gives them back, lists and no tuples; `from_json` reads them."""
        return dict(json.loads(json.dumps(dataclasses.asdict(self))))

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Coordinates:
        """The convention that `to_json` wrote.

        Raises:
            ValueError: values that are missing or of another kind.
        """
        try:
            values = dict(record)
            frame = values.pop("frame")
            values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
            if "bins_wh" in frame:
                return cls(Grid((frame["bins_wh"][0], frame["bins_wh"][1])), **values)
            return cls(ResizedGrid(**frame), **values)
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"coordinates are not what Coordinates.to_json writes: {error!r}") from error


PLAIN = Coordinates()
"""SAM4MLLM's own: 0 to 999, in three digits (its released settings)."""
