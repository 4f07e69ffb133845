"""The recipe's section `data`: which sets are learned from and held out, and where each of them is.

Attribute docstrings become the descriptions of the fields. This module opens no data set.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic
from pydantic import BeforeValidator, Field, PositiveInt

from sam4mllm.utils.settings import Directory, Section

DatasetName = Literal[
    "refcoco",
    "refcoco+",
    "refcocog",
    "grefcoco",
    "reasonseg",
    "shapes",
    "jsonl",
    "coco",
    "hub",
    "chat",
    "reasonseg-explanations",
]
ColumnName = Literal["image", "phrase", "phrases", "masks", "mask", "segmentation", "boxes", "bbox", "id"]
OWN_SETS = ("jsonl", "coco", "hub")
"""The data sets that are data of one's own, named by their path."""
CHAT_SETS = ("chat", "reasonseg-explanations")
"""The data sets that hold chat: they are taught as they are, and there is no mask to score."""

USUAL_SPLIT_BY = {"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd", "grefcoco": "unc", "shapes": "unc"}
"""Who split a data set unless told, as its file of refs says in brackets."""

# The keys that say where a data set is: those it needs, and those that it takes besides.
_PLACE: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "reasonseg": (("root", "split"), ("images",)),
    "jsonl": (("path",), ("images",)),
    "coco": (("path", "phrases"), ("images",)),
    "hub": (("path",), ("split", "images", "columns")),
    "chat": (("path",), ("images",)),
    "reasonseg-explanations": (("root",), ("images",)),
}
_PLACE_OF_REFS = (("root", "split"), ("split_by", "images"))
_PLACE_KEYS = ("root", "split", "split_by", "path", "phrases", "images", "columns")


class DataEntry(Section):
    """One split of one data set, or one file of data of your own."""

    dataset: DatasetName
    """Which data set; it decides the format. jsonl, coco and hub are data of your own, chat is without masks."""
    root: Directory | None = None
    """The folder that holds the data set's own folder; for the published data sets."""
    split: str | None = None
    """The split's name in the data set: train, val, testA, ..."""
    split_by: str | None = None
    """Who split it, as the file of refs says in brackets (unc, umd, google); null for the data set's usual one."""
    path: Directory | None = None
    """The file of jsonl or chat; COCO's instances; for hub a folder made by save_to_disk, or an id of the Hub."""
    phrases: Directory | None = None
    """For coco: the file of phrases."""
    images: Directory | None = None
    """The folder of the images, where it is not the usual one."""
    columns: dict[ColumnName, str] | None = None
    """For hub: the data set's own column for each of these, where it has another name."""
    limit: PositiveInt | None = None
    """The first so many samples only; null for all."""
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """How often the set is gone through in one epoch of training: 2 is twice, 0.25 a quarter of it; null for once."""
    count: PositiveInt | None = None
    """So many phrases (or chats) of the set in one epoch of training, in place of `weight`."""

    @pydantic.model_validator(mode="after")
    def _place(self) -> DataEntry:
        needed, taken = _PLACE.get(self.dataset, _PLACE_OF_REFS)
        for key in needed:
            if getattr(self, key) is None:
                raise ValueError(f"{key}: is missing; {self.dataset} needs {' and '.join(needed)}")
        for key in _PLACE_KEYS:
            if getattr(self, key) is not None and key not in (*needed, *taken):
                raise ValueError(
                    f"{key}: has no meaning for {self.dataset}, which takes {', '.join((*needed, *taken))}"
                )
        if self.weight is not None and self.count is not None:
            raise ValueError("count: is given beside weight; keep one of them")
        return self

    @property
    def name(self) -> str:
        """What the entry is called in messages: "refcoco train", "jsonl mine/train.jsonl"."""
        return f"{self.dataset} {self.what}"

    @property
    def what(self) -> str:
        """The split, or the file of data of your own."""
        if self.path is None:
            return self.split or "train"
        parts = [str(self.phrases or self.path), *([self.split] if self.split else [])]
        return " ".join(parts)

    @property
    def split_name(self) -> str:
        """What figures are of, fit for a folder's name: the split, or the stem of the file of data of your own."""
        if self.path is None:
            return self.split or "train"
        return "-".join([(self.phrases or self.path).stem, *([self.split] if self.split else [])])

    @property
    def place(self) -> tuple[object, ...]:
        """What two entries share that name the same samples."""
        return self.root and self.root.resolve(), *self.place_in_root

    @property
    def place_in_root(self) -> tuple[object, ...]:
        """What two entries share that name the same samples, whatever folder a published data set lies in."""
        path, phrases = (each and each.resolve() for each in (self.path, self.phrases))
        return self.dataset, self.split, self.split_by or USUAL_SPLIT_BY.get(self.dataset), path, phrases


class DataSection(Section):
    """What is learned from, and what the learning is watched on."""

    train: Annotated[list[DataEntry], Field(min_length=1)]
    """The sets to learn from, taken together: the mixture."""
    validation: DataEntry | None = None
    """The held-out split that training is validated on; null for no validation."""
    guard: Annotated[list[DataEntry] | None, BeforeValidator(lambda value: [] if value == "off" else value)] = None
    """The splits none of whose images may be trained on; null for `validation` and all val and test splits, under
    their roots, of the data sets in the mixture; a list stands beside `validation`; off for no guard at all."""

    @pydantic.field_serializer("guard")
    def _written(self, guard: list[DataEntry] | None) -> Any:
        return "off" if guard == [] else guard

    @pydantic.model_validator(mode="after")
    def _held_out(self) -> DataSection:
        held = {"validation": self.validation}
        held |= {f"guard.{index}": entry for index, entry in enumerate(self.guard or ())}
        for key, entry in held.items():
            if entry is None:
                continue
            for index, trained in enumerate(self.train):
                if trained.place == entry.place:
                    raise ValueError(f"{key}: is trained on as well (data.train.{index}); choose a held-out split")
            if entry.weight is not None or entry.count is not None:
                raise ValueError(f"{key}: weight and count are for data.train; for fewer samples set limit")
        if self.validation is not None and self.validation.dataset in CHAT_SETS:
            raise ValueError(f"validation: {self.validation.dataset} has no masks to validate on; choose another set")
        return self
