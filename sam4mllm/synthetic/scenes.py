"""Scenes: images of 2 to 6 shapes on a textured background, some partly occluded, with the masks of visible pixels.

A scene depends on its key alone: `make_scene(seed, index)` always returns the same pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from sam4mllm.geometry import Box, box_of_mask
from sam4mllm.synthetic.silhouettes import SILHOUETTES, TURNS_FREELY, loops

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (208, 32, 36),
    "orange": (244, 134, 24),
    "yellow": (244, 214, 40),
    "green": (40, 150, 58),
    "blue": (38, 84, 206),
    "purple": (136, 52, 168),
    "white": (240, 240, 238),
    "black": (26, 26, 30),
}
PATTERNS: tuple[str, ...] = ("plain", "striped", "dotted")
SIZES_WH: tuple[tuple[int, int], ...] = ((256, 256), (256, 256), (256, 216), (216, 256), (256, 236), (236, 256))

_SUPERSAMPLING = 4
_MIN_VISIBLE = 0.62
_MIN_VISIBLE_SHARED = 0.4
_PLACING_TRIES = 60
_RADII = (27.0, 56.0)


@dataclass(frozen=True, slots=True)
class Shape:
    """One shape of a scene; `mask` (H, W), bool, is its visible part, and `box` the tight box of that part."""

    name: str
    colour: str
    pattern: str
    box: Box
    mask: npt.NDArray[np.bool_]

    @property
    def centre_xy(self) -> tuple[float, float]:
        """The center of the box, in pixels."""
        return (self.box.x1 + self.box.x2) / 2, (self.box.y1 + self.box.y2) / 2


@dataclass(frozen=True, slots=True)
class Scene:
    """An image (H, W, 3) uint8 and its shapes, from the back to the front."""

    image: npt.NDArray[np.uint8]
    shapes: tuple[Shape, ...]

    @property
    def size_wh(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.image.shape[1], self.image.shape[0]


@dataclass(frozen=True, slots=True)
class _Plan:
    """A shape before it is painted: center (x, y) and radius in pixels, angle in radians."""

    name: str
    colour: str
    pattern: str
    centre: tuple[float, float]
    radius: float
    angle: float


def make_scene(*key: int, shared_boxes: float = 0.0) -> Scene:
    """Return the scene of a key: a seed, then the numbers that distinguish the scenes of that seed.

    With the probability `shared_boxes`, a shape is placed on an earlier one of nearly the same size, so that a box does
    not identify it, and occluded shapes may be visible to 40 % only (otherwise to 62 %). The data set `shapes`
    (`write_dataset` in writer.py) uses 0.5.
    """
    # 1. The background, and the number of shapes.
    rng = np.random.default_rng(key)
    width, height = SIZES_WH[rng.integers(len(SIZES_WH))]
    wanted = int(rng.integers(2, 7))
    min_visible = _MIN_VISIBLE_SHARED if shared_boxes else _MIN_VISIBLE
    canvas = _background(rng, width, height)
    # 2. Place shapes from back to front; one that occludes too much of an earlier one is dropped.
    plans: list[_Plan] = []
    alphas: list[npt.NDArray[np.float32]] = []
    full_areas: list[int] = []
    visible: list[npt.NDArray[np.bool_]] = []
    for _ in range(_PLACING_TRIES):
        if len(plans) == wanted:
            break
        plan = _draw_plan(rng, plans, width, height)
        if shared_boxes and plans and rng.random() < shared_boxes:
            plan = _place_on(rng, plan, plans[rng.integers(len(plans))])
        alpha = _coverage(plan, width, height)
        mask = alpha > 0.5
        left = [old & ~mask for old in visible]
        if any(part.sum() < min_visible * total for part, total in zip(left, full_areas, strict=True)):
            continue
        plans.append(plan)
        alphas.append(alpha)
        full_areas.append(int(mask.sum()))
        visible = [*left, mask]
    # 3. Paint them, and add noise.
    for plan, alpha in zip(plans, alphas, strict=True):
        _paint(rng, canvas, plan, alpha)
    noise = rng.normal(0.0, 3.0, canvas.shape[:2]).astype(np.float32)[:, :, None]
    image = np.clip(canvas + noise, 0, 255).astype(np.uint8)
    shapes = []
    for plan, mask in zip(plans, visible, strict=True):
        box = box_of_mask(mask)
        assert box is not None, "a placed shape keeps most of its pixels"
        shapes.append(Shape(plan.name, plan.colour, plan.pattern, box, mask))
    return Scene(image, tuple(shapes))


def _draw_plan(rng: np.random.Generator, others: list[_Plan], width: int, height: int) -> _Plan:
    """Draw a random shape; it often shares silhouette or color with another, so that one word rarely identifies it."""
    name = SILHOUETTES[rng.integers(len(SILHOUETTES))]
    colour = list(COLOURS)[rng.integers(len(COLOURS))]
    pattern = PATTERNS[rng.choice(3, p=[0.6, 0.2, 0.2])]
    if others:
        other = others[rng.integers(len(others))]
        share = rng.random()
        if share < 0.35:
            name = other.name
        elif share < 0.6:
            colour = other.colour
    radius = float(np.exp(rng.uniform(np.log(_RADII[0]), np.log(_RADII[1]))))
    angle = float(rng.uniform(0, 2 * np.pi)) if name in TURNS_FREELY else float(rng.uniform(-0.35, 0.35))
    margin = radius * 0.95
    centre = (float(rng.uniform(margin, width - margin)), float(rng.uniform(margin, height - margin)))
    return _Plan(name, colour, pattern, centre, radius, angle)


def _place_on(rng: np.random.Generator, plan: _Plan, other: _Plan) -> _Plan:
    """Move a shape onto another one of nearly the same size; silhouette and color differ from the other's."""
    radius = other.radius * rng.uniform(0.72, 1.08)
    name, colour = plan.name, plan.colour
    if name == other.name:
        name = str(rng.choice([each for each in SILHOUETTES if each != other.name]))
    shift = rng.normal(0, 0.08, 2) * other.radius
    if colour == other.colour:
        colour = str(rng.choice([each for each in COLOURS if each != other.colour]))
    centre = (other.centre[0] + shift[0], other.centre[1] + shift[1])
    return _Plan(name, colour, plan.pattern, centre, radius, plan.angle)


def _coverage(plan: _Plan, width: int, height: int) -> npt.NDArray[np.float32]:
    """Return the fraction of each pixel (H, W) that the shape covers, in [0, 1]."""
    reach = int(np.ceil(plan.radius * 1.25)) + 1
    x0, y0 = int(plan.centre[0]) - reach, int(plan.centre[1]) - reach
    side = 2 * reach
    patch = Image.new("L", (side * _SUPERSAMPLING, side * _SUPERSAMPLING))
    draw = ImageDraw.Draw(patch)
    cos, sin = np.cos(plan.angle), np.sin(plan.angle)
    turn = np.array([[cos, sin], [-sin, cos]]) * plan.radius
    for loop in loops(plan.name):
        corners = (loop.outline @ turn + plan.centre - (x0, y0)) * _SUPERSAMPLING
        draw.polygon([(x, y) for x, y in corners], fill=255 if loop.filled else 0)
    small = np.asarray(patch.reduce(_SUPERSAMPLING), dtype=np.float32) / 255
    alpha = np.zeros((height, width), dtype=np.float32)
    top, left = max(y0, 0), max(x0, 0)
    bottom, right = min(y0 + side, height), min(x0 + side, width)
    alpha[top:bottom, left:right] = small[top - y0 : bottom - y0, left - x0 : right - x0]
    return alpha


def _paint(
    rng: np.random.Generator, canvas: npt.NDArray[np.float32], plan: _Plan, alpha: npt.NDArray[np.float32]
) -> None:
    """Paint one shape over the canvas (H, W, 3) float32 in 0..255, in place."""
    box = box_of_mask(alpha > 0)
    if box is None:
        return
    rows, columns = slice(int(box.y1), int(box.y2)), slice(int(box.x1), int(box.x2))
    y, x = np.mgrid[rows, columns].astype(np.float32)
    colour = np.array(COLOURS[plan.colour], dtype=np.float32) + rng.normal(0, 9, 3).astype(np.float32)
    tilt = rng.uniform(-1, 1, 2)
    light = 1 + 0.16 * (tilt[0] * (x - plan.centre[0]) + tilt[1] * (y - plan.centre[1])) / plan.radius
    second = colour * 0.5 if colour.mean() > 90 else colour + 95
    mix = np.zeros_like(x)
    angle, period, phase = rng.uniform(0, np.pi), rng.uniform(9, 14), rng.uniform(0, 6)
    u = x * np.cos(angle) + y * np.sin(angle)
    v = -x * np.sin(angle) + y * np.cos(angle)
    if plan.pattern == "striped":
        mix = ((u + phase) % period < period * 0.42).astype(np.float32)
    elif plan.pattern == "dotted":
        mix = (((u % period) - period / 2) ** 2 + ((v % period) - period / 2) ** 2 < (period * 0.3) ** 2).astype(
            np.float32
        )
    paint = (colour + mix[:, :, None] * (second - colour)) * light[:, :, None]
    cover = alpha[rows, columns, None]
    canvas[rows, columns] = canvas[rows, columns] * (1 - cover) + paint * cover


def _background(rng: np.random.Generator, width: int, height: int) -> npt.NDArray[np.float32]:
    """Return a dull background (H, W, 3) float32 in 0..255: clouds, stripes, tiles or a gradient, and faint strokes."""
    grey = rng.uniform(95, 185)
    base = np.clip(grey + rng.normal(0, 14, 3), 70, 205)
    other = np.clip(base + rng.choice([-1, 1]) * rng.uniform(14, 34) + rng.normal(0, 7, 3), 60, 215)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    kind = rng.integers(4)
    if kind == 0:
        cells = int(rng.integers(4, 24))
        clouds = Image.fromarray((rng.random((cells, cells)) * 255).astype(np.uint8)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        mix = np.asarray(clouds, dtype=np.float32) / 255
    elif kind == 1:
        angle, period = rng.uniform(0, np.pi), rng.uniform(8, 44)
        mix = 0.5 + 0.5 * np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period)
    elif kind == 2:
        side = rng.uniform(12, 46)
        mix = ((x // side + y // side) % 2).astype(np.float32)
    else:
        angle = rng.uniform(0, 2 * np.pi)
        mix = 0.5 + 0.5 * ((x / width - 0.5) * np.cos(angle) + (y / height - 0.5) * np.sin(angle)) * 1.6
    canvas = Image.fromarray((base + mix[:, :, None] * (other - base)).astype(np.uint8))
    draw = ImageDraw.Draw(canvas)
    for _ in range(int(rng.integers(0, 5))):
        ends = [(float(rng.uniform(0, width)), float(rng.uniform(0, height))) for _ in range(2)]
        shade = tuple(int(v) for v in np.clip(base + rng.normal(0, 26, 3), 50, 225))
        draw.line(ends, fill=shade, width=int(rng.integers(1, 4)))
    return np.asarray(canvas, dtype=np.float32).copy()
