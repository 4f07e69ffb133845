"""Figures about confidence scores, drawn with matplotlib: the reliability diagram and the coverage curve.

matplotlib is imported when a figure is drawn, and used through its object API (`Figure` and the Agg canvas), so neither
a display nor the global state of pyplot is touched. The same input gives the same bytes on the same machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image

from sam4mllm.viz.drawing import PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DPI = 120
_GRAY = "#6e6e6e"
_BLUE, _DARK_BLUE, _VERMILION = (tuple(value / 255 for value in PALETTE[index]) for index in (1, 6, 4))
_LABEL_BOX = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}


class ReliabilityBin(NamedTuple):
    """The `n` scores from `low` to `high`: their mean, and the share of the predictions with them that is correct.

    `score` and `correct` are None for an empty bin.
    """

    low: float
    high: float
    n: int
    score: float | None
    correct: float | None


def draw_reliability(
    bins: Sequence[ReliabilityBin],
    coverage: Sequence[tuple[float, float | None]],
    *,
    ece: float | None = None,
    caption: str = "",
) -> Image.Image:
    """Draw the reliability diagram of scores beside the curve of cIoU over coverage.

    Left: the height of a bin's bar is the share of its predictions that is correct (IoU > 0.5); their number is at its
    foot. A vertical line connects that share with their mean score, on the diagonal of perfect calibration (Guo et al.
    2017, arXiv 1706.04599, figure 1). Right: cIoU of the most confident answers against the share of the answers that
    is kept; the dashed line is the cIoU of all answers.

    Args:
        bins: From the lowest to the highest scores; empty where predictions have no scores from 0 to 1.
        coverage: Points (share of the answers kept, their cIoU or None), the largest share first; empty where answers
            have no scores.
        ece: The expected calibration error of the scores, a fraction, for the title.
        caption: Text below both diagrams.

    Returns:
        An RGB image of 1080 x 612 pixels.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.1), dpi=_DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    left.set_title("Reliability of object scores" + ("" if ece is None else f" (ECE {100 * ece:.1f} %)"))
    _plot_bins(left, bins)
    right.set_title("cIoU of the most confident answers")
    _plot_coverage(right, coverage)
    # A dollar sign would begin a formula.
    figure.supxlabel(caption.replace("$", r"\$"), x=0.01, ha="left", fontsize="medium", wrap=True)
    content = BytesIO()
    canvas.print_png(content)
    return Image.open(content).convert("RGB")


def _plot_bins(axes: Axes, bins: Sequence[ReliabilityBin]) -> None:
    _frame(axes, "score", "share correct (IoU > 0.5)")
    axes.plot([0, 1], [0, 1], color=_GRAY, linestyle="dashed", linewidth=1.2)
    for each in bins:
        if each.score is None or each.correct is None:
            continue
        middle, width = (each.low + each.high) / 2, 0.88 * (each.high - each.low)
        axes.bar(middle, each.correct, width, color=_BLUE)
        # The gap between confidence and accuracy: its length, weighted by the bin's size, is what ECE sums up.
        axes.plot([each.score, each.score], [each.score, each.correct], color=_VERMILION, linewidth=2.5)
        axes.text(middle, 0.012, _short(each.n), ha="center", va="bottom", fontsize="small", bbox=_LABEL_BOX)
    if not bins:
        axes.text(0.5, 0.5, "no scores from 0 to 1", ha="center", va="center", color=_GRAY, bbox=_LABEL_BOX)


def _plot_coverage(axes: Axes, coverage: Sequence[tuple[float, float | None]]) -> None:
    _frame(axes, "share of answers kept", "cIoU")
    known = [(share, ciou) for share, ciou in coverage if ciou is not None]
    if not known:
        axes.text(0.5, 0.5, "some answers have no score", ha="center", va="center", color=_GRAY, bbox=_LABEL_BOX)
        return
    axes.axhline(known[0][1], color=_GRAY, linestyle="dashed", linewidth=1.2)
    axes.plot(*zip(*known, strict=True), color=_DARK_BLUE, linewidth=2, marker="o", markersize=6, clip_on=False)
    for share, ciou in [*known[:-1:5], known[-1]]:
        below = ciou >= 0.9
        axes.annotate(
            f"{100 * ciou:.1f}",
            (share, ciou),
            xytext=(0, -9 if below else 9),
            textcoords="offset points",
            ha="center",
            va="top" if below else "bottom",
            bbox=_LABEL_BOX,
        )


def _frame(axes: Axes, x_label: str, y_label: str) -> None:
    """Prepare a unit square with ticks every 0.2, a grid behind the data, and both labels."""
    ticks = [number / 5 for number in range(6)]
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xticks=ticks, yticks=ticks, xlabel=x_label, ylabel=y_label)
    axes.grid(color="#dedede")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _short(count: int) -> str:
    """Return the number in at most four characters."""
    return str(count) if count < 10_000 else f"{count // 1000}k"
