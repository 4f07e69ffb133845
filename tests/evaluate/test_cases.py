"""The page of cases: the right sentences with all that was seen and said; nothing of the data runs in a browser."""

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
from sam4mllm.evaluate.cases import choose_cases, write_cases
from sam4mllm.evaluate.metrics import SentenceScore
from sam4mllm.geometry import Box, Point, SamPrompt


def _judged(iou: float) -> SentenceScore:
    return SentenceScore(0, 1, iou, True, True)


def _columns(first: int, last: int) -> np.ndarray:
    mask = np.zeros((10, 20), dtype=bool)
    mask[:, first:last] = True
    return mask


def test_best_median_and_worst_by_iou() -> None:
    judged = {str(number): _judged(number / 10) for number in range(11)}
    assert choose_cases(judged, 2) == {"best": ["10", "9"], "median": ["6", "5"], "worst": ["0", "1"]}
    assert choose_cases(judged, 1) == {"best": ["10"], "median": ["5"], "worst": ["0"]}


def test_a_right_no_target_has_nothing_to_show_and_a_wrong_one_has() -> None:
    right, wrong, hit = SentenceScore(0, 0, 1.0, False, False), SentenceScore(0, 9, 0.0, False, True), _judged(0.7)
    chosen = choose_cases({"right": right, "wrong": wrong, "hit": hit}, 1)
    assert chosen == {"best": ["hit"], "median": [], "worst": ["wrong"]}


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), max_size=30), st.integers(1, 8))
def test_no_case_comes_twice_and_none_is_left_out_while_there_is_room(ious: list[float], count: int) -> None:
    judged = {str(number): _judged(iou) for number, iou in enumerate(ious)}
    chosen = choose_cases(judged, count)
    names = [name for kind in chosen.values() for name in kind]
    assert len(names) == len(set(names)) == min(len(judged), 3 * count)
    ordered = [judged[name].iou for name in (*chosen["best"], *chosen["median"], *chosen["worst"][::-1])]
    assert ordered == sorted(ordered, reverse=True)
    # The order of the split does not matter.
    assert choose_cases(dict(reversed(judged.items())), count) == chosen


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    Image.new("RGB", (20, 10), "grey").save(tmp_path / "a.png")
    item = MaskObject("one", encode(_columns(0, 8)), Box(0, 0, 8, 10))
    names = ("right", "said nothing", "garbled", "never asked")
    made = [Sample(name, tmp_path / "a.png", (20, 10), f"<b>{name}</b> & more", (item,)) for name in names]
    return [*made, Sample("lost", tmp_path / "gone.png", (20, 10), "lost", (item,))]


def test_the_page_shows_image_truth_prediction_phrase_answer_and_iou(samples: list[Sample], tmp_path: Path) -> None:
    prompt = SamPrompt(Box(0, 0, 8, 10), (Point(3, 3, 1),))
    lines = [
        PredictionLine("right", "ok", (PredictedObject(encode(_columns(0, 8)), prompt),), answer="[000,<1>] +(1)"),
        PredictionLine("said nothing", "no_object", answer="No object found."),
        PredictionLine("garbled", "malformed", answer="hm", error="no box in it"),
        PredictionLine("lost", "error", error="gone.png: no such file"),
    ]
    judged = {sample.id: _judged(0.0) for sample in samples} | {"right": _judged(0.987)}
    page = write_cases(samples, iter(lines), judged, tmp_path / "out", title="<i>A", summary="5 & so", count=2)
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


def test_a_photograph_is_brought_down(samples: list[Sample], tmp_path: Path) -> None:
    Image.new("RGB", (3000, 1500), "grey").save(tmp_path / "large.png")
    mask = np.zeros((1500, 3000), dtype=bool)
    mask[:, :1000] = True
    item = MaskObject("one", encode(mask), Box(0, 0, 1000, 1500))
    large = Sample("large", tmp_path / "large.png", (3000, 1500), "large", (item,))
    write_cases([large], [], {"large": _judged(0.5)}, tmp_path / "out", title="x")
    assert 2 * 1024 <= Image.open(tmp_path / "out/images/best-00.png").width < 2 * 1024 + 50


def test_a_page_is_the_same_when_written_again(samples: list[Sample], tmp_path: Path) -> None:
    judged = {sample.id: _judged(0.5) for sample in samples}
    first = write_cases(samples, [], judged, tmp_path / "out", title="x").read_bytes()
    assert write_cases(samples, [], judged, tmp_path / "out", title="x").read_bytes() == first


def test_a_figure_stands_above_the_cases(samples: list[Sample], tmp_path: Path) -> None:
    judged = {sample.id: _judged(0.5) for sample in samples}
    page = write_cases(samples, [], judged, tmp_path / "out", title="x", figure="../trust.png")
    html = page.read_text(encoding="utf-8")
    assert html.index('src="../trust.png"') < html.index(">Best</h2>")
