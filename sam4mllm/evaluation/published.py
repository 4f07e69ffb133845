"""Published results to print beside ours: figures in percent, quoted from their sources and not measured here.

RefCOCO/+/g: cIoU. gRefCOCO: gIoU, cIoU, N-acc, T-acc. ReasonSeg: gIoU, cIoU. A source is the repository of the system,
with the file that holds the figures, or the table of a later system ("X's table").
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

_TABULATED = "as tabulated by later papers (MLLMSeg, SegAgent, DeRIS)"
_LATER = "tabulated in a later system's repository"
_DERIS = "Dmmm1997/DeRIS, README.md"
_GLAMM = "GLaMM's repository"
_GSVA = "GSVA's repository"
_LENS = "LENS's repository"
_LENS_PAPER = "LENS's paper (AAAI 2026), table 2"
_LENS_TABLE = "LENS's table: hustvl/LENS, assets/res1.png"
_LENS_STAR_TABLES = (
    "LENS's and StAR's tables: hustvl/LENS, assets/res2.png; ysj9909/StAR, assets/quantitative_result.png"
)
_LISA = "LISA's paper (arXiv 2308.00692)"
_MLLMSEG = "jcwang0602/MLLMSeg, assets/tab_res.png"
_MLLMSEG_GRES = "jcwang0602/MLLMSeg, assets/tab_gres.png"
_MLLMSEG_TABLE = "MLLMSeg's table: jcwang0602/MLLMSeg, assets/tab_gres.png"
_RICE = "deepglint/unicom, downstream/README.md"
_SA2VA = "Sa2VA-Qwen3-VL-4B's model card"
_SARA = "limiaowu/SARA, README"
_SARA_TABLE = "SARA's table: limiaowu/SARA, README"
_SEG_ZERO = "Seg-Zero's repository"
_SIMPLESEG = "songtianhui/SimpleSeg, README"
_SIMPLESEG_TABLE = "SimpleSeg's table: songtianhui/SimpleSeg, README"
_STAMP = "HKUST-LongGroup/STAMP, images/results1.jpg"
_STAMP_GRES = "HKUST-LongGroup/STAMP, images/results2.jpg"
_STAR = "ysj9909/StAR, assets/quantitative_result.png"
_STAR_TABLE = "StAR's table: ysj9909/StAR, assets/quantitative_result.png"
_UNIPIXEL = "UniPixel's repository"
_XSAM = "wanghao9610/X-SAM, docs/srcs/images/refseg.png"

_SPLITS = (
    *(("refcoco", split) for split in ("val", "testA", "testB")),
    *(("refcoco+", split) for split in ("val", "testA", "testB")),
    *(("refcocog", split) for split in ("val", "test")),
)


_REFCOCO_IMAGES = {"val": 1500, "testA": 750, "testB": 750}

# The numbers of sentences and of images of each benchmark's splits; an image of ReasonSeg has one sentence. Sources:
# - sentences of RefCOCO: FlagEval's page on it; those of RefCOCO+, rounded to three digits: the viewer of
#   Kangheng/refcocop on the Hub; the sums over the splits of RefCOCO (21,586), RefCOCO+ (21,373) and RefCOCOg (14,498):
#   Ref-L4 (arXiv 2406.16866, README of its data set);
# - images of these three: jxu124/refcoco-benchmark on the Hub;
# - gRefCOCO: none was found for the splits of the release that published rows are on, which has 259,859 sentences with
#   those for training (henghuiding/gRefCOCO, issue 6). No rows are printed beside the later release on the Hub, whose
#   testA has 19,200 and testB 16,063 (Mikehuntisbald/PIVOT, tools/arrow_grefcoco_common.py).
# With wrong numbers no published row would be printed.
_SIZES: dict[tuple[str, str], tuple[int, int]] = {
    **{
        (dataset, split): (count, _REFCOCO_IMAGES[split])
        for dataset, counts in {
            "refcoco": (10834, 5657, 5095),
            "refcoco+": (10758, 5726, 4889),
            "grefcoco": (16870, 18712, 14933),
        }.items()
        for split, count in zip(_REFCOCO_IMAGES, counts, strict=True)
    },
    ("refcocog", "val"): (4896, 1300),
    ("refcocog", "test"): (9602, 2600),
    ("reasonseg", "val"): (200, 200),
    ("reasonseg", "test"): (779, 779),
}


def has_benchmark_size(dataset: str, split: str, sentences: int, images: int) -> bool:
    """Return whether data have as many sentences and images as the benchmark's split, whose format others use too."""
    return _SIZES.get((dataset, split)) == (sentences, images)


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """One system's figures on one split, in percent; None where its source prints none.

    Attributes:
        text_only: Whether the model answers in plain text alone, without a new token, head or decoder; None if unknown.
        coco_masks: Whether its segmenter or decoder saw COCO masks in training, which RefCOCO's val and test images
            have too; None if unknown.
    """

    system: str
    dataset: str
    split: str
    source: str
    ciou: float | None = None
    giou: float | None = None
    n_acc: float | None = None
    t_acc: float | None = None
    text_only: bool | None = None
    coco_masks: bool | None = None


# `text_only` and `coco_masks` of each system; a system without an entry has None for both.
_PROPERTIES: dict[str, tuple[bool | None, bool | None]] = {
    "DeRIS-L (no LLM)": (False, True),
    "GenSeg-R1-4B": (True, None),
    "LENS-3B": (False, None),
    "MLLMSeg-8B": (False, None),
    "RICE-7B (MLCD-seg)": (False, None),
    "SAM 3 Agent (Gemini 2.5 Pro, zero shot)": (False, False),
    "SAM 3 Agent (Qwen2.5-VL-72B)": (False, None),
    "SAM 3 Agent (Qwen2.5-VL-7B)": (False, None),
    "SAM4MLLM (LLaVA-NeXT 8B)": (True, True),
    "SARA-4B": (False, None),
    "SARA-9B (Qwen3.5-9B)": (False, None),
    "STAMP-2B": (False, None),
    "STAMP-7B": (False, None),
    "Sa2VA-Qwen3-VL-4B": (False, None),
    "Seg-Zero-7B": (True, False),
    "SegAgent-Qwen": (True, None),
    "SimpleSeg (Qwen2.5-VL-7B, polygons, no SAM)": (True, False),
    "StAR-32B + vote": (True, None),
    "StAR-7B": (True, None),
    "StAR-7B + vote": (True, None),
    "StAR-8B (Qwen3-VL-8B)": (True, None),
    "StAR-8B (Qwen3-VL-8B) + vote": (True, None),
    "Text4Seg-13B + SAM": (True, None),
    "UniPixel-7B": (False, None),
    "VisionReasoner-7B": (True, False),
    "X-SAM (Phi-3-3.8B)": (False, True),
}

# System, source, cIoU on the eight splits of RefCOCO (val, testA, testB), RefCOCO+ (likewise) and RefCOCOg (val, test).
_REFERRING = (
    ("SAM4MLLM (LLaVA-NeXT 8B)", _TABULATED, "79.8 82.7 74.7   74.6 80.0 67.2   75.5 76.4"),
    ("SAM4MLLM (Qwen-VL 7B)", _TABULATED, "77.1 80.9 72.5   71.5 76.8 64.7   74.5 75.2"),
    ("LISA-7B ft", _TABULATED, "74.9 79.1 72.3   65.1 70.8 58.1   67.9 70.6"),
    ("NExT-Chat-7B", _TABULATED, "74.7 78.9 69.5   65.1 71.9 56.7   67.0 67.0"),
    ("PixelLM-7B", _TABULATED, "73.0 76.5 68.2   66.3 71.7 58.3   69.3 70.5"),
    ("GSVA-7B ft", _TABULATED, "77.2 78.9 73.5   65.9 69.6 59.8   72.7 73.3"),
    ("GLaMM", _GLAMM, "79.5 83.2 76.9   72.6 78.7 64.6   74.2 74.9"),
    ("Text4Seg (InternVL2 + SAM)", _TABULATED, "79.2 81.7 75.6   72.8 77.9 66.5   74.0 75.3"),
    ("Text4Seg-13B + SAM", _SIMPLESEG_TABLE, "80.2 82.7 77.3   73.7 78.6 67.6   74.0 75.1"),
    ("SegAgent-Qwen", _SIMPLESEG_TABLE, "79.7 81.4 76.6   72.5 75.8 66.9   75.1 75.2"),
    ("SimpleSeg (Qwen2.5-VL-7B, polygons, no SAM)", _SIMPLESEG, "80.9 77.8 75.2   72.4 77.3 66.1   73.3 74.1"),
    ("Seg-Zero-7B", _SEG_ZERO, "- 80.3 -   - 76.2 -   - 72.6"),
    ("VisionReasoner-7B", _SARA_TABLE, "- 78.9 -   - 74.9 -   - 71.3"),
    ("UniPixel-7B", _UNIPIXEL, "80.8 83.0 77.4   75.3 80.1 70.0   76.4 77.1"),
    ("MLLMSeg-8B", _MLLMSEG, "81.0 82.4 78.7   76.4 79.1 72.5   79.9 80.8"),
    ("Sa2VA-Qwen3-VL-4B", _SA2VA, "81.7 - -   77.4 - -   80.0 -"),
    ("STAMP-2B", _STAMP, "81.9 83.7 79.5   77.1 80.5 72.7   78.5 78.8"),
    ("STAMP-7B", _STAMP, "83.1 84.5 80.8   79.4 82.8 74.6   79.9 80.4"),
    ("SARA-4B", _SARA, "82.3 83.6 79.4   77.8 81.9 72.9   80.1 80.5"),
    ("SARA-9B (Qwen3.5-9B)", _SARA, "82.7 84.6 80.2   79.0 82.8 74.2   80.5 81.4"),
    ("RICE-7B (MLCD-seg)", _RICE, "83.6 85.3 81.5   79.4 82.9 75.6   79.9 80.5"),
    ("LENS-3B", _LENS, "84.2 85.3 81.0   79.4 82.8 74.3   81.2 81.0"),
    ("DeRIS-L (no LLM)", _DERIS, "85.41 86.49 82.87   79.01 82.34 74.41   77.65 80.12"),
    ("X-SAM (Phi-3-3.8B)", _XSAM, "85.1 87.1 83.4   78.0 81.0 74.4   83.8 83.9"),
    ("SAM 3 Agent (Gemini 2.5 Pro, zero shot)", _LENS_TABLE, "74.9 77.8 69.9   66.9 71.1 62.4   73.3 73.6"),
)

# System, source, split, and gIoU, cIoU, N-acc, T-acc on it.
_GENERALIZED = (
    ("SAM4MLLM (LLaVA-NeXT 8B)", _TABULATED, "val", "71.86 67.83 66.08 -"),
    ("SAM4MLLM (LLaVA-NeXT 8B)", _MLLMSEG_TABLE, "testA", "74.2 72.2 - -"),
    ("SAM4MLLM (LLaVA-NeXT 8B)", _MLLMSEG_TABLE, "testB", "65.3 63.4 - -"),
    ("LISA-7B ft", _TABULATED, "val", "61.6 61.8 54.7 -"),
    ("GSVA-7B ft", _GSVA, "val", "66.43 63.19 62.56 99.62"),
    ("GSVA-7B ft", _GSVA, "testA", "71.06 69.87 65.72 98.69"),
    ("GSVA-7B ft", _GSVA, "testB", "62.20 60.35 60.72 99.10"),
    ("Text4Seg (InternVL2 + SAM)", _TABULATED, "val", "74.4 69.1 - -"),
    ("Text4Seg-13B + SAM", _LATER, "val", "74.8 69.8 - -"),
    ("MLLMSeg-8B", _MLLMSEG_GRES, "val", "75.1 71.6 73.2 -"),
    ("MLLMSeg-8B", _MLLMSEG_GRES, "testA", "77.0 76.9 72.4 -"),
    ("MLLMSeg-8B", _MLLMSEG_GRES, "testB", "69.7 68.5 65.5 -"),
    ("STAMP-7B", _STAMP_GRES, "val", "77.6 73.6 - -"),
    ("STAMP-7B", _STAMP_GRES, "testA", "77.6 77.2 - -"),
    ("STAMP-7B", _STAMP_GRES, "testB", "71.4 71.6 - -"),
    ("DeRIS-L (no LLM)", f"{_DERIS}, score threshold 0.9", "val", "77.67 72.00 82.22 -"),
    ("DeRIS-L (no LLM)", f"{_DERIS}, score threshold 0.9", "testA", "75.30 73.73 78.30 -"),
    ("DeRIS-L (no LLM)", f"{_DERIS}, score threshold 0.9", "testB", "67.99 67.38 66.81 -"),
)

# System, source, split, and gIoU and cIoU on it.
_REASONING = (
    ("SAM4MLLM (LLaVA-NeXT 8B)", "Seg-Zero's table 9", "val", "46.7 48.1"),
    ("LISA-7B ft", _LISA, "val", "52.9 54.0"),
    ("LISA-7B ft", _LISA, "test", "47.3 48.4"),
    ("LISA-7B-LLaVA1.5 ft", _LISA, "val", "61.3 62.9"),
    ("LISA-7B-LLaVA1.5 ft", _LISA, "test", "55.6 56.9"),
    ("Seg-Zero-7B", _SEG_ZERO, "val", "62.6 62.0"),
    ("Seg-Zero-3B", _LENS_PAPER, "test", "56.1 48.6"),
    ("UniPixel-7B", _UNIPIXEL, "val", "60.5 58.7"),
    ("LENS-3B", _LENS, "val", "62.1 64.9"),
    ("LENS-3B", _LENS_PAPER, "test", "57.2 58.0"),
    ("X-SAM (Phi-3-3.8B)", "wanghao9610/X-SAM", "val", "56.6 32.9"),
    ("X-SAM (Phi-3-3.8B)", "wanghao9610/X-SAM", "test", "57.8 41.0"),
    ("SARA-9B (Qwen3.5-9B)", _SARA, "val", "64.8 68.4"),
    ("SARA-9B (Qwen3.5-9B)", _SARA, "test", "59.8 61.7"),
    ("STAMP-2B", "HKUST-LongGroup/STAMP", "val", "65.1 63.9"),
    ("STAMP-2B", "HKUST-LongGroup/STAMP", "test", "62.7 60.9"),
    ("SAM 3 Agent (Qwen2.5-VL-7B)", _LENS_STAR_TABLES, "val", "65.4 50.5"),
    ("SAM 3 Agent (Qwen2.5-VL-7B)", _LENS_STAR_TABLES, "test", "62.6 56.2"),
    ("SAM 3 Agent (Qwen2.5-VL-72B)", _STAR_TABLE, "test", "71.8 65.2"),
    ("VisionReasoner-7B", _STAR_TABLE, "test", "63.6 55.7"),
    ("GenSeg-R1-4B", "abstract of arXiv 2602.09701", "test", "68.40 -"),
    ("StAR-7B", _STAR, "test", "67.5 61.3"),
    ("StAR-7B + vote", _STAR, "test", "68.5 65.0"),
    ("StAR-8B (Qwen3-VL-8B)", _STAR, "test", "70.6 63.8"),
    ("StAR-8B (Qwen3-VL-8B) + vote", _STAR, "test", "71.8 66.5"),
    ("StAR-32B + vote", _STAR, "test", "72.7 68.1"),
)


def published(dataset: str, split: str) -> list[PublishedRow]:
    """Return the published rows for one split of a data set, in the order of the tables; none for any other data."""
    return [row for row in _rows() if (row.dataset, row.split) == (dataset, split)]


def _rows() -> Iterator[PublishedRow]:
    for system, source, printed in _REFERRING:
        for (dataset, split), figure in zip(_SPLITS, printed.split(), strict=True):
            if figure != "-":
                yield _row(system, dataset, split, source, ciou=figure)
    for system, source, split, printed in _GENERALIZED:
        giou, ciou, n_acc, t_acc = printed.split()
        yield _row(system, "grefcoco", split, source, giou=giou, ciou=ciou, n_acc=n_acc, t_acc=t_acc)
    for system, source, split, printed in _REASONING:
        giou, ciou = printed.split()
        yield _row(system, "reasonseg", split, source, giou=giou, ciou=ciou)


def _row(system: str, dataset: str, split: str, source: str, **printed: str) -> PublishedRow:
    figures = {name: None if figure == "-" else float(figure) for name, figure in printed.items()}
    text_only, coco_masks = _PROPERTIES.get(system, (None, None))
    return PublishedRow(system, dataset, split, source, **figures, text_only=text_only, coco_masks=coco_masks)
