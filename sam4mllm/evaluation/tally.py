"""The scores and counts of a split, collected prediction by prediction: each is scored and dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import overload

from sam4mllm.data.masks import Rle, decode
from sam4mllm.data.predictions import PredictionLine, is_cut_off
from sam4mllm.data.sample import Sample
from sam4mllm.errors import PredictionsError
from sam4mllm.evaluation.areas import areas_of, correct_rles, mergeable
from sam4mllm.evaluation.metrics import CORRECT_IOU, Mask, SentenceScore
from sam4mllm.evaluation.points import PointTally
from sam4mllm.evaluation.protocols import EvalProtocol

_IDS_IN_A_MESSAGE = 3


@dataclass(slots=True)
class Tally:
    """The counts and scores that are collected while predictions are read; `boxes_correct` is for Acc@0.5."""

    rules: EvalProtocol
    min_pixels: int
    samples: Mapping[str, Sample]
    scored: dict[str, SentenceScore] = field(default_factory=dict)
    correct: dict[str, tuple[bool, ...]] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    malformed: int = 0
    cut_off: int = 0
    errors: int = 0
    boxes_correct: int = 0
    any_box: bool = False
    any_without_box: bool = False
    points: PointTally = field(default_factory=PointTally)

    def add(self, line: PredictionLine) -> None:
        """Score one prediction; unknown and repeated ids are collected for `refuse_bad_ids`."""
        sample = self.samples.get(line.id)
        if sample is None:
            self.unknown.append(line.id)
            return
        if line.id in self.scored:
            self.repeated.append(line.id)
            return
        predicted, (truth, ignored) = _predicted_rles(line, sample), annotated_rles(sample)
        areas = areas_of(predicted, truth, ignored)
        self.scored[line.id] = self.rules.score_sentence(areas, line.status == "no_object", self.min_pixels)
        if line.status == "ok":
            if len(predicted) == len(truth) == 1:
                self.correct[line.id] = (areas.overlap.iou > CORRECT_IOU,)
            else:
                self.correct[line.id] = correct_rles(predicted, truth, ignored)
            prompts, boxes = [item.prompt for item in line.objects], [item.box for item in sample.objects]
            self.points.add(prompts, boxes, _DecodedMasks(truth), sample.ignored())
        self.malformed += line.status == "malformed"
        self.cut_off += is_cut_off(line.status, line.error)
        self.errors += line.status == "error"
        if self.rules.has_boxes and line.status == "ok" and line.objects:
            self._add_box(line, sample)

    def _add_box(self, line: PredictionLine, sample: Sample) -> None:
        """Compare the first box alone, because the best of several would overestimate Acc@0.5."""
        prompt = line.objects[0].prompt
        if prompt is None or prompt.box is None:
            self.any_without_box = True
            return
        self.any_box = True
        self.boxes_correct += prompt.box.iou(sample.objects[0].box) > CORRECT_IOU

    @property
    def has_acc_50(self) -> bool:
        """Whether Acc@0.5 is defined: one object per phrase, and predictions that are not all without boxes."""
        one_object = all(len(sample.objects) == 1 for sample in self.samples.values())
        return self.rules.has_boxes and one_object and (self.any_box or not self.any_without_box)

    def refuse_bad_ids(self, split: str) -> None:
        """Raise a PredictionsError if there were unknown or repeated ids."""
        refuse_bad_ids(self.unknown, self.repeated, split)


class _DecodedMasks(Sequence[Mask]):
    """The masks (H, W) bool of RLEs, decoded when they are used: points are compared with those of matched objects."""

    def __init__(self, rles: Sequence[Rle]) -> None:
        self._rles = rles

    def __len__(self) -> int:
        return len(self._rles)

    @overload
    def __getitem__(self, index: int) -> Mask: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Mask]: ...

    def __getitem__(self, index: int | slice) -> Mask | Sequence[Mask]:
        if isinstance(index, slice):
            return _DecodedMasks(self._rles[index])
        rle = self._rles[index]
        return _decoded(rle["size"][0], rle["size"][1], rle["counts"])


# The sentences about one object are usually scored one after the other.
@lru_cache(maxsize=4)
def _decoded(height: int, width: int, counts: str) -> Mask:
    mask = decode(Rle(size=[height, width], counts=counts))
    mask.setflags(write=False)
    return mask


def annotated_rles(sample: Sample) -> tuple[list[Rle], Rle | None]:
    """Return the masks of a sample's objects and of its ignored pixels, for `areas_of`.

    Raises:
        DataError: Only a box is annotated for an object.
    """
    return [mergeable(item.require_rle()) for item in sample.objects], sample.ignore and mergeable(sample.ignore)


def _predicted_rles(line: PredictionLine, sample: Sample) -> list[Rle]:
    """Return the masks of the line's objects; none for the statuses "malformed" and "error"."""
    width, height = sample.size_wh
    for item in line.objects:
        if tuple(item.segmentation["size"]) != (height, width):
            raise PredictionsError(
                f"prediction {line.id}: a mask is {tuple(item.segmentation['size'])} (H, W), its image is "
                f"{(height, width)}; masks are scored at the original image's size"
            )
    return [] if line.status in ("malformed", "error") else [mergeable(item.segmentation) for item in line.objects]


def refuse_bad_ids(unknown: Sequence[str], repeated: Sequence[str], split: str) -> None:
    """Check that predictions of a split had no ids that are not queries of it, and no id twice.

    Raises:
        PredictionsError: There are such ids.
    """
    faults = []
    if unknown:
        faults.append(f"{len(unknown)} id(s) are not queries of {split} ({few_ids(unknown)})")
    if repeated:
        faults.append(f"{len(repeated)} id(s) occur twice ({few_ids(repeated)})")
    if faults:
        raise PredictionsError(
            f"predictions: {'; '.join(faults)}; expected one line per query, from this data set and split"
        )


def few_ids(ids: Sequence[str]) -> str:
    """Return the first ids and the number of the others, for a message."""
    more = f" and {len(ids) - _IDS_IN_A_MESSAGE} more" if len(ids) > _IDS_IN_A_MESSAGE else ""
    return ", ".join(ids[:_IDS_IN_A_MESSAGE]) + more
