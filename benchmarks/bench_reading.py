"""Time the reading of a data set of RefCOCO's size: our reader and, as baseline, pickle, json and pycocotools.

    python benchmarks/bench_reading.py --json runs/bench/reading.json

The files are generated: 50,000 refs with 142,000 sentences, 20,000 images and 197,000 annotated objects. The split
train is read, which has 120,000 sentences. The baseline is the code of UNC's `refer` package: it unpickles refs(unc).p,
parses instances.json, and encodes the polygons of each ref as RLE; it checks nothing. Ours checks each record, the
header of each image, and each mask and box. "another process of the machine" gets the samples from the process that
has read them, as the processes of `torchrun` do. "same" is the share of samples with the baseline's id, phrase and
masks.
"""

from __future__ import annotations

import argparse
import json
import pickle
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pycocotools import mask as coco
from refcoco_size import REFS, SENTENCES_A_REF, write_refcoco
from script import Figures, add_size, parser_of, report
from timing import compare

from sam4mllm.data.reading import read_dataset
from sam4mllm.utils.shared_result import read_shared, write_shared

SPLIT = "train"

Read = list[tuple[str, str, tuple[str, ...]]]


def plain(root: Path) -> list[dict[str, Any]]:
    """Read the split with pickle, json and pycocotools, unchecked."""
    with (root / "refcoco/refs(unc).p").open("rb") as file:
        refs = pickle.load(file, encoding="latin1")
    instances = json.loads((root / "refcoco/instances.json").read_text(encoding="utf-8"))
    images = {image["id"]: image for image in instances["images"]}
    annotations = {annotation["id"]: annotation for annotation in instances["annotations"]}
    samples = []
    for ref in refs:
        if ref["split"] != SPLIT:
            continue
        image, annotation = images[ref["image_id"]], annotations[ref["ann_id"]]
        mask = coco.merge(coco.frPyObjects(annotation["segmentation"], image["height"], image["width"]))
        samples += [
            {
                "id": f"refcoco/{SPLIT}/{ref['ref_id']}/{sentence['sent_id']}",
                "image": root / "images/mscoco/images/train2014" / image["file_name"],
                "phrase": sentence["sent"],
                "mask": mask,
                "box": annotation["bbox"],
            }
            for sentence in ref["sentences"]
        ]
    return samples


def same(theirs: Sequence[Any], ours: Sequence[Any]) -> float:
    """Return the share of equal samples; of lists of different lengths 0."""
    first, second = _summary(theirs), _summary(ours)
    return sum(map(tuple.__eq__, first, second)) / len(first) if len(first) == len(second) else 0.0


def _summary(samples: Sequence[Any]) -> Read:
    """Return id, phrase and the counts of the masks of each sample of either reader."""
    if isinstance(samples[0], dict):
        return [(each["id"], each["phrase"], (each["mask"]["counts"].decode(),)) for each in samples]
    return [(each.id, each.phrase, tuple(item.rle["counts"] for item in each.objects)) for each in samples]


def run(options: argparse.Namespace) -> Figures:
    """Return the settings and the rows of all variants."""
    with tempfile.TemporaryDirectory(prefix="bench-reading-") as folder:
        root = Path(folder)
        write_refcoco(root, options.refs, options.seed)
        ours = partial(read_dataset, "refcoco", root, SPLIT)
        samples = ours()
        shared = write_shared(samples, root)
        rows = compare(
            "read",
            {
                "pickle, json and pycocotools": partial(plain, root),
                "sam4mllm": ours,
                "sam4mllm, another process of the machine": partial(read_shared, shared, ours),
            },
            items=len(samples),
            item="sample",
            repeats=options.repeats,
            device=options.device,
            same=same,
        )
    settings = {"refs": options.refs, "samples": len(samples), "sentences": int(SENTENCES_A_REF * options.refs)}
    return settings, rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and print the figures."""
    parser = parser_of(__doc__)
    add_size(parser, "--refs", "refs in the files", default=REFS, small=2000)
    report(parser, run, arguments)


if __name__ == "__main__":
    main()
