"""Descriptions of each silhouette for the phrases of the kind "reasoning"."""

from __future__ import annotations

# Noun clauses that also answer "which shape ...?". The embedded MLLM's pre-training uses the first two of each; the
# others have their main words in other wordings.
KNOWN_FOR: dict[str, tuple[str, ...]] = {
    "circle": (
        "the shape of a coin",
        "the outline of a full moon",
        "something that looks like a coin",
        "something round like a full moon",
    ),
    "square": (
        "the shape of a chessboard field",
        "the shape of a floor tile",
        "something that looks like a chessboard field",
        "something like a floor tile",
    ),
    "triangle": (
        "the shape of a warning sign",
        "the figure with three corners",
        "something that looks like a warning sign",
        "a figure that has three corners",
    ),
    "diamond": (
        "the shape of a kite",
        "the outline of a cut gem",
        "something that looks like a kite",
        "something cut like a gem",
    ),
    "ring": (
        "the shape a wheel has",
        "the shape of a doughnut",
        "something that looks like a wheel",
        "something like a doughnut",
    ),
    "frame": (
        "what a painting hangs in",
        "what goes around a photograph",
        "something to hang a painting in",
        "something that goes around a photograph",
    ),
    "crescent": (
        "the shape of a young moon",
        "the outline of a croissant",
        "something that looks like a young moon",
        "something like a croissant",
    ),
    "star": (
        "what shines in the night sky",
        "what a sheriff wears",
        "something that shines in the night sky",
        "something a sheriff wears",
    ),
    "cross": (
        "the sign of a pharmacy",
        "the plus sign",
        "something that means a pharmacy",
        "something like the plus sign",
    ),
    "arrow": (
        "what shows the way",
        "what an archer shoots",
        "something that shows the way",
        "something an archer shoots",
    ),
    "heart": (
        "the sign of love",
        "what beats in a chest",
        "something that means love",
        "something that beats in a chest",
    ),
    "C": (
        "the third letter of the alphabet",
        "the letter between B and D",
        "a letter that is the third of the alphabet",
        "a letter between B and D",
    ),
}
