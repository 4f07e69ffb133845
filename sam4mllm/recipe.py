"""Recipe: everything that decides a run, typed, from a YAML file and `key=value` overrides.

Unknown keys are refused with the nearest valid one, and all errors are told at once. `lora` and `training` hold peft's
and transformers' own keys, which `load_recipe` checks against the installed libraries. Relative paths are relative to
the working directory. This module opens no data set and loads no model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

from sam4mllm.errors import RecipeError
from sam4mllm.recipe_checks import library_problems, nearest, section_problems
from sam4mllm.yaml_text import read_yaml, write_yaml

DatasetName = Literal["refcoco", "refcoco+", "refcocog", "grefcoco", "reasonseg", "shapes"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Directory = Annotated[Path, AfterValidator(Path.expanduser)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class _Section(BaseModel):
    """A part of the recipe. Attribute docstrings become the descriptions of the fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())


class ModelSection(_Section):
    """The multimodal LLM that is tuned."""

    base: str
    """A model of the Hub, a folder, or "shapes" for the model that travels with the package."""
    dtype: Dtype = "auto"
    """The type of the weights; "auto" takes the one they are stored in."""
    quantization: Literal["4bit", "8bit"] | None = None
    """How the frozen weights are quantised by bitsandbytes, or null."""
    attn_implementation: str | None = None
    """transformers' `attn_implementation`, or null for its own choice."""


class SegmenterSection(_Section):
    """The model that turns prompts into masks."""

    checkpoint: str
    """A `.pth` file, or "shapes" for the model that travels with the package."""
    kind: Literal["segment_anything"] = "segment_anything"
    """The library whose checkpoint it is."""
    dtype: Dtype = "float32"
    """The type that it computes in; "auto" is bfloat16 on a GPU that has it, else float32."""


class DataEntry(_Section):
    """One split of one data set."""

    dataset: DatasetName
    """Which data set; it decides the format."""
    root: Directory
    """The folder that holds the data set's own folder."""
    split: str
    """The split's name in the data set: train, val, testA, ..."""
    split_by: str | None = None
    """Who split it, as the file of refs says in brackets (unc, umd, google); null for the data set's usual one."""
    images: Directory | None = None
    """The folder of the pictures, where it is not the usual one under `root`."""
    limit: PositiveInt | None = None
    """The first so many samples only; null for all."""


class DataSection(_Section):
    """What is learned from, and what the learning is watched on."""

    train: Annotated[list[DataEntry], Field(min_length=1)]
    """The splits to learn from, taken together."""
    validation: DataEntry | None = None
    """The held-out split that training is validated on; null for no validation."""

    @pydantic.model_validator(mode="after")
    def _held_out(self) -> DataSection:
        for index, entry in enumerate(self.train):
            held = self.validation
            if held and (entry.dataset, entry.root, entry.split) == (held.dataset, held.root, held.split):
                raise ValueError(f"validation: is trained on as well (data.train.{index}); choose a held-out split")
        return self


class MethodSection(_Section):
    """How the model is asked and taught."""

    name: Literal["ppg"] = "ppg"
    """ppg: prompt-point generation, the box and the points in one answer."""
    positives: NonNegativeInt = 2
    """Points on each object."""
    negatives: NonNegativeInt = 1
    """Points off each object."""
    grid: Annotated[int, Field(ge=2, le=10000)] = 1000
    """Bins of the coordinate grid, across and down alike."""
    phrases: PositiveInt = 5
    """Phrases of one picture that are taught in one conversation at most; each is asked in one of its own."""


class TargetsSection(_Section):
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
        return self


class ValidateSection(_Section):
    """How training is validated: by generating, segmenting and scoring on a held-out slice."""

    every_steps: NonNegativeInt = 500
    """Optimiser steps between two validations; 0 for one at the end only."""
    samples: PositiveInt = 256
    """Samples of `data.validation` that are used, the same ones each time."""
    batch_size: PositiveInt = 16
    """Questions answered at once."""


class TrainingSection(_Section):
    """transformers.TrainingArguments' own keys, and how the run is validated."""

    model_config = ConfigDict(extra="allow")

    # "validate" would hide a method of pydantic's, so the attribute is called otherwise than the key.
    validation: ValidateSection = Field(default_factory=ValidateSection, alias="validate")
    """When and on how much the run is validated (the key is `validate`)."""

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments for transformers.TrainingArguments, in the recipe's order."""
        return dict(self.model_extra or {})


class GenerationSection(_Section):
    """How answers are generated."""

    batch_size: PositiveInt = 16
    """Questions answered at once; it changes memory and speed only."""
    max_new_tokens: PositiveInt = 512
    """Tokens of the longest answer. An object with three points takes about 50 where every digit is a token."""


class Recipe(_Section):
    """Everything that decides a run."""

    seed: NonNegativeInt = 0
    """Seeds the point groups, the adapter's first weights and the order of the data."""
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

    def hash(self) -> str:
        """sha256, in hex, of the settings; the order of keys and the spelling of numbers in the file do not matter."""
        canonical = json.dumps(self._plain(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode("utf-8")).hexdigest()

    def to_yaml(self) -> str:
        """Every setting, defaults written out, as a file that `load_recipe` reads back to an equal recipe."""
        return write_yaml(self._plain())

    def _plain(self) -> dict[str, Any]:
        return self.model_dump(mode="json", by_alias=True)


def load_recipe(path_or_name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a YAML file, or of a shipped one by its name ("shapes_ppg"), with `overrides` put over it in order.

    An override is `dotted.key=value`, its value YAML; a number in the key indexes a list (`data.train.0.limit=100`).

    Raises:
        RecipeError: no such recipe, no YAML, or settings that cannot be used: one line for each.
    """
    source, text = _read(path_or_name)
    try:
        settings = read_yaml(text)
    except ValueError as error:
        raise RecipeError(f"{source}: is no YAML: {error}") from error
    if not isinstance(settings, dict):
        raise RecipeError(f"{source}: a recipe is a mapping of sections; got {type(settings).__name__}")
    problems = [problem for override in overrides if (problem := _override(settings, override))]
    recipe: Recipe | None = None
    try:
        # By way of JSON, because pydantic's strict mode then still takes text for a path.
        recipe = Recipe.model_validate_json(json.dumps(settings), strict=True)
    except pydantic.ValidationError as error:
        problems += section_problems(error, Recipe)
    problems += library_problems(settings)
    if problems or recipe is None:
        raise RecipeError("\n".join(f"{source}: {problem}" for problem in problems))
    return recipe


def shipped_recipes() -> dict[str, Traversable]:
    """The recipes that come with sam4mllm, by name: beside the package in a checkout, inside it when installed."""
    package = resources.files("sam4mllm")
    inside, beside = package / "recipes", Path(str(package)).parent / "recipes"
    folder: Traversable = inside if inside.is_dir() else beside
    if not folder.is_dir():
        return {}
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".yaml")), key=lambda file: file.name)
    return {file.name.removesuffix(".yaml"): file for file in files}


def _read(path_or_name: str | Path) -> tuple[str, str]:
    """Where the recipe was found, and its text."""
    path = Path(path_or_name).expanduser()
    file: Traversable = path
    if not path.is_file():
        shipped = shipped_recipes()
        if str(path_or_name) not in shipped:
            hint = nearest(path.stem, shipped, "shipped recipes")
            raise RecipeError(f"{path_or_name}: no such recipe file, and no shipped recipe of that name; {hint}")
        file = shipped[str(path_or_name)]
    try:
        return str(path_or_name), file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path_or_name}: cannot be read as UTF-8 text: {error}") from error


def _override(settings: dict[str, Any], override: str) -> str | None:
    """Put one `key=value` into `settings`; returns what is wrong with it, or None."""
    dotted, equals, text = override.partition("=")
    if not equals or not all(dotted.split(".")):
        return f"override {override!r}: write key=value, for instance training.max_steps=100"
    try:
        value = read_yaml(text)
    except ValueError as error:
        return f"override {override!r}: the value is no YAML: {error}"
    *parents, last = dotted.split(".")
    place: Any = settings
    for part in parents:
        if isinstance(place, list) and part.isdecimal() and int(part) < len(place):
            place = place[int(part)]
        elif isinstance(place, dict):
            if place.get(part) is None:
                place[part] = {}
            place = place[part]
        else:
            return f"override {override!r}: there is nothing at {part!r} to set {last!r} in"
    if isinstance(place, list) and last.isdecimal() and int(last) < len(place):
        place[int(last)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        return f"override {override!r}: there is nothing at {last!r} to set"
    return None
