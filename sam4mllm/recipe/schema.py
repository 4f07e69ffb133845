"""Recipe and its sections: every setting with its type, its default and its description.

Attribute docstrings become the descriptions of the fields. The section `data` is defined in `sam4mllm.data.entry`.
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
from sam4mllm.utils.settings import ExpandedPath, Section

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Packing = Literal["turns", "isolated"]
LocationPrompt = Literal["box", "embedding", "both"]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
LossWeight = Annotated[float, Field(ge=0, allow_inf_nan=False)]

BOTH_REMOVED = (
    "both was removed, because checking PPG's points by yes/no questions did not improve masks; use method: ppg"
)
"""The message for the method `both` of earlier versions, in a recipe or in method.json."""


_OF_LOCATIONS = (
    "prompt",
    "sam_tokens",
    "box_weight",
    "giou_weight",
    "cycle",
    "cycle_weight",
    "mask_weight",
    "train_mask_decoder",
)
"""The settings of the method pix2emb alone."""


class ModelSection(Section):
    """The multimodal LLM that is fine-tuned."""

    base: str
    """A Hub id, a folder, "shapes" for the embedded model, or "shapes-locations" for it with location tokens."""
    dtype: Dtype = "auto"
    """The dtype of the weights; "auto" is the dtype they are stored in."""
    quantization: Literal["4bit", "8bit"] | None = None
    """How bitsandbytes quantizes the frozen weights, or null."""
    quantize_vision: bool = False
    """Whether quantization includes the vision tower; projectors and the output layer are never quantized."""
    attn_implementation: str | None = None
    """transformers' `attn_implementation`, or null for its default."""
    min_pixels: PositiveInt | None = None
    """The smallest area of a resized image in pixels; null for the checkpoint's. Not every family has it."""
    max_pixels: PositiveInt | None = None
    """The largest area of a resized image in pixels; null for the checkpoint's. Not every family has it."""
    longest_side: PositiveInt | None = None
    """The longest side of a resized image in pixels, for SmolVLM and Idefics3; null for the checkpoint's."""
    tune_projector: bool = False
    """Whether the projector from the vision tower to the language model is fully fine-tuned beside LoRA, as in the
    paper."""

    @property
    def image_size(self) -> dict[str, int]:
        """The limits of the image size that are set, in pixels, by their names."""
        return self.model_dump(include={"min_pixels", "max_pixels", "longest_side"}, exclude_none=True)

    @pydantic.model_validator(mode="after")
    def _sizes_in_order(self) -> ModelSection:
        if self.min_pixels is not None and self.max_pixels is not None and self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels: {self.min_pixels} is above max_pixels, {self.max_pixels}; lower it")
        return self


class SegmenterSection(Section):
    """The model that turns prompts into masks."""

    checkpoint: str
    """A segment_anything `.pth`, a folder or Hub id of transformers' SAM family, or "shapes" for the embedded model."""
    dtype: Dtype = "float32"
    """The dtype of the computation; "auto" is bfloat16 on a GPU that supports it, else float32."""


class MethodSection(Section):
    """The method: which questions the model is trained on and asked."""

    name: Literal["ppg", "pqpp", "pix2emb"] = "ppg"
    """ppg: prompt-point generation, the box and the points in one answer. pqpp: the box, then yes or no for points in
    it. pix2emb: a location token per object, whose hidden state is decoded to the box and to prompt tokens for SAM.
    `method: pqpp` is the short form."""
    positives: NonNegativeInt = 2
    """ppg: positive points (on the object) per object."""
    negatives: NonNegativeInt = 1
    """ppg: negative points (off the object) per object."""
    form: Literal["list", "single"] = "list"
    """pqpp: several points per question, or one."""
    asked: Literal["grid", "pattern"] = "grid"
    """pqpp: the points of a box that are asked about: grid, 5 x 5; pattern, 15 in five rows, shifted in turn."""
    box_jitter: Annotated[float, Field(ge=0, lt=0.5, allow_inf_nan=False)] = 0.1
    """pqpp: the jitter of the training boxes' sides, as a share of the box's side."""
    yes_above: Share = 0.75
    """pqpp: a point is positive where P(yes) is above this."""
    no_above: Share = 0.9
    """pqpp: a point is negative where P(no) is above this."""
    coordinates: Literal["family", "grid"] = "family"
    """family: coordinates in the form of the model family's own grounding data, or on the grid if the family has none.
    grid: always on the grid. The resulting form is saved in the run folder's method.json."""
    grid: Annotated[int, Field(ge=2, le=10000)] = 1000
    """Bins of the coordinate grid on each axis, where the family's own coordinates are not used."""
    box_loss: LossWeight = 0.0
    """ppg: the weight of a box regression loss at the token that opens each box, in training only; 0 for none."""
    prompt: LocationPrompt = "both"
    """pix2emb: what SAM is prompted with: the decoded box, the tokens projected from the location's state, or both."""
    sam_tokens: Annotated[int, Field(ge=1, le=16)] = 1
    """pix2emb: prompt tokens for SAM per location."""
    box_weight: LossWeight = 1.0
    """pix2emb: the weight of the box loss, 2 x L1 + giou_weight x (1 - GIoU), beside that of the text, which is 1."""
    giou_weight: LossWeight = 0.8
    """pix2emb: the weight of 1 - GIoU within the box loss."""
    cycle: bool = True
    """pix2emb: whether the box decoder and the location encoder are trained to invert each other."""
    cycle_weight: LossWeight = 1.0
    """pix2emb: the weight of the two cycle losses."""
    mask_weight: LossWeight = 1.0
    """pix2emb: the weight of the mask loss, binary cross-entropy and dice; there is none for prompt: box."""
    train_mask_decoder: bool = False
    """pix2emb: whether SAM's mask decoder is trained by the mask loss; otherwise SAM is frozen."""
    phrases: PositiveInt = 5
    """The maximum number of phrases in one training conversation; at inference each phrase has a separate one."""
    packing: Packing = "isolated"
    """How a training conversation holds its phrases. isolated: they share the tokens of the image and do not see each
    other, as at inference. turns: one after another, and later phrases see earlier ones."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        section = {"name": given} if isinstance(given, str) else given
        if isinstance(section, dict) and section.get("name") == "both":
            raise ValueError(f"name: {BOTH_REMOVED}")
        return section

    @pydantic.model_validator(mode="after")
    def _trains_what_prompts(self) -> MethodSection:
        if self.name != "ppg" and self.box_loss:
            raise ValueError(f"box_loss: is for ppg, whose boxes are text, not for {self.name}; remove it")
        if self.name == "pix2emb" and self.train_mask_decoder and (self.prompt == "box" or not self.mask_weight):
            raise ValueError(
                "train_mask_decoder: the mask decoder is trained by the mask loss, which needs prompt: embedding or "
                "both and a mask_weight above 0; set them, or train_mask_decoder: false"
            )
        return self


class TargetsSection(Section):
    """How the points of the training targets are chosen."""

    groups: PositiveInt = 64
    """Groups of points sampled per object (K of the paper)."""
    keep: PositiveInt = 1
    """Groups kept as targets per object (k of the paper)."""
    judge: Literal["exact", "jittered", "none"] = "exact"
    """The box with which SAM scores a group: the true one (the paper), jittered boxes (mean IoU), or no box."""
    choose: Literal["top", "random"] = "top"
    """top: the groups whose masks have the highest IoU with the true mask. random: the first ones sampled, for
    ablations."""
    jitter: Share = 0.1
    """The jitter of a jittered box's sides, as a share of the box's side."""
    jitter_boxes: PositiveInt = 3
    """Jittered boxes per group."""
    widen: Share = 0.1
    """Negative points are sampled in the true box widened on each side by this share of its width and height."""
    min_iou: Share = 0.0
    """Objects whose best group is below this IoU have no training target."""
    batch_size: PositiveInt = 256
    """Prompts that the segmenter decodes at once; it affects memory and speed only."""
    store: ExpandedPath = Path("runs/targets")
    """The folder of the target stores. Runs can share it, because a store's key covers all that its content depends
    on."""

    @pydantic.model_validator(mode="after")
    def _enough_groups(self) -> TargetsSection:
        if self.keep > self.groups:
            raise ValueError(f"keep: cannot keep {self.keep} of {self.groups} groups; lower keep or raise groups")
        if self.judge == "jittered" and self.jitter == 0:
            raise ValueError("jitter: is 0, so judge: jittered would use the exact box; raise it")
        return self


class ValidateSection(Section):
    """How training is validated: by generating, segmenting and scoring on held-out samples."""

    every_steps: NonNegativeInt = 500
    """Optimizer steps between two validations; 0 for one at the end only."""
    samples: PositiveInt = 256
    """Samples of `data.validation` that are used, the same ones in every validation."""
    batch_size: PositiveInt = 16
    """Questions per batch."""


class TrainingSection(Section):
    """Keys of transformers.TrainingArguments, and how the run is validated."""

    model_config = ConfigDict(extra="allow")

    # "validate" is a method of pydantic's, so the attribute has another name than the key.
    validation: ValidateSection = Field(default_factory=ValidateSection, alias="validate")
    """When and on how many samples the run is validated (the key is `validate`)."""

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments for transformers.TrainingArguments, in the recipe's order."""
        return dict(self.model_extra or {})


class GenerationSection(Section):
    """How answers are generated."""

    batch_size: PositiveInt = 16
    """Questions per batch; it affects memory and speed only."""
    max_new_tokens: PositiveInt = 512
    """The maximum length of an answer in tokens. An object with three points takes about 50 if each digit is a
    token."""
    constrained: bool = True
    """Whether only tokens are generated that can become an answer. No answer is malformed then unless it is cut off at
    the limit of tokens."""


class Recipe(Section):
    """All settings of a run."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """The seed of PPG's point groups, the adapter's initial weights and the order of the data; NumPy's are below 2^32.
    """
    output: ExpandedPath
    """The run folder."""
    model: ModelSection
    """The multimodal LLM that is fine-tuned."""
    segmenter: SegmenterSection
    """The model that turns prompts into masks."""
    data: DataSection
    """The data sets for training and for validation."""
    method: MethodSection = MethodSection()
    """The method: which questions the model is trained on and asked."""
    targets: TargetsSection = TargetsSection()
    """How the points of the training targets are chosen."""
    lora: dict[str, Any] = Field(default_factory=dict)
    """Keys of peft.LoraConfig."""
    training: TrainingSection = TrainingSection()
    """Keys of transformers.TrainingArguments, and `validate`."""
    generation: GenerationSection = GenerationSection()
    """How answers are generated."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _one_method(cls, given: Any) -> Any:
        """Refuse `methods`, the list of methods of earlier versions."""
        if isinstance(given, dict) and "methods" in given:
            name = "pqpp" if given["methods"] == ["pqpp"] else "ppg"
            raise ValueError(f"methods: was removed, because a model is trained on one method; use method: {name}")
        return given

    def hash(self) -> str:
        """Return the SHA-256 of the settings in hex; the order of keys and the form of numbers do not matter."""
        plain = self._plain()
        # Settings that were added for locations and have no effect on a recipe leave its hash as it was before them.
        if self.method.name != "pix2emb":
            unused = _OF_LOCATIONS if self.method.box_loss else (*_OF_LOCATIONS, "box_loss")
            plain["method"] = {key: value for key, value in plain["method"].items() if key not in unused}
        canonical = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode("utf-8")).hexdigest()

    def to_yaml(self) -> str:
        """Return all settings, defaults included, as YAML that `load_recipe` reads back to an equal recipe."""
        return write_yaml(self._plain())

    def _plain(self) -> dict[str, Any]:
        return self.model_dump(mode="json", by_alias=True)
