"""The sections of a recipe: every setting with its type, its one default and its description.

Attribute docstrings become the descriptions of the fields. `data` stands in `recipe_data.py`. This module reads no
files; `recipe.py` does.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt

from sam4mllm.data.entry import DataSection
from sam4mllm.recipe.yaml_text import write_yaml
from sam4mllm.utils.settings import Directory, Section

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class ModelSection(Section):
    """The multimodal LLM that is tuned."""

    base: str
    """A model of the Hub, a folder, or "shapes" for the model that travels with the package."""
    dtype: Dtype = "auto"
    """The type of the weights; "auto" takes the one they are stored in."""
    quantization: Literal["4bit", "8bit"] | None = None
    """How the frozen weights are quantised by bitsandbytes, or null."""
    attn_implementation: str | None = None
    """transformers' `attn_implementation`, or null for its own choice."""
    min_pixels: PositiveInt | None = None
    """The least area that an image is brought to, in pixels; null for the checkpoint's. Not every family has it."""
    max_pixels: PositiveInt | None = None
    """The largest area that an image is brought to, in pixels; null for the checkpoint's. Not every family has it."""
    longest_side: PositiveInt | None = None
    """The length that an image's longest side is brought to, for SmolVLM and Idefics3; null for the checkpoint's."""
    tune_projector: bool = False
    """Whether the modules between the eyes and the language model are tuned whole beside LoRA, as in the paper."""

    @property
    def image_size(self) -> dict[str, int]:
        """The limits of an image's size that are set."""
        return self.model_dump(include={"min_pixels", "max_pixels", "longest_side"}, exclude_none=True)

    @pydantic.model_validator(mode="after")
    def _sizes_in_order(self) -> ModelSection:
        if self.min_pixels is not None and self.max_pixels is not None and self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels: {self.min_pixels} is above max_pixels, {self.max_pixels}; lower it")
        return self


class SegmenterSection(Section):
    """The model that turns prompts into masks."""

    checkpoint: str
    """A segment_anything `.pth`, a folder or Hub id of transformers' SAM family, or "shapes" for the packaged model."""
    dtype: Dtype = "float32"
    """The type that it computes in; "auto" is bfloat16 on a GPU that has it, else float32."""
    fallback_margin: Share | None = None
    """When asking: the mask of the box alone is taken where its predicted IoU is above that of the mask of box and
    points by more than this; null for never."""
    fallback_outside: Share | None = None
    """When asking: the mask of the box alone is taken where more than this share of the other mask's pixels lies
    outside the box; null for never."""


class MethodSection(Section):
    """How the model is asked and taught."""

    name: Literal["ppg", "pqpp", "both"] = "ppg"
    """ppg: prompt-point generation, the box and the points in one answer. pqpp: the box, then yes or no to points in
    it. both: both are taught; ppg is asked, and points that pqpp's question denies are dropped. `method: pqpp` and
    `methods: [ppg, pqpp]` say the same shorter."""
    positives: NonNegativeInt = 2
    """ppg: points on each object."""
    negatives: NonNegativeInt = 1
    """ppg: points off each object."""
    form: Literal["list", "single"] = "list"
    """pqpp: several points in one question, or one."""
    asked: Literal["grid", "pattern"] = "grid"
    """pqpp: where in a box points are asked about: 5 x 5, or 15 in five rows that are moved by turns."""
    box_jitter: Annotated[float, Field(ge=0, lt=0.5, allow_inf_nan=False)] = 0.1
    """pqpp: how far the sides of a box in which points are taught are off, as a share of the box's side."""
    yes_above: Share = 0.75
    """pqpp: a point is positive where P(yes) is above this."""
    no_above: Share = 0.9
    """pqpp: a point is negative where P(no) is above this."""
    coordinates: Literal["family", "grid"] = "family"
    """family: places as the model's family was taught to write them, and on the grid where it was not. grid: always
    on the grid. What came of it stands in the run folder's method.json."""
    grid: Annotated[int, Field(ge=2, le=10000)] = 1000
    """Bins of the coordinate grid, across and down alike, where the family's own coordinates are not used."""
    phrases: PositiveInt = 5
    """Phrases of one image that are taught in one conversation at most; each is asked in one of its own."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given


class TargetsSection(Section):
    """How the points to be taught are chosen."""

    groups: PositiveInt = 64
    """Groups of points drawn per object."""
    keep: PositiveInt = 1
    """Groups kept as targets per object."""
    judge: Literal["exact", "jittered", "none"] = "exact"
    """The box under which a group is judged: the true one (the paper), the mean over boxes a little off, or no box."""
    choose: Literal["top", "random"] = "top"
    """top: the groups whose masks have the highest IoU with the truth. random: the first ones drawn, for ablations."""
    jitter: Share = 0.1
    """How far a jittered box's sides are off, as a share of the box's side."""
    jitter_boxes: PositiveInt = 3
    """Jittered boxes per group."""
    widen: Share = 0.1
    """Negatives are drawn in the true box grown on each side by this share of its width and height."""
    min_iou: Share = 0.0
    """Objects whose best group stays below this IoU are not taught."""
    only_winning: bool = False
    """Whether points are taught only where they beat the box alone; other objects are taught by their box. It changes
    no store, so it can be switched on without preparing anew."""
    batch_size: PositiveInt = 256
    """Prompts that the segmenter decodes at once; it changes memory and speed only."""
    store: Directory = Path("runs/targets")
    """The folder of the target stores; each is keyed by all that decides it, so runs can share the folder."""

    @pydantic.model_validator(mode="after")
    def _enough_groups(self) -> TargetsSection:
        if self.keep > self.groups:
            raise ValueError(f"keep: cannot keep {self.keep} of {self.groups} groups; lower keep or raise groups")
        if self.judge == "jittered" and self.jitter == 0:
            raise ValueError("jitter: is 0, so judge: jittered would judge under the exact box; raise it")
        if self.only_winning and self.judge == "none":
            raise ValueError(
                "only_winning: compares points beside a box with the box alone, but judge: none judges them without "
                "one; use exact or jittered"
            )
        return self


class ValidateSection(Section):
    """How training is validated: by generating, segmenting and scoring on a held-out slice."""

    every_steps: NonNegativeInt = 500
    """Optimiser steps between two validations; 0 for one at the end only."""
    samples: PositiveInt = 256
    """Samples of `data.validation` that are used, the same ones each time."""
    batch_size: PositiveInt = 16
    """Questions answered at once."""


class TrainingSection(Section):
    """transformers.TrainingArguments' own keys, and how the run is validated."""

    model_config = ConfigDict(extra="allow")

    # "validate" would hide a method of pydantic's, so the attribute is called otherwise than the key.
    validation: ValidateSection = Field(default_factory=ValidateSection, alias="validate")
    """When and on how much the run is validated (the key is `validate`)."""

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments for transformers.TrainingArguments, in the recipe's order."""
        return dict(self.model_extra or {})


class GenerationSection(Section):
    """How answers are generated."""

    batch_size: PositiveInt = 16
    """Questions answered at once; it changes memory and speed only."""
    max_new_tokens: PositiveInt = 512
    """Tokens of the longest answer. An object with three points takes about 50 where every digit is a token."""


class Recipe(Section):
    """Everything that decides a run."""

    seed: NonNegativeInt = 0
    """Seeds PPG's point groups, the adapter's first weights and the order of the data."""
    output: Directory
    """The run folder."""
    model: ModelSection
    """The multimodal LLM that is tuned."""
    segmenter: SegmenterSection
    """The model that turns prompts into masks."""
    data: DataSection
    """What is learned from, and what the learning is watched on."""
    method: MethodSection = MethodSection()
    """How the model is asked and taught."""
    targets: TargetsSection = TargetsSection()
    """How the points to be taught are chosen."""
    lora: dict[str, Any] = Field(default_factory=dict)
    """peft.LoraConfig's own keys."""
    training: TrainingSection = TrainingSection()
    """transformers.TrainingArguments' own keys, and `validate`."""
    generation: GenerationSection = GenerationSection()
    """How answers are generated."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _several_methods(cls, given: Any) -> Any:
        """`methods: [ppg, pqpp]` is `method: both`."""
        if not isinstance(given, dict) or "methods" not in given:
            return given
        names = given["methods"]
        if "method" in given and "name" in (given["method"] if isinstance(given["method"], dict) else {"name": ""}):
            raise ValueError("methods: is given beside method.name; keep one of them")
        if not isinstance(names, list) or sorted(map(str, names)) not in (["ppg"], ["pqpp"], ["ppg", "pqpp"]):
            raise ValueError(f"methods: is [ppg], [pqpp] or [ppg, pqpp]; got {names!r}")
        name = str(names[0]) if len(names) == 1 else "both"
        rest = {key: value for key, value in given.items() if key != "methods"}
        return {**rest, "method": {**given.get("method", {}), "name": name}}

    def hash(self) -> str:
        """sha256, in hex, of the settings; the order of keys and the spelling of numbers in the file do not matter."""
        canonical = json.dumps(self._plain(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode("utf-8")).hexdigest()

    def to_yaml(self) -> str:
        """Every setting, defaults written out, as a file that `load_recipe` reads back to an equal recipe."""
        return write_yaml(self._plain())

    def _plain(self) -> dict[str, Any]:
        return self.model_dump(mode="json", by_alias=True)
