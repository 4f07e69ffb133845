"""Descriptions of each silhouette for the phrases of the kind "reasoning"."""

from __future__ import annotations

# Noun clauses that also answer "which shape ...?". The embedded MLLM's pre-training uses the first two of each.
KNOWN_FOR: dict[str, tuple[str, ...]] = {
    "circle": (
        "the shape of a coin",
        "the outline of a full moon",
        "what a pair of compasses draws",
        "the face of a clock",
    ),
    "square": (
        "the shape of a chessboard field",
        "the shape of a floor tile",
        "what each side of a die looks like",
        "the shape of a pixel",
    ),
    "triangle": (
        "the shape of a warning sign",
        "the figure with three corners",
        "the shape of a slice of pizza",
        "what an orchestra has among its percussion",
    ),
    "diamond": (
        "the shape of a kite",
        "the outline of a cut gem",
        "what the infield in baseball is called",
        "the hardest of all stones",
    ),
    "ring": (
        "the shape a wheel has",
        "the shape of a doughnut",
        "the shape of a life belt",
        "what is given at a wedding",
    ),
    "frame": (
        "what a painting hangs in",
        "what goes around a photograph",
        "what holds the glass of a window",
        "the border of a mirror",
    ),
    "crescent": (
        "the shape of a young moon",
        "the outline of a croissant",
        "the blade of a sickle",
        "what is beside the star on the flag of Turkey",
    ),
    "star": (
        "what shines in the night sky",
        "what a sheriff wears",
        "what a famous actor is called",
        "what the flag of the United States has fifty of",
    ),
    "cross": (
        "the sign of a pharmacy",
        "the plus sign",
        "what marks the place on a treasure map",
        "what the flag of Switzerland shows",
    ),
    "arrow": (
        "what shows the way",
        "what an archer shoots",
        "what the mouse moves across a screen",
        "what flies from a bow",
    ),
    "heart": ("the sign of love", "what beats in a chest", "what pumps the blood", "what a cardiologist examines"),
    "C": (
        "the third letter of the alphabet",
        "the letter between B and D",
        "the symbol of carbon",
        "the first letter of the word cat",
    ),
}
