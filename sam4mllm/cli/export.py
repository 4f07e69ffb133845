"""`export`: write predictions in the file formats of other programs."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from sam4mllm.cli.options import add_json_option, share
from sam4mllm.cli.output import write_json
from sam4mllm.cli.subcommand import Subcommand
from sam4mllm.export.formats import FORMATS, LOCAL_FILES


def _export_options(parser: ArgumentParser) -> None:
    parser.add_argument("predictions", metavar="PREDICTIONS.jsonl", type=Path, help="of `predict` or another program")
    parser.add_argument("--to", required=True, choices=tuple(FORMATS), help="the format")
    files = ", ".join(name for name, row in FORMATS.items() if not row.is_folder)
    parser.add_argument(
        "--output", required=True, type=Path, metavar="PATH", help=f"a new folder; for {files} the file to write"
    )
    parser.add_argument(
        "--phrase-as",
        choices=("category", "attribute"),
        default="category",
        help="whether the phrase is an object's category, or an attribute of the category `object` (default: category)",
    )
    parser.add_argument(
        "--min-score", type=share, metavar="X", help="leave out objects whose score is below X; default: keep all"
    )
    parser.add_argument(
        "--url-prefix",
        default=LOCAL_FILES,
        metavar="URL",
        help="for labelstudio: the beginning of the images' URLs (default: that of local files)",
    )
    add_json_option(parser)


def _export(options: Namespace) -> int:
    from sam4mllm.export.export import export_predictions

    counts = export_predictions(
        options.predictions,
        options.to,
        options.output,
        as_attribute=options.phrase_as == "attribute",
        min_score=options.min_score,
        url_prefix=options.url_prefix,
    )
    left_out = {
        "unanswered queries": counts.unanswered,
        "objects below --min-score": counts.below,
        "masks without a pixel": counts.empty,
    }
    notes = "".join(f"; {count} {name} left out" for name, count in left_out.items() if count)
    print(
        f"{options.output}: {counts.instances} masks of {counts.phrases} phrases about {counts.images} images{notes}",
        file=sys.stderr,
    )
    write_json(counts.to_json(), options.json)
    return 0


EXPORT = Subcommand(
    "export",
    "write predictions as COCO, YOLO, Label Studio, CVAT, PNG or FiftyOne",
    _export_options,
    _export,
    detail="Each mask is an instance with its phrase and its score. Images are not copied; the files refer to them.",
)
