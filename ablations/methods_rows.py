"""Rows of the experiment "methods": the figures of one row for one seed, computed from its predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sam4mllm.data.predictions import PredictionLine
from sam4mllm.data.sample import Sample
from sam4mllm.evaluation.points import pooled_share
from sam4mllm.evaluation.score import Scores, score_predictions

Lines = dict[str, list[PredictionLine]]
"""The predictions of a row, by data set."""

ORACLE = "oracle"


@dataclass(frozen=True)
class Row:
    """The figures of one row for one seed: fractions from 0 to 1, but for `points_an_object` and `seconds_a_query`.

    Points are pooled over the data sets, and those figures are None if there are no such points. `malformed` is the
    share of all answers. `seconds_a_query` is None if the answers were not generated for this row alone, or if an
    earlier, interrupted start generated a part of them.
    """

    res_ciou: float | None
    res_acc_50: float | None
    gres_ciou: float | None
    gres_giou: float | None
    gres_n_acc: float | None
    reason_ciou: float | None
    reason_giou: float | None
    malformed: float
    points_an_object: float
    points_on: float | None
    points_on_chance: float | None
    points_off: float | None
    points_off_chance: float | None
    seconds_a_query: float | None


def measure(lines: Lines, samples: Mapping[str, Sequence[Sample]], seconds_a_query: float | None = None) -> Row:
    """Score the predictions of all data sets."""
    scores = {
        dataset: score_predictions(lines[dataset], each, dataset=dataset, split="held out")
        for dataset, each in samples.items()
    }
    objects = [item for each in lines.values() for line in each for item in line.objects]
    points = sum(len(item.prompt.points) for item in objects if item.prompt is not None)
    res, gres, reason = scores["refcoco"], scores["grefcoco"], scores["reasonseg"]
    return Row(
        res_ciou=res.ciou,
        res_acc_50=res.acc_50,
        gres_ciou=gres.ciou,
        gres_giou=gres.giou,
        gres_n_acc=gres.n_acc,
        reason_ciou=reason.ciou,
        reason_giou=reason.giou,
        malformed=sum(each.malformed for each in scores.values()) / sum(each.n for each in scores.values()),
        points_an_object=points / max(len(objects), 1),
        points_on=_pooled(scores, "points_on", "positive_points"),
        points_on_chance=_pooled(scores, "points_on_chance", "positive_points"),
        points_off=_pooled(scores, "points_off", "negative_points"),
        points_off_chance=_pooled(scores, "points_off_chance", "negative_points"),
        seconds_a_query=seconds_a_query,
    )


def _pooled(scores: Mapping[str, Scores], share: str, count: str) -> float | None:
    return pooled_share((getattr(each, share), getattr(each, count)) for each in scores.values())
