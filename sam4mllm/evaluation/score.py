"""Score predictions against the annotations of a split, under an evaluation protocol.

Predictions are read one by one and in any order, and each is scored and dropped, so a file of any length needs the
memory of one answer. Every query of the split counts: one without a prediction, and one whose line has the status
"malformed" or "error", counts as an empty mask.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Unpack

from sam4mllm.data.entry import data_entry
from sam4mllm.data.predictions import PredictionLine, prediction_from_json, read_predictions
from sam4mllm.data.reading import read_with_masks
from sam4mllm.data.sample import Sample
from sam4mllm.errors import DataError
from sam4mllm.evaluation.areas import areas_of
from sam4mllm.evaluation.metrics import (
    SentenceScore,
    cumulative_iou,
    mean_iou,
    no_target_accuracy,
    precision_at,
    target_accuracy,
)
from sam4mllm.evaluation.protocols import EvalProtocol, protocol_for
from sam4mllm.evaluation.suite import DataOptions, is_comparable
from sam4mllm.evaluation.tally import Tally, annotated_rles, few_ids


@dataclass(frozen=True, slots=True)
class Scores:
    """The metrics of one split, as fractions from 0 to 1; None where a metric is not defined for the data set.

    `n` counts the queries, `missing` those without a prediction, `malformed` the predictions whose text could not be
    parsed, `cut_off` those of them that the limit of tokens cut off, `errors` those with the status "error". `acc_50`
    is the share of sentences whose first box has IoU > 0.5 with the annotated one. `points_on` to `points_kept` are
    described in `points.PointScores`. `comparable` is whether published results are on the same sentences under the
    same protocol.
    """

    dataset: str
    split: str
    protocol: str
    n: int
    missing: int
    malformed: int
    ciou: float | None
    giou: float | None
    n_acc: float | None
    t_acc: float | None
    pr_70: float | None
    pr_80: float | None
    pr_90: float | None
    acc_50: float | None
    points_on: float | None = None
    points_on_chance: float | None = None
    points_off: float | None = None
    points_off_chance: float | None = None
    positive_points: int = 0
    negative_points: int = 0
    points_kept: float | None = None
    cut_off: int = 0
    errors: int = 0
    comparable: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return what `score --json` writes: all but `errors`, which the predictions hold, and `comparable`."""
        return {name: value for name, value in asdict(self).items() if name not in ("errors", "comparable")}


@dataclass(frozen=True, slots=True)
class ScoredPredictions:
    """The metrics of a split, and the score of each sentence by id, in the order of the split.

    `correct` is, for each prediction with the status "ok", which of its objects have IoU > 0.5 with an annotated
    object, matched one to one.
    """

    scores: Scores
    by_id: dict[str, SentenceScore]
    correct: dict[str, tuple[bool, ...]]


def score(
    predictions: str | Path | Iterable[PredictionLine | Mapping[str, Any]],
    *,
    dataset: str,
    root: str | Path | None = None,
    split: str | None = None,
    protocol: str | None = None,
    min_pixels: int = 1,
    **options: Unpack[DataOptions],
) -> Scores:
    """Score predictions, from this or any other program, on a split of a data set.

    Args:
        predictions: A predictions.jsonl, or its lines as `PredictionLine` or as JSON objects; one per query, in any
            order. Only `id`, `status` and `objects[].segmentation` are needed.
        dataset: The data set's name, such as "refcoco", or "jsonl", "coco" or "hub" for custom data.
        root: The folder of a published data set.
        split: The name of its split.
        protocol: "refcoco", "grefcoco" or "reasonseg"; None for the data set's own.
        min_pixels: An answer whose mask has fewer pixels counts as "no target".
        options: The other arguments of `read_dataset`, such as `path` in place of `root` for custom data.

    Raises:
        PredictionsError: Predictions cannot be read, ids are unknown or repeated, or masks have another size than their
            image.
        DataError: The data set cannot be read, or the protocol is unknown or does not fit the data set.

    Examples:
        >>> import json, tempfile
        >>> from sam4mllm.synthetic.writer import write_dataset
        >>> root = Path(tempfile.mkdtemp(), "data")
        >>> write_dataset(root, scenes=1, held_out=2)
        >>> rle = json.loads((root / "refcoco/instances.json").read_text())["annotations"][0]["segmentation"]
        >>> prediction = {"id": "refcoco/train/1/1", "status": "ok", "objects": [{"segmentation": rle}]}
        >>> scores = score([prediction], dataset="refcoco", root=root, split="train")
        >>> scores.n - scores.missing, scores.malformed
        (1, 0)
    """
    entry = data_entry(dataset, root=root, split=split, **options)
    if isinstance(predictions, str | Path):
        lines = read_predictions(Path(predictions))
    else:
        lines = (line if isinstance(line, PredictionLine) else prediction_from_json(line) for line in predictions)
    samples, split = read_with_masks(entry), entry.split_name
    scores = score_predictions(lines, samples, dataset=dataset, split=split, protocol=protocol, min_pixels=min_pixels)
    return replace(scores, comparable=is_comparable(entry, samples, protocol))


def score_predictions(
    lines: Iterable[PredictionLine],
    samples: Sequence[Sample],
    *,
    dataset: str,
    split: str,
    protocol: str | None = None,
    min_pixels: int = 1,
) -> Scores:
    """Return the metrics of a split; arguments and errors as in `score_sentences`."""
    scored = score_sentences(lines, samples, dataset=dataset, split=split, protocol=protocol, min_pixels=min_pixels)
    return scored.scores


def score_sentences(
    lines: Iterable[PredictionLine],
    samples: Sequence[Sample],
    *,
    dataset: str,
    split: str,
    protocol: str | None = None,
    min_pixels: int = 1,
) -> ScoredPredictions:
    """Score every sentence of a split, and sum the sentences up to metrics.

    Args:
        lines: One prediction per query, in any order; read once.
        samples: Every query of the split with its annotation.
        dataset, split: Their names; without a `protocol`, the data set's own is used.
        protocol, min_pixels: As in `score`.

    Raises:
        PredictionsError: Ids without a query, repeated ids, or masks not of their image's size.
        DataError: No samples; an unknown protocol; under `refcoco`, a sample without a target.
    """
    rules = checked_protocol(samples, dataset=dataset, split=split, protocol=protocol)
    tally = Tally(rules, min_pixels, {sample.id: sample for sample in samples})
    for line in lines:
        tally.add(line)
    tally.refuse_bad_ids(f"{dataset} {split}")
    missing = [sample for sample in samples if sample.id not in tally.scored]
    for sample in missing:
        areas = areas_of([], *annotated_rles(sample))
        tally.scored[sample.id] = rules.score_sentence(areas, False, min_pixels)
    by_id = {sample.id: tally.scored[sample.id] for sample in samples}
    scores = _metrics(list(by_id.values()), tally, dataset, split, len(missing))
    return ScoredPredictions(scores, by_id, tally.correct)


def checked_protocol(
    samples: Sequence[Sample], *, dataset: str, split: str, protocol: str | None = None
) -> EvalProtocol:
    """Return the protocol that the samples are scored under.

    Raises:
        DataError: No samples; an unknown protocol; under `refcoco`, a sample without a target.
    """
    rules = protocol_for(dataset, protocol)
    if not samples:
        raise DataError(f"{dataset} {split}: no samples to score")
    if rules.has_boxes and (empty := [sample.id for sample in samples if not sample.objects]):
        raise DataError(
            f"the protocol {rules.name} is not defined for a phrase without target ({few_ids(empty)}); use grefcoco"
        )
    return rules


def _metrics(sentences: Sequence[SentenceScore], tally: Tally, dataset: str, split: str, missing: int) -> Scores:
    rules = tally.rules
    measured = [sentence for sentence in sentences if sentence.targeted] if rules.has_no_target else sentences
    return Scores(
        dataset=dataset,
        split=split,
        protocol=rules.name,
        n=len(sentences),
        missing=missing,
        malformed=tally.malformed,
        cut_off=tally.cut_off,
        errors=tally.errors,
        ciou=cumulative_iou(sentences),
        giou=mean_iou(sentences),
        n_acc=no_target_accuracy(sentences) if rules.has_no_target else None,
        t_acc=target_accuracy(sentences) if rules.has_no_target else None,
        pr_70=precision_at(0.7, measured),
        pr_80=precision_at(0.8, measured),
        pr_90=precision_at(0.9, measured),
        acc_50=tally.boxes_correct / len(sentences) if tally.has_acc_50 else None,
        **asdict(tally.points.scores()),
    )
