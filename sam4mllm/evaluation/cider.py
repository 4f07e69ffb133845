"""CIDEr-D: how much captions agree with reference captions in their n-grams, weighted by how rare these are.

Vedantam, Zitnick and Parikh (CVPR 2015, arXiv 1411.5726). The scores are those of COCO's caption evaluation
(pycocoevalcap):

- n-grams of 1 to 4 tokens are weighted by tf-idf. The document frequency of an n-gram is the number of items with a
  reference that contains it, at least 1; the number of documents is the number of items. So a score depends on all
  references of the split, and in a split of one item it is 0.
- The similarity of a caption and a reference is the cosine of their vectors, in which an n-gram of the caption counts
  at most as much as in the reference, times exp(-(difference of their lengths)^2 / (2 * 6^2)). The length is the number
  of bigrams.
- The score of an item is 10 times the mean over its references and over n = 1 ... 4; that of a split is the mean of its
  items.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sam4mllm.evaluation.ptb_tokens import caption_tokens

_LONGEST = 4
_SIGMA = 6.0
_SCALE = 10.0

_Ngram = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Vector:
    """The tf-idf weights of a caption's n-grams for each n, the lengths of these vectors, and its number of bigrams."""

    weights: tuple[dict[_Ngram, float], ...]
    norms: tuple[float, ...]
    bigrams: int


def cider_d(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Return the CIDEr-D of each caption, 0 to 10 (papers print 100 times the mean), given the references of each.

    Raises:
        ValueError: As many captions as lists of references are needed, and a reference in each list.

    Examples:
        >>> scores = cider_d(["a red ring", "a cat"], [["A red ring.", "the red ring"], ["the green star"]])
        >>> [round(score, 3) for score in scores]
        [5.396, 0.0]
    """
    if len(captions) != len(references) or not all(references):
        raise ValueError(f"each of {len(captions)} captions needs references; got {list(map(len, references))}")
    counts = [[_ngrams(text) for text in texts] for texts in references]
    frequency = Counter(ngram for texts in counts for ngram in {ngram for each in texts for ngram in each})
    documents = math.log(len(references)) if references else 0.0
    scores = []
    for caption, texts in zip(captions, counts, strict=True):
        vector = _vector(_ngrams(caption), frequency, documents)
        similarities = [_similarity(vector, _vector(each, frequency, documents)) for each in texts]
        scores.append(_SCALE * math.fsum(similarities) / len(similarities))
    return scores


def _ngrams(text: str) -> Counter[_Ngram]:
    words = caption_tokens(text)
    return Counter(
        tuple(words[start : start + n]) for n in range(1, _LONGEST + 1) for start in range(len(words) - n + 1)
    )


def _vector(counts: Counter[_Ngram], frequency: Counter[_Ngram], documents: float) -> _Vector:
    weights: tuple[dict[_Ngram, float], ...] = tuple({} for _ in range(_LONGEST))
    for ngram, count in counts.items():
        weights[len(ngram) - 1][ngram] = count * (documents - math.log(max(1, frequency[ngram])))
    norms = tuple(math.sqrt(math.fsum(weight**2 for weight in each.values())) for each in weights)
    return _Vector(weights, norms, sum(count for ngram, count in counts.items() if len(ngram) == 2))


def _similarity(caption: _Vector, reference: _Vector) -> float:
    """Return the mean over n of the clipped cosines, times the penalty of the lengths."""
    cosines = []
    for ours, theirs, norm, other in zip(
        caption.weights, reference.weights, caption.norms, reference.norms, strict=True
    ):
        product = math.fsum(
            min(weight, theirs.get(ngram, 0.0)) * theirs.get(ngram, 0.0) for ngram, weight in ours.items()
        )
        cosines.append(product / (norm * other) if norm and other else 0.0)
    penalty = math.exp(-((caption.bigrams - reference.bigrams) ** 2) / (2 * _SIGMA**2))
    return penalty * math.fsum(cosines) / _LONGEST
