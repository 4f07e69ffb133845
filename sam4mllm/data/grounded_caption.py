"""GroundedCaption: a caption of an image in which noun phrases are linked to the objects that they refer to."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from sam4mllm.data.sample import MaskObject


@dataclass(frozen=True, slots=True)
class Mention:
    """A noun phrase of a caption, `text[start:end]`, and the objects that it refers to: at least one."""

    start: int
    end: int
    objects: tuple[MaskObject, ...]


@dataclass(frozen=True, slots=True)
class GroundedCaption:
    """A caption of an image with its mentions of objects.

    id: unique in its data set, such as "flickr30k/train/1000092795/0".
    image: the path of the image.
    size_wh: the image's width and height in pixels, with its EXIF orientation applied.
    text: the caption.
    mentions: the noun phrases with annotated objects, in the order of the text; they do not overlap.
    source: the record that it was read from, for messages; equality ignores it.

    Raises:
        ValueError: A mention without characters or objects, out of order, or beyond the text.
    """

    id: str
    image: Path
    size_wh: tuple[int, int]
    text: str
    mentions: tuple[Mention, ...]
    source: str = field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        end = 0
        for mention in self.mentions:
            if not (end <= mention.start < mention.end <= len(self.text)) or not mention.objects:
                raise ValueError(
                    f"caption {self.id}: a mention is a part of the text behind the previous one, with an object; got "
                    f"{mention.start} to {mention.end} of {len(self.text)} characters, {len(mention.objects)} objects"
                )
            end = mention.end

    @property
    def where(self) -> str:
        """The record of this caption in messages: its source, or its id where the source is not known."""
        return self.source or f"caption {self.id}"

    @property
    def objects(self) -> tuple[MaskObject, ...]:
        """The objects of all mentions, in their order; an object of two mentions comes twice."""
        return tuple(each for mention in self.mentions for each in mention.objects)

    def phrase(self, mention: Mention) -> str:
        """Return the text of a mention."""
        return self.text[mention.start : mention.end]
