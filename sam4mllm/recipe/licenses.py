"""The licenses of base models, segmenters and data sets, as their sources state them; docs/licenses.md shows them.

The rows were read in November 2026. A license may change, and a table is no legal advice: the source decides.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sam4mllm.data.entry import DataEntry
from sam4mllm.data.registry import is_generated
from sam4mllm.recipe.schema import Recipe

Use = Literal["yes", "with conditions", "no", "not stated"]


@dataclass(frozen=True, slots=True)
class License:
    """The license of one or several models or data sets.

    Attributes:
        name: What the row is about, in messages and in the page.
        pattern: A regular expression that matches their Hub ids, names of checkpoints, or names of data sets.
        license: The license, or what is known about it.
        commercial: Whether commercial use is allowed.
        gated: Whether access has to be requested or terms accepted before the download; None if it is not known.
        source: Where it is stated.
    """

    name: str
    pattern: str
    license: str
    commercial: Use
    gated: bool | None
    source: str

    def matches(self, name: str) -> bool:
        """Return whether the row is about the model or data set of this name."""
        return re.fullmatch(self.pattern, name, re.IGNORECASE) is not None


_HUB = "https://huggingface.co/"
_EMBEDDED = License("shapes (embedded)", "shapes(-locations)?", "Apache-2.0", "yes", False, "this package")

BASES = (
    License("Qwen3-VL", r"qwen/qwen3-vl-.*", "Apache-2.0", "yes", False, f"{_HUB}Qwen/Qwen3-VL-8B-Instruct"),
    License("Qwen3.5", r"qwen/qwen3\.5-.*", "Apache-2.0", "yes", False, f"{_HUB}Qwen/Qwen3.5-9B"),
    License(
        "Qwen2.5-VL 3B",
        r"qwen/qwen2\.5-vl-3b-.*",
        "Qwen Research License",
        "no",
        False,
        f"{_HUB}Qwen/Qwen2.5-VL-3B-Instruct",
    ),
    License(
        "Qwen2.5-VL 7B", r"qwen/qwen2\.5-vl-7b-.*", "Apache-2.0", "yes", False, f"{_HUB}Qwen/Qwen2.5-VL-7B-Instruct"
    ),
    License(
        "InternVL3 8B",
        r"opengvlab/internvl3-8b.*",
        "MIT, with Qwen2.5 as a component under its own license",
        "with conditions",
        False,
        f"{_HUB}OpenGVLab/InternVL3-8B",
    ),
    License(
        "LLaVA-NeXT 8B (Llama 3)",
        r"llava-hf/llama3-llava-next-8b-hf",
        "Meta Llama 3 Community License",
        "with conditions",
        False,
        f"{_HUB}llava-hf/llama3-llava-next-8b-hf",
    ),
    License(
        "Gemma 3",
        r"google/gemma-3-.*",
        "Gemma Terms of Use",
        "with conditions",
        True,
        "https://ai.google.dev/gemma/terms",
    ),
    License("Gemma 4", r"google/gemma-4-.*", "Apache-2.0", "yes", None, "https://ai.google.dev/gemma/apache_2"),
    License(
        "LFM2 and LFM2.5",
        r"liquidai/lfm2.*",
        "LFM Open License v1.0: commercial use below 10 million US dollars of annual revenue",
        "with conditions",
        None,
        "https://docs.liquid.ai/lfm/getting-started/model-license",
    ),
    License(
        "FastVLM",
        r"apple/fastvlm-.*",
        "Apple Machine Learning Research Model License",
        "no",
        None,
        f"{_HUB}apple/FastVLM-1.5B",
    ),
    _EMBEDDED,
)

SEGMENTERS = (
    License(
        "SAM",
        r"sam_vit_[bhl]_.*\.pth|facebook/sam-vit-.*",
        "Apache-2.0",
        "yes",
        False,
        "https://github.com/facebookresearch/segment-anything",
    ),
    License("SAM-HQ", r".*/sam-hq-.*", "Apache-2.0", "yes", False, "https://github.com/SysCV/sam-hq"),
    License("SAM 2", r"facebook/sam2.*", "Apache-2.0", "yes", False, "https://github.com/facebookresearch/sam2"),
    License(
        "SAM 3",
        r"facebook/sam3.*",
        "SAM License, which excludes some uses",
        "with conditions",
        True,
        "https://github.com/facebookresearch/sam3",
    ),
    _EMBEDDED,
)

COCO = License(
    "COCO (images and masks)",
    "coco-images",
    "annotations CC BY 4.0; images under Flickr's terms, whose copyright COCO does not own",
    "with conditions",
    False,
    "https://cocodataset.org/#termsofuse",
)

DATASETS = (
    License(
        "RefCOCO, RefCOCO+ (phrases)",
        r"refcoco\+?",
        "none stated",
        "not stated",
        False,
        "https://github.com/lichengunc/refer",
    ),
    License(
        "RefCOCOg (phrases)",
        "refcocog",
        "CC BY 4.0 (Google's referring expressions)",
        "yes",
        False,
        "https://github.com/mjhucla/Google_Refexp_toolbox",
    ),
    License(
        "gRefCOCO (phrases)", "grefcoco", "none stated", "not stated", False, "https://github.com/henghuiding/gRefCOCO"
    ),
    COCO,
    License(
        "ReasonSeg",
        "reasonseg(-explanations)?",
        "none stated for the data",
        "not stated",
        False,
        "https://github.com/dvlab-research/LISA",
    ),
    License(
        "Flickr30k Entities",
        "flickr30k",
        "images for non-commercial research and education only, under Flickr's terms",
        "no",
        True,
        "https://github.com/BryanPlummer/flickr30k_entities",
    ),
    License(
        "Visual Genome",
        "visual-genome",
        "CC BY 4.0",
        "yes",
        False,
        "https://homes.cs.washington.edu/~ranjay/visualgenome",
    ),
    License("POPE (questions)", "pope", "MIT; RePOPE states none", "yes", False, "https://github.com/AoiDragon/POPE"),
    License(
        "LLaVA-Instruct",
        r"llava_instruct_.*\.json",
        "CC BY 4.0, and OpenAI's terms of use",
        "with conditions",
        False,
        f"{_HUB}datasets/liuhaotian/LLaVA-Instruct-150K",
    ),
    _EMBEDDED,
)


def license_lines(recipe: Recipe) -> list[str]:
    """Return a line for the base, the segmenter and each published data set of a recipe, for the log.

    Custom data have none, except files of LLaVA-Instruct, which are known by their name.
    """
    checkpoint = recipe.segmenter.checkpoint
    lines = [
        _line("base", recipe.model.base, _find(BASES, recipe.model.base)),
        _line("segmenter", checkpoint, _find(SEGMENTERS, checkpoint, Path(checkpoint).name)),
    ]
    found: dict[str, License] = {}
    for entry in recipe.data.train:
        for row in _of_data(entry):
            found.setdefault(row.name, row)
    return lines + [_line("data", name, row) for name, row in found.items()]


def markdown(rows: Sequence[License]) -> str:
    """Return a table of rows for docs/licenses.md."""
    gated = {True: "yes", False: "no", None: "not known"}
    head = "| what | license | commercial use | gated | source |\n|---|---|---|---|---|\n"
    return head + "".join(
        f"| {row.name} | {row.license} | {row.commercial} | {gated[row.gated]} | "
        f"{f'<{row.source}>' if row.source.startswith('https') else row.source} |\n"
        for row in rows
    )


def _find(rows: Sequence[License], *names: str) -> License | None:
    return next((row for row in rows if any(map(row.matches, names))), None)


def _of_data(entry: DataEntry) -> list[License]:
    if entry.root is not None and is_generated(entry.root):
        return [_EMBEDDED]
    row = _find(DATASETS, entry.dataset, *([] if entry.path is None else [entry.path.name]))
    return [*([] if row is None else [row]), *([COCO] if entry.row.coco_images else [])]


def _line(kind: str, name: str, row: License | None) -> str:
    if row is None and Path(name).expanduser().exists():
        return f"license of the {kind} {name}: that of the model that this file or folder was made from"
    if row is None:
        return (
            f"license of the {kind} {name}: not in docs/licenses.md; read its card before you publish or sell results"
        )
    return f"license of the {kind} {name}: {row.license} (commercial use: {row.commercial}; {row.source})"
