"""The image of trust: the reliability diagram beside the coverage curve, drawn with PIL.

Left, a bar for each bin of scores reaches to the share of its objects that are right, with their number at its foot; a
line goes from there to their mean score, on the diagonal, where scores tell the truth. Right, cIoU over the answers
that are kept when the unsure ones are dropped. This module computes no figure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from sam4mllm.evaluate.reliability import CoveragePoint, Reliability, ReliabilityReport
from sam4mllm.viz.drawing import PALETTE, panels

_SIDE = 300
"""Of a plot's square, in pixels."""
_MARGIN_LEFT, _MARGIN_TOP, _MARGIN_RIGHT, _MARGIN_BOTTOM = 52, 10, 20, 46
_FINER = 3
"""Lines are drawn this much larger and brought down, which smooths them."""
_FONT_SIZE = 12
_PAPER, _INK, _FAINT, _QUIET = (255, 255, 255), (25, 25, 25), (222, 222, 222), (110, 110, 110)
_BAR, _SURE, _OFF = PALETTE[1], PALETTE[6], PALETTE[4]
_TICKS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


class _Plot(NamedTuple):
    """A square from 0 to 1 each way, with y upwards. `at` gives a place's pixels on the enlarged canvas."""

    canvas: Image.Image
    pen: ImageDraw.ImageDraw
    at: Callable[[float, float], tuple[float, float]]

    def write(self, place_xy: tuple[float, float], text: str, anchor: str, colour: tuple[int, int, int] = _INK) -> None:
        """Text at pixels of the enlarged canvas, ringed in white; `anchor` as PIL names it."""
        font = ImageFont.load_default(_FONT_SIZE * _FINER)
        self.pen.text(place_xy, text, colour, font, anchor, stroke_width=2 * _FINER, stroke_fill=_PAPER)

    def line(self, places: Sequence[tuple[float, float]], colour: tuple[int, int, int], width: int = 2) -> None:
        """A line through places of the square."""
        self.pen.line([self.at(*place) for place in places], fill=colour, width=width * _FINER, joint="curve")

    def finished(self) -> Image.Image:
        """The plot at its own size."""
        size_wh = self.canvas.width // _FINER, self.canvas.height // _FINER
        return self.canvas.resize(size_wh, Image.Resampling.LANCZOS)


def draw_reliability(report: ReliabilityReport, caption: str = "") -> Image.Image:
    """Both diagrams side by side, with a caption below; a diagram that has no figures says so."""
    reliability, coverage = report.objects, report.coverage
    titles = [
        "Reliability of the objects' scores" + ("" if reliability is None else f": ECE {100 * reliability.ece:.1f} %"),
        "cIoU over the surest answers",
    ]
    return panels([(_draw_reliability(reliability), titles[0]), (_draw_coverage(coverage), titles[1])], caption)


def _draw_reliability(reliability: Reliability | None) -> Image.Image:
    plot = _axes("score", "share that is right (IoU > 0.5)", _TICKS)
    for each in reliability.bins if reliability is not None else ():
        if each.right is None or each.score is None:
            continue
        inset = 0.06 * (each.high - each.low)
        (x1, y1), (x2, y2) = plot.at(each.low + inset, each.right), plot.at(each.high - inset, 0)
        plot.pen.rectangle((x1, y1, x2, y2), fill=_BAR)
        # From where the scores are to where the truth is.
        plot.line([(each.score, each.score), (each.score, each.right)], _OFF, 3)
    plot.line([(0, 0), (1, 1)], _QUIET)
    for each in reliability.bins if reliability is not None else ():
        if each.n:
            x, y = plot.at((each.low + each.high) / 2, 0)
            plot.write((x, y - 4 * _FINER), _count(each.n), "md")
    if reliability is None:
        plot.write(plot.at(0.5, 0.5), "no scores from 0 to 1", "mm", _QUIET)
    return plot.finished()


def _draw_coverage(coverage: Sequence[CoveragePoint] | None) -> Image.Image:
    plot = _axes("share of the answers that is kept", "cIoU", _TICKS)
    known = [(each.coverage, each.ciou) for each in coverage or () if each.ciou is not None]
    if known:
        everything = known[0][1]
        plot.line([(0, everything), (1, everything)], _QUIET)
        plot.line(known, _SURE, 3)
    else:
        plot.write(plot.at(0.5, 0.5), "an answer has no score", "mm", _QUIET)
    for coverage_here, ciou in known:
        x, y = plot.at(coverage_here, ciou)
        radius = 4 * _FINER
        plot.pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_SURE, outline=_PAPER, width=_FINER)
    for coverage_here, ciou in known[::5] + known[-1:]:
        x, y = plot.at(coverage_here, ciou)
        above = ciou < 0.9
        plot.write((x, y + (-8 if above else 8) * _FINER), f"{100 * ciou:.1f}", "md" if above else "ma")
    return plot.finished()


def _axes(across: str, up: str, ticks: Sequence[float]) -> _Plot:
    """An empty square with its grid, ticks and the axes' names."""
    width, height = _MARGIN_LEFT + _SIDE + _MARGIN_RIGHT, _MARGIN_TOP + _SIDE + _MARGIN_BOTTOM
    canvas = Image.new("RGB", (width * _FINER, height * _FINER), _PAPER)

    def at(x: float, y: float) -> tuple[float, float]:
        return (_MARGIN_LEFT + x * _SIDE) * _FINER, (_MARGIN_TOP + (1 - y) * _SIDE) * _FINER

    plot = _Plot(canvas, ImageDraw.Draw(canvas), at)
    for tick in ticks:
        plot.line([(tick, 0), (tick, 1)], _FAINT, 1)
        plot.line([(0, tick), (1, tick)], _FAINT, 1)
        x, y = at(tick, 0)
        plot.write((x, y + 6 * _FINER), f"{tick:.1f}", "ma")
        x, y = at(0, tick)
        plot.write((x - 6 * _FINER, y), f"{tick:.1f}", "rm")
    plot.line([(0, 1), (0, 0), (1, 0)], _INK, 1)
    x, y = at(0.5, 0)
    plot.write((x, y + 26 * _FINER), across, "ma")
    _write_upwards(plot, up)
    return plot


def _write_upwards(plot: _Plot, text: str) -> None:
    """The name of the axis that goes up, along it."""
    font = ImageFont.load_default(_FONT_SIZE * _FINER)
    label = Image.new("RGB", (round(font.getlength(text)) + 2, 16 * _FINER), _PAPER)
    ImageDraw.Draw(label).text((0, 8 * _FINER), text, fill=_INK, font=font, anchor="lm")
    turned = label.rotate(90, expand=True)
    middle = plot.at(0, 0.5)[1]
    plot.canvas.paste(turned, (2 * _FINER, round(middle - turned.height / 2)))


def _count(n: int) -> str:
    """The number in at most four signs."""
    return str(n) if n < 10_000 else f"{n // 1000}k"
