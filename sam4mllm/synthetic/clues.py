"""Descriptions of each silhouette for the phrases of the kind "reasoning"."""

from __future__ import annotations

# Noun clauses that also answer "which shape ...?". The embedded MLLM's pre-training uses the first two of each.
KNOWN_FOR: dict[str, tuple[str, ...]] = {
    "circle": (
        "the shape of a coin",
        "the outline of a full moon",
        "the shape of a manhole cover",
        "what the top of a can looks like",
    ),
    "square": (
        "the shape of a chessboard field",
        "the shape of a floor tile",
        "the shape of a sticky note",
        "the shape of a slice of toast",
    ),
    "triangle": (
        "the shape of a warning sign",
        "the figure with three corners",
        "the front of a tent",
        "the Greek letter delta",
    ),
    "diamond": (
        "the shape of a kite",
        "the outline of a cut gem",
        "the logo of a French car maker",
        "what miners of gems look for",
    ),
    "ring": (
        "the shape a wheel has",
        "the shape of a doughnut",
        "what Saturn has around it",
        "the shape of a bicycle tire",
    ),
    "frame": (
        "what a painting hangs in",
        "what goes around a photograph",
        "what a door is set in",
        "the edge around a poster",
    ),
    "crescent": (
        "the shape of a young moon",
        "the outline of a croissant",
        "the symbol on top of a mosque",
        "the shape of a boomerang",
    ),
    "star": (
        "what shines in the night sky",
        "what a sheriff wears",
        "the mark of a good hotel",
        "what sailors steered by at night",
    ),
    "cross": (
        "the sign of a pharmacy",
        "the plus sign",
        "the symbol on top of a church",
        "what a ballot is marked with",
    ),
    "arrow": (
        "what shows the way",
        "what an archer shoots",
        "the sign of a one-way street",
        "the cursor on a screen",
    ),
    "heart": (
        "the sign of love",
        "what beats in a chest",
        "the symbol of health in a video game",
        "the organ under the ribs",
    ),
    "C": (
        "the third letter of the alphabet",
        "the letter between B and D",
        "the grade after B",
        "the note at the start of a scale",
    ),
}
