"""The reliability figure: drawn with data and without, equal bytes for equal input, and nothing clipped."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
from PIL import Image

from sam4mllm.viz.plots import ReliabilityBin, draw_reliability

BINS = [ReliabilityBin(0.0, 0.5, 0, None, None), ReliabilityBin(0.5, 1.0, 12_345, 0.75, 0.6)]
COVERAGE = [(1 - number / 10, 0.5 + number / 25) for number in range(10)]


def blank_margins(image: Image.Image) -> bool:
    """Whether the outermost pixels of all four sides are white."""
    pixels = np.asarray(image)
    return all((side == 255).all() for side in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]))


def test_the_figure_is_drawn_with_data_and_without() -> None:
    full = draw_reliability(BINS, COVERAGE, ece=0.15, caption="a caption")
    empty = draw_reliability([], [], caption="a caption")
    assert full.size == empty.size == (1080, 612) and full.mode == "RGB"
    assert full.tobytes() != empty.tobytes()
    assert blank_margins(full) and blank_margins(empty)


def test_equal_input_gives_equal_bytes() -> None:
    assert draw_reliability(BINS, COVERAGE).tobytes() == draw_reliability(BINS, COVERAGE).tobytes()


def test_a_bar_reaches_to_the_share_that_is_correct() -> None:
    low, high = (
        np.asarray(draw_reliability([BINS[1]._replace(correct=share)], [])).astype(int) for share in (0.2, 0.8)
    )
    blue = [((image - (86, 180, 233)) == 0).all(axis=2).sum() for image in (low, high)]
    assert 3.5 < blue[1] / blue[0] < 5


def test_a_coverage_point_without_ciou_is_left_out() -> None:
    assert draw_reliability([], [*COVERAGE, (0.01, None)]).tobytes() == draw_reliability([], COVERAGE).tobytes()
    assert draw_reliability([], [(1.0, None)]).tobytes() == draw_reliability([], []).tobytes()


def test_a_long_caption_with_dollar_signs_stays_inside_the_figure() -> None:
    assert blank_margins(draw_reliability(BINS, COVERAGE, caption="$5 refcoco val: 10834 phrases, $ " * 5))


def test_matplotlib_is_imported_only_when_a_figure_is_drawn() -> None:
    program = "import sys, sam4mllm.viz.plots; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
