"""Majority vote: several answers to a phrase, drawn at random, become one (test-time scaling, as in StAR).

1. Each answer has a weight, its score (`calibration.scores_of`); malformed answers have no vote.
2. The answer is "no object" if these answers have more than half of the weight.
3. Otherwise the objects of the other answers are matched by the IoU of their masks, at most one object of each answer.
   Objects that answers with more than half of the weight have are kept, or the one with the most weight.
4. The mask of an object has the pixels that more than half of the weight of its matched masks has; its box and points
   are those of the matched mask with the highest IoU with it.

The score of an object, and of "no object", is the share of the weight of all votes that agree on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from sam4mllm.errors import ModelError
from sam4mllm.methods.base import Answer, Method, Question
from sam4mllm.mllm.engine import Engine, Reply, Sampling, SamplingEngine
from sam4mllm.pipeline.result import Result
from sam4mllm.prompts.conversation import Conversation

SAME_OBJECT_IOU = 0.5
"""Masks of two answers are of the same object above this IoU, the one at which a calibrated object is correct."""

_LEAST_WEIGHT = 1e-3
"""The weight of an answer with a lower score, so that answers of which none is probable are counted."""


def check_votes(method: Method, engine: Engine) -> None:
    """Check that several answers of `method` can be drawn from `engine` and voted on.

    Raises:
        ModelError: The method asks several questions about a phrase or does not answer in plain text, or the engine
            does not draw answers.
    """
    if method.needs_probabilities:
        raise ModelError(f"votes are for methods with one question per phrase, not {method.name}; leave out --votes")
    if method.needs_locations:
        raise ModelError(
            f"votes are for methods whose answers are plain text, and those of {method.name} differ in hidden states; "
            "leave out --votes"
        )
    _sampling_engine(engine)


def ask_votes(
    method: Method, engine: Engine, questions: Sequence[Question], max_new_tokens: int, sampling: Sampling
) -> list[list[Answer]]:
    """Return `sampling.samples` answers to each question, in their order.

    Raises:
        ModelError: See `check_votes`.
    """
    count = sampling.samples
    repeated = [question for question in questions for _ in range(count)]
    answers = method.ask(_RepeatedQuestions(_sampling_engine(engine), sampling), repeated, max_new_tokens)
    return [answers[start : start + count] for start in range(0, len(answers), count)]


def segment_votes(
    segment: Callable[[Sequence[int], Sequence[Answer]], list[Result]],
    image_of: Sequence[int],
    drawn: Sequence[Sequence[Answer]],
) -> list[Result]:
    """Segment the answers that were drawn for each phrase, equal ones once, and merge the results of each phrase.

    `segment` returns the results of answers, given the index of each answer's image; `image_of` is that of each phrase.
    """
    keys = [[(phrase, answer.status, answer.text) for answer in answers] for phrase, answers in enumerate(drawn)]
    distinct = {
        key: answer for own, answers in zip(keys, drawn, strict=True) for key, answer in zip(own, answers, strict=True)
    }
    segmented = segment([image_of[phrase] for phrase, _, _ in distinct], list(distinct.values()))
    results = dict(zip(distinct, segmented, strict=True))
    return [merge_votes([results[key] for key in own]) for own in keys]


def _sampling_engine(engine: Engine) -> SamplingEngine:
    if not isinstance(engine, SamplingEngine):
        raise ModelError(
            f"votes are answers that the model in this process draws at random, and {type(engine).__name__} does not "
            "draw; leave out --votes, or --server"
        )
    return engine


class _RepeatedQuestions:
    """An engine that answers each group of `sampling.samples` equal, consecutive conversations by as many draws."""

    def __init__(self, engine: SamplingEngine, sampling: Sampling) -> None:
        self._engine = engine
        self._sampling = sampling

    def generate(self, conversations: Sequence[Conversation], max_new_tokens: int) -> list[Reply]:
        distinct = conversations[:: self._sampling.samples]
        drawn = self._engine.generate_samples(distinct, max_new_tokens, self._sampling)
        return [reply for replies in drawn for reply in replies]


@dataclass(slots=True)
class _Candidate:
    """An object of some answers: its masks, the (result, object) that each is of, and their weights."""

    masks: list[torch.Tensor] = field(default_factory=list)
    origins: list[tuple[int, int]] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    @property
    def weight(self) -> float:
        return sum(self.weights)

    def add(self, mask: torch.Tensor, origin: tuple[int, int], weight: float) -> None:
        self.masks.append(mask)
        self.origins.append(origin)
        self.weights.append(weight)

    def merged(self) -> torch.Tensor:
        """Return the pixels (H, W), bool, that more than half of the weight of the masks has."""
        votes = torch.zeros(self.masks[0].shape, dtype=torch.float32, device=self.masks[0].device)
        for mask, weight in zip(self.masks, self.weights, strict=True):
            votes += weight * mask
        return votes > self.weight / 2


def merge_votes(results: Sequence[Result]) -> Result:
    """Merge the results of the answers that were drawn for one phrase; see above.

    `answer` is the text of the best answer: the one whose mask has the highest IoU with the merged one, or the "no
    object" answer of the highest weight. If all are malformed, the result is the first of them.

    Raises:
        ValueError: No results.
    """
    if not results:
        raise ValueError("a vote needs at least one result; got none")
    # 1. The weights.
    weights = {index: _weight(result) for index, result in enumerate(results) if result.status != "malformed"}
    if not weights:
        return results[0]
    total = sum(weights.values())

    # 2. "No object", or not.
    absent = {index: weight for index, weight in weights.items() if results[index].status == "no_object"}
    if sum(absent.values()) > total / 2 or len(absent) == len(weights):
        best = results[max(absent, key=lambda index: absent[index])]
        return replace(best, score=sum(absent.values()) / total)

    # 3. and 4. The objects.
    present = {index: weight for index, weight in weights.items() if index not in absent}
    candidates = _match(results, present)
    half = sum(present.values()) / 2
    kept = [each for each in candidates if each.weight > half] or [max(candidates, key=lambda each: each.weight)]
    return _merge_objects(results, present, kept, total)


def _match(results: Sequence[Result], weights: dict[int, float]) -> list[_Candidate]:
    """Match the objects of the answers, beginning with the answer of the highest weight.

    Each object of an answer joins the candidate with whose first mask its IoU is highest, if that is above
    `SAME_OBJECT_IOU`, and is a new candidate otherwise.
    """
    candidates: list[_Candidate] = []
    for index in sorted(weights, key=lambda index: -weights[index]):
        masks = list(results[index].masks)
        # Pairs with the highest IoU are matched first.
        pairs = sorted(_pairs(masks, candidates), key=lambda pair: -pair[0])
        chosen: dict[int, int] = {}
        for iou, number, candidate in pairs:
            if iou > SAME_OBJECT_IOU and number not in chosen and candidate not in chosen.values():
                chosen[number] = candidate
        for number, mask in enumerate(masks):
            if number not in chosen:
                candidates.append(_Candidate())
            candidates[chosen.get(number, -1)].add(mask, (index, number), weights[index])
    return candidates


def _pairs(masks: Sequence[torch.Tensor], candidates: Sequence[_Candidate]) -> Iterator[tuple[float, int, int]]:
    for number, mask in enumerate(masks):
        for index, candidate in enumerate(candidates):
            yield _iou(mask, candidate.masks[0]), number, index


def _merge_objects(
    results: Sequence[Result], weights: dict[int, float], kept: Sequence[_Candidate], total: float
) -> Result:
    """Return the result with the objects of `kept`; `total` is the weight of all votes."""
    merged = [candidate.merged() for candidate in kept]
    # A pixel-wise majority may be empty, where the masks of few answers share no pixel.
    merged = [mask if mask.any() else each.masks[0] for mask, each in zip(merged, kept, strict=True)]
    masks = torch.stack(merged)
    union = masks.any(dim=0)
    best = results[max(weights, key=lambda index: (_iou(results[index].mask, union), weights[index]))]
    origins = [
        max(zip(each.masks, each.origins, strict=True), key=lambda pair: _iou(pair[0], mask))[1]
        for each, mask in zip(kept, merged, strict=True)
    ]
    scores = [each.weight / total for each in kept]
    return Result(
        masks=masks,
        prompts=[results[index].prompts[number] for index, number in origins],
        scores=masks.new_tensor(scores, dtype=torch.float32),
        status="ok",
        answer=best.answer,
        confidence=tuple(results[index].confidence[number] for index, number in origins),
        score=min(scores),
    )


def _weight(result: Result) -> float:
    """Return the weight of an answer: its score, or 1 where the engine returns no probabilities to compute it from."""
    return max(1.0 if result.score is None else result.score, _LEAST_WEIGHT)


def _iou(first: torch.Tensor, second: torch.Tensor) -> float:
    """Return the IoU of two masks (H, W); 0 if both are empty."""
    union = int((first | second).sum())
    return int((first & second).sum()) / union if union else 0.0
