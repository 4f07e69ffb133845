from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from sam4mllm.data.masks import encode
from sam4mllm.data.sample import MaskObject, Sample
from sam4mllm.errors import DataError
from sam4mllm.geometry import Box, SamPrompt
from sam4mllm.methods.ppg import Ppg
from sam4mllm.train.dataset import make_lessons, spread

METHOD = Ppg(0, 0, 10, 5)


@dataclass(frozen=True)
class Target:
    prompts: tuple[SamPrompt, ...]


def sample(image: str, phrase: str, *objects: str) -> Sample:
    rle = encode(np.ones((10, 10), dtype=bool))
    made = tuple(MaskObject(each, rle, Box(0, 0, 10, 10)) for each in objects)
    return Sample(f"{image}/{phrase}", Path(image), (10, 10), phrase, made)


TARGETS = {name: Target((SamPrompt(Box(1, 1, 5, 5)),)) for name in ("a", "b")} | {"hard": Target(())}


def test_every_phrase_is_taught_or_counted():
    samples = [
        sample("1.jpg", "ring", "a"),
        sample("2.jpg", "star", "b"),
        sample("1.jpg", "ring", "a"),
        sample("1.jpg", "ring", "b"),
        sample("1.jpg", "cloud"),
        sample("2.jpg", "cross", "hard"),
        sample("3.jpg", "held", "a"),
    ]
    lessons = make_lessons(samples, TARGETS, METHOD, held_out=frozenset({Path("3.jpg")}))
    assert (lessons.phrases, lessons.doubled, lessons.untaught, lessons.held_out) == (4, 1, 1, 1)
    assert [(str(c.image), len(c.turns) // 2) for c in lessons.conversations] == [("1.jpg", 3), ("2.jpg", 1)]


def test_nothing_to_learn_is_an_error():
    with pytest.raises(DataError, match="of 1 phrases 1 have no target"):
        make_lessons([sample("1.jpg", "cross", "hard")], TARGETS, METHOD)
    with pytest.raises(DataError, match="nothing to learn: of 0 phrases"):
        make_lessons([], TARGETS, METHOD)


@pytest.mark.parametrize(
    ("total", "count", "places"),
    [(0, 3, []), (2, 3, [0, 1]), (4, 4, [0, 1, 2, 3]), (10, 4, [0, 2, 5, 7]), (5, 1, [0])],
)
def test_a_slice_is_spread_over_the_whole(total, count, places):
    samples = [sample("1.jpg", str(place)) for place in range(total)]
    assert [int(each.phrase) for each in spread(samples, count)] == places
