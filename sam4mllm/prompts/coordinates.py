"""Coordinates: the text format of boxes and points in an answer (grid, delimiters, digits).

A model family has learned one such format from its own grounding data, and LoRA training builds on it.
`AnswerGrammar` writes and parses answers in a given format.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sam4mllm.geometry import Frame, Grid, ResizedGrid

Delimiters = tuple[str, str]
"""An opening and a closing delimiter."""


@dataclass(frozen=True, slots=True)
class Coordinates:
    """A text format of coordinates.

    `frame` is the grid of integer coordinates, or the rule that derives one from an image's size. `box` and `point`
    are the delimiters around the numbers, `separator` is between them. `tags` enclose a box with its delimiters; they
    may be missing in a parsed answer, because tokenizers with special tokens for them drop them. `padded` numbers have
    leading zeros up to the digits of the grid's last bin. With `far_edge` the number of bins itself is parsed, too:
    models that were trained on 0 to 1000 write 1000 for the image's far edge, which belongs to the last bin. In the
    `axis_order` "yx" each corner and point has its y before its x.

    Raises:
        ValueError: A missing delimiter, one that holds a digit, or an unknown axis order.
    """

    frame: Frame = Grid()  # noqa: RUF009 - frozen, so one instance serves all
    box: Delimiters = ("[", "]")
    point: Delimiters = ("(", ")")
    tags: Delimiters = ("", "")
    separator: str = ","
    padded: bool = True
    far_edge: bool = False
    axis_order: Literal["xy", "yx"] = "xy"

    def __post_init__(self) -> None:
        required = (*self.box, *self.point, self.separator)
        if not all(text.strip() for text in required) or any(map(str.isdigit, "".join((*required, *self.tags)))):
            raise ValueError(f"boxes, points and numbers need delimiters without digits; got {self}")
        if self.axis_order not in ("xy", "yx"):
            raise ValueError(f"axis_order is 'xy' or 'yx'; got {self.axis_order!r}")

    @property
    def axes(self) -> tuple[int, int]:
        """The axes of the two numbers of a corner or point in their order: 0 for x, 1 for y."""
        return (0, 1) if self.axis_order == "xy" else (1, 0)

    def to_json(self) -> dict[str, Any]:
        """Return the values as JSON has them (lists, no tuples), for `from_json`; `axis_order` only if it is "yx"."""
        values = dict(json.loads(json.dumps(dataclasses.asdict(self))))
        if self.axis_order == "xy":
            # Run folders and jobs written before there was an axis order stay equal to new ones.
            del values["axis_order"]
        return values

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Coordinates:
        """Return the format that `to_json` wrote.

        Raises:
            ValueError: Missing values, or values of another type.
        """
        try:
            values = dict(record)
            frame = values.pop("frame")
            values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
            if "bins_wh" in frame:
                return cls(Grid((frame["bins_wh"][0], frame["bins_wh"][1])), **values)
            return cls(ResizedGrid(**frame), **values)
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"the coordinates are not what Coordinates.to_json writes: {error!r}") from error


PLAIN = Coordinates()
"""The format of SAM4MLLM's released settings: 0 to 999 in three digits."""
