"""Published figures to stand beside ours, each with its source. Percent, as printed in the source.

RefCOCO's figures are cIoU, gRefCOCO's gIoU, cIoU, N-acc and T-acc, ReasonSeg's gIoU and cIoU. They are quoted, not
measured here.
"""

from __future__ import annotations

from dataclasses import dataclass

_TABULATED = "as tabulated by later papers (MLLMSeg, SegAgent, DeRIS)"
_GLAMM = "GLaMM's repository"
_GSVA = "GSVA's repository"
_LENS = "LENS's repository"
_LENS_PAPER = "LENS's paper (AAAI 2026), table 2"
_LISA = "LISA's paper (arXiv 2308.00692)"
_SEG_ZERO = "Seg-Zero's repository"
_UNIPIXEL = "UniPixel's repository"

_SPLITS = {
    "refcoco": ("val", "testA", "testB"),
    "refcoco+": ("val", "testA", "testB"),
    "refcocog": ("val", "test"),
}


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """One system's figures on one split, in percent; None where the source prints none."""

    system: str
    dataset: str
    split: str
    source: str
    ciou: float | None = None
    giou: float | None = None
    n_acc: float | None = None
    t_acc: float | None = None


# System, source, cIoU on RefCOCO (val, testA, testB), RefCOCO+ (the same) and RefCOCOg (val, test).
_REFERRING: tuple[tuple[str, str, str, str, str], ...] = (
    ("SAM4MLLM (LLaVA-NeXT 8B)", _TABULATED, "79.8 82.7 74.7", "74.6 80.0 67.2", "75.5 76.4"),
    ("SAM4MLLM (Qwen-VL 7B)", _TABULATED, "77.1 80.9 72.5", "71.5 76.8 64.7", "74.5 75.2"),
    ("LISA-7B ft", _TABULATED, "74.9 79.1 72.3", "65.1 70.8 58.1", "67.9 70.6"),
    ("NExT-Chat-7B", _TABULATED, "74.7 78.9 69.5", "65.1 71.9 56.7", "67.0 67.0"),
    ("PixelLM-7B", _TABULATED, "73.0 76.5 68.2", "66.3 71.7 58.3", "69.3 70.5"),
    ("GSVA-7B ft", _TABULATED, "77.2 78.9 73.5", "65.9 69.6 59.8", "72.7 73.3"),
    ("GLaMM", _GLAMM, "79.5 83.2 76.9", "72.6 78.7 64.6", "74.2 74.9"),
    ("Text4Seg (InternVL2 + SAM)", _TABULATED, "79.2 81.7 75.6", "72.8 77.9 66.5", "74.0 75.3"),
    ("Seg-Zero-7B", _SEG_ZERO, "- 80.3 -", "- 76.2 -", "- 72.6"),
    ("UniPixel-7B", _UNIPIXEL, "80.8 83.0 77.4", "75.3 80.1 70.0", "76.4 77.1"),
    ("LENS-3B", _LENS, "84.2 85.3 81.0", "79.4 82.8 74.3", "81.2 81.0"),
)

_GENERALIZED: tuple[PublishedRow, ...] = (
    PublishedRow("SAM4MLLM (LLaVA-NeXT 8B)", "grefcoco", "val", _TABULATED, ciou=67.83, giou=71.86, n_acc=66.08),
    PublishedRow("LISA-7B ft", "grefcoco", "val", _TABULATED, ciou=61.8, giou=61.6, n_acc=54.7),
    PublishedRow("GSVA-7B ft", "grefcoco", "val", _GSVA, ciou=63.19, giou=66.43, n_acc=62.56, t_acc=99.62),
    PublishedRow("Text4Seg (InternVL2 + SAM)", "grefcoco", "val", _TABULATED, ciou=69.1, giou=74.4),
    PublishedRow("GSVA-7B ft", "grefcoco", "testA", _GSVA, ciou=69.87, giou=71.06, n_acc=65.72, t_acc=98.69),
    PublishedRow("GSVA-7B ft", "grefcoco", "testB", _GSVA, ciou=60.35, giou=62.20, n_acc=60.72, t_acc=99.10),
)

_REASONING: tuple[PublishedRow, ...] = (
    PublishedRow("SAM4MLLM (LLaVA-NeXT 8B)", "reasonseg", "val", "Seg-Zero's table 9", ciou=48.1, giou=46.7),
    PublishedRow("LISA-7B ft", "reasonseg", "val", _LISA, ciou=54.0, giou=52.9),
    PublishedRow("LISA-7B-LLaVA1.5 ft", "reasonseg", "val", _LISA, ciou=62.9, giou=61.3),
    PublishedRow("Seg-Zero-7B", "reasonseg", "val", _SEG_ZERO, ciou=62.0, giou=62.6),
    PublishedRow("UniPixel-7B", "reasonseg", "val", _UNIPIXEL, ciou=58.7, giou=60.5),
    PublishedRow("LENS-3B", "reasonseg", "val", _LENS, ciou=64.9, giou=62.1),
    PublishedRow("LISA-7B ft", "reasonseg", "test", _LISA, ciou=48.4, giou=47.3),
    PublishedRow("LISA-7B-LLaVA1.5 ft", "reasonseg", "test", _LISA, ciou=56.9, giou=55.6),
    PublishedRow("Seg-Zero-3B", "reasonseg", "test", _LENS_PAPER, ciou=48.6, giou=56.1),
    PublishedRow("LENS-3B", "reasonseg", "test", _LENS_PAPER, ciou=58.0, giou=57.2),
)


def published(dataset: str, split: str) -> list[PublishedRow]:
    """The published rows for one split of a data set, in the order above; none for data that nobody published on."""
    rows = [*_referring_rows(), *_GENERALIZED, *_REASONING]
    return [row for row in rows if (row.dataset, row.split) == (dataset, split)]


def _referring_rows() -> list[PublishedRow]:
    rows = []
    for system, source, *printed in _REFERRING:
        for (dataset, splits), figures in zip(_SPLITS.items(), printed, strict=True):
            for split, figure in zip(splits, figures.split(), strict=True):
                if figure != "-":
                    rows.append(PublishedRow(system, dataset, split, source, ciou=float(figure)))
    return rows
