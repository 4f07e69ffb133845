"""The page of cases: the right sentences with image, prediction and text, all of it escaped."""

from __future__ import annotations

from html import unescape
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sam4mllm.data.masks import encode
from sam4mllm.data.predictions import PredictedObject, PredictionLine
from sam4mllm.data.sample import MaskObject, Sample
from sam4mllm.evaluation.cases import choose_cases, write_cases
from sam4mllm.evaluation.metrics import SentenceScore
from sam4mllm.geometry import Box, Point, SamPrompt


def _sentence(iou: float) -> SentenceScore:
    return SentenceScore(0, 1, iou, True, True)


def _columns(first: int, last: int) -> np.ndarray:
    mask = np.zeros((10, 20), dtype=bool)
    mask[:, first:last] = True
    return mask


def test_best_median_and_worst_by_iou() -> None:
    sentences = {str(number): _sentence(number / 10) for number in range(11)}
    assert choose_cases(sentences, 2) == {"best": ["10", "9"], "median": ["6", "5"], "worst": ["0", "1"]}
    assert choose_cases(sentences, 1) == {"best": ["10"], "median": ["5"], "worst": ["0"]}


def test_a_correct_no_target_answer_is_not_shown_and_a_wrong_one_is() -> None:
    right, wrong, hit = SentenceScore(0, 0, 1.0, False, False), SentenceScore(0, 9, 0.0, False, True), _sentence(0.7)
    chosen = choose_cases({"right": right, "wrong": wrong, "hit": hit}, 1)
    assert chosen == {"best": ["hit"], "median": [], "worst": ["wrong"]}


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), max_size=30), st.integers(1, 8))
def test_no_case_occurs_twice_and_none_is_left_out_while_there_is_room(ious: list[float], count: int) -> None:
    sentences = {str(number): _sentence(iou) for number, iou in enumerate(ious)}
    chosen = choose_cases(sentences, count)
    names = [name for kind in chosen.values() for name in kind]
    assert len(names) == len(set(names)) == min(len(sentences), 3 * count)
    ordered = [sentences[name].iou for name in (*chosen["best"], *chosen["median"], *chosen["worst"][::-1])]
    assert ordered == sorted(ordered, reverse=True)
    # The order of the split does not matter.
    assert choose_cases(dict(reversed(sentences.items())), count) == chosen


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    Image.new("RGB", (20, 10), "grey").save(tmp_path / "a.png")
    item = MaskObject("one", encode(_columns(0, 8)), Box(0, 0, 8, 10))
    names = ("right", "no object", "garbled", "never asked")
    made = [Sample(name, tmp_path / "a.png", (20, 10), f"<b>{name}</b> & more", (item,)) for name in names]
    return [*made, Sample("lost", tmp_path / "gone.png", (20, 10), "lost", (item,))]


def test_the_page_shows_image_truth_prediction_phrase_answer_and_iou(samples: list[Sample], tmp_path: Path) -> None:
    prompt = SamPrompt(Box(0, 0, 8, 10), (Point(3, 3, 1),))
    lines = [
        PredictionLine("right", "ok", (PredictedObject(encode(_columns(0, 8)), prompt),), answer="[000,<1>] +(1)"),
        PredictionLine("no object", "no_object", answer="No object found."),
        PredictionLine("garbled", "malformed", answer="hm", error="no box in it"),
        PredictionLine("lost", "error", error="gone.png: no such file"),
    ]
    sentences = {sample.id: _sentence(0.0) for sample in samples} | {"right": _sentence(0.987)}
    page = write_cases(samples, iter(lines), sentences, tmp_path / "out", title="<i>A", summary="5 & so", count=2)
    html = page.read_text(encoding="utf-8")
    text = unescape(html)
    assert page == tmp_path / "out/index.html"
    for sample in samples:
        assert sample.phrase in text and sample.id in text
    assert "IoU 0.987, answer" in text and "[000,<1>] +(1)" in text and "No object found." in text
    assert all(word in text for word in ("malformed", "no box in it", "not answered", "gone.png: no such file"))
    assert "<b>" not in html and "<i>A" not in html and "<1>" not in html
    assert all(f">{kind}</h2>" in html for kind in ("Best", "Median", "Worst"))
    # Four images can be read; every one shown is there, by a relative place, truth and answer side by side.
    images = sorted(path.name for path in (tmp_path / "out/images").iterdir())
    assert len(images) == 4 and all(f'src="images/{name}"' in html for name in images)
    assert html.count("<img") == 4 and "http" not in html
    drawn = np.asarray(Image.open(tmp_path / "out/images/best-00.png")).astype(int)
    assert drawn.shape[1] > 2 * 384


def test_a_large_drawing_is_scaled_down(samples: list[Sample], tmp_path: Path) -> None:
    Image.new("RGB", (3000, 1500), "grey").save(tmp_path / "large.png")
    mask = np.zeros((1500, 3000), dtype=bool)
    mask[:, :1000] = True
    item = MaskObject("one", encode(mask), Box(0, 0, 1000, 1500))
    large = Sample("large", tmp_path / "large.png", (3000, 1500), "large", (item,))
    write_cases([large], [], {"large": _sentence(0.5)}, tmp_path / "out", title="x")
    assert 2 * 1024 <= Image.open(tmp_path / "out/images/best-00.png").width < 2 * 1024 + 50


def test_a_page_written_twice_has_the_same_bytes(samples: list[Sample], tmp_path: Path) -> None:
    sentences = {sample.id: _sentence(0.5) for sample in samples}
    first = write_cases(samples, [], sentences, tmp_path / "out", title="x").read_bytes()
    assert write_cases(samples, [], sentences, tmp_path / "out", title="x").read_bytes() == first


def test_the_reliability_plot_is_above_the_cases(samples: list[Sample], tmp_path: Path) -> None:
    sentences = {sample.id: _sentence(0.5) for sample in samples}
    page = write_cases(samples, [], sentences, tmp_path / "out", title="x", plot="../reliability.png")
    html = page.read_text(encoding="utf-8")
    assert html.index('src="../reliability.png"') < html.index(">Best</h2>")
