"""The recipe's section `data`: which data sets are trained on and held out, and where each of them is located.

Attribute docstrings become the descriptions of the fields.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic
from pydantic import AfterValidator, BeforeValidator, Field, PositiveInt
from pydantic_core import PydanticCustomError

from sam4mllm.data.registry import DATASETS, LOCATION_KEYS, DatasetRow, Task, suggestion
from sam4mllm.errors import ArgumentError
from sam4mllm.utils.settings import ExpandedPath, Section

ColumnName = Literal["image", "phrase", "phrases", "masks", "mask", "segmentation", "boxes", "bbox", "id"]


def _registered(name: str) -> str:
    if name not in DATASETS:
        raise PydanticCustomError("unknown_dataset", "unknown data set; {hint}", {"hint": suggestion(name)})
    return name


class DataEntry(Section):
    """One split of a published data set, or one file of custom data."""

    dataset: Annotated[str, AfterValidator(_registered)]
    """Name of the data set, which decides its format. jsonl, coco and hub are custom data, chat has no masks."""
    task: Task | None = None
    """What the data are trained on for: segment (phrase to objects), region-caption (region to phrase),
    grounded-caption (a caption with a location for each noun phrase) or chat; null for the data set's usual task."""
    root: ExpandedPath | None = None
    """The folder that holds the data set's own folder; for the published data sets."""
    split: str | None = None
    """The split's name in the data set: train, val, testA, ..."""
    split_by: str | None = None
    """The name in brackets of the file of refs (unc, umd, google); null for the data set's usual one."""
    path: ExpandedPath | None = None
    """The file of jsonl or chat; COCO's instances; for hub a folder or Parquet file of `datasets`, or a Hub id."""
    phrases: ExpandedPath | None = None
    """For coco: the file of phrases."""
    images: ExpandedPath | None = None
    """The folder of the images; null for the usual one."""
    columns: dict[ColumnName, str] | None = None
    """For hub: the data set's own names for these columns, where they differ."""
    limit: PositiveInt | None = None
    """The maximum number of samples, from the beginning; null for all."""
    skip_bad: bool = False
    """Whether bad records are left out, counted in a warning, instead of ending the stage."""
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """How often the set is used in one epoch of training: 2 is twice, 0.25 a quarter of it; null for once."""
    count: PositiveInt | None = None
    """The number of phrases (or dialogues) of the set in one epoch of training, in place of `weight`."""

    @pydantic.model_validator(mode="after")
    def _check_keys(self) -> DataEntry:
        row = self.row
        for key in row.needs:
            if getattr(self, key) is None:
                raise ValueError(f"{key}: is missing; {row.name} needs {' and '.join(row.needs)}")
        for key in LOCATION_KEYS:
            if getattr(self, key) is not None and key not in row.keys:
                raise ValueError(f"{key}: has no meaning for {row.name}, which takes {', '.join(row.keys)}")
        if self.task is not None and self.task not in row.tasks:
            raise ValueError(f"task: {row.name} has no data for {self.task}; its tasks are {', '.join(row.tasks)}")
        if self.weight is not None and self.count is not None:
            raise ValueError("count: is given beside weight; keep one of them")
        return self

    @property
    def row(self) -> DatasetRow:
        """The data set's row of the table."""
        return DATASETS[self.dataset]

    @property
    def used_task(self) -> Task:
        """The task that the data are trained on for: the given one, or the data set's usual one."""
        return self.task or self.row.usual_task

    @property
    def is_chat(self) -> bool:
        """Whether the data set holds dialogues, which have no masks to score against."""
        return self.row.kind == "chat"

    @property
    def name(self) -> str:
        """The entry's name in messages: "refcoco train", "jsonl mine/train.jsonl"; with the task if it is given."""
        return " ".join([self.dataset, self._source, *([f"({self.task})"] if self.task else [])])

    @property
    def _source(self) -> str:
        """The split, or the path of custom data."""
        if self.path is None:
            return self.split or "train"
        parts = [str(self.phrases or self.path), *([self.split] if self.split else [])]
        return " ".join(parts)

    @property
    def split_name(self) -> str:
        """The split, or the stem of custom data's file: part of the names of result folders and tables."""
        if self.path is None:
            return self.split or "train"
        return "-".join([(self.phrases or self.path).stem, *([self.split] if self.split else [])])

    @property
    def location(self) -> tuple[object, ...]:
        """A key that is equal for two entries if they name the same split or file."""
        return self.root and self.root.resolve(), *self.location_in_root

    @property
    def location_in_root(self) -> tuple[object, ...]:
        """As `location`, but without the root: the same split of a published data set in two folders is equal."""
        path, phrases = (each and each.resolve() for each in (self.path, self.phrases))
        return self.dataset, self.split, self.split_by or self.row.split_by, path, phrases


def data_entry(dataset: str, **settings: Any) -> DataEntry:
    """Build an entry from keyword arguments; None counts as not given.

    Raises:
        ArgumentError: The first invalid argument.
    """
    given = {key: value for key, value in settings.items() if value is not None}
    try:
        return DataEntry.model_validate({"dataset": dataset, **given})
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        # The messages of the entry's own validators begin with the key.
        if first["type"] == "value_error":
            key, _, problem = str(first["ctx"]["error"]).partition(": ")
            raise ArgumentError(key, problem) from None
        key, message = ".".join(map(str, first["loc"])), first["msg"]
        raise ArgumentError(key, f"{message[:1].lower()}{message[1:]}; got {first['input']!r:.80}") from None


class DataSection(Section):
    """The data sets that a recipe trains on, validates on and protects from leakage."""

    train: Annotated[list[DataEntry], Field(min_length=1)]
    """The training sets; together they are the mixture."""
    validation: DataEntry | None = None
    """The held-out split that training is validated on; null for no validation."""
    guard: Annotated[list[DataEntry] | None, BeforeValidator(lambda value: [] if value == "off" else value)] = None
    """The splits whose images are removed from the training sets. null: `validation` and all val and test splits, under
    their roots, of the data sets in the mixture; a list: `validation` and these splits; off: none."""

    @pydantic.field_serializer("guard")
    def _serialize_guard(self, guard: list[DataEntry] | None) -> Any:
        return "off" if guard == [] else guard

    @pydantic.model_validator(mode="after")
    def _check_held_out(self) -> DataSection:
        held_out = {"validation": self.validation}
        held_out |= {f"guard.{index}": entry for index, entry in enumerate(self.guard or ())}
        for key, entry in held_out.items():
            if entry is None:
                continue
            for index, trained in enumerate(self.train):
                if trained.location == entry.location:
                    raise ValueError(f"{key}: is trained on as well (data.train.{index}); choose a held-out split")
            if entry.weight is not None or entry.count is not None:
                raise ValueError(f"{key}: weight and count are for data.train; for fewer samples set limit")
            if entry.task is not None:
                raise ValueError(f"{key}: task is for data.train; remove it")
        if self.validation is not None and self.validation.row.protocol is None:
            raise ValueError(f"validation: {self.validation.dataset} has no masks to validate on; choose another set")
        return self
