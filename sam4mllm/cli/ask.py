"""`ask`: the subcommand that asks a question about an image, or about regions of it, and prints the answer."""

from __future__ import annotations

import argparse
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from sam4mllm.cli.options import add_json_option, add_model_options, pipeline_arguments
from sam4mllm.cli.output import STDOUT, check_image_files, write_json
from sam4mllm.cli.subcommand import Subcommand
from sam4mllm.errors import DataError

if TYPE_CHECKING:
    from sam4mllm.geometry import Box


def _ask_options(parser: ArgumentParser) -> None:
    add_model_options(parser)
    parser.set_defaults(batch_size=1)
    parser.add_argument("image", metavar="IMAGE", type=Path)
    parser.add_argument("question", metavar="QUESTION", help="may hold <region>, once for each --box")
    parser.add_argument(
        "--box",
        dest="boxes",
        type=_box,
        action="append",
        default=[],
        metavar="x1,y1,x2,y2",
        help="the box of a <region> in the question, in pixels of the image; may be repeated",
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE.png", help="the image with what the answer marks and the boxes"
    )
    add_json_option(parser, "the answer and the boxes and masks that it marks as one JSON object; - is standard output")


def _ask(options: Namespace) -> int:
    """Ask one question; the exit status is 1 when the answer was cut off."""
    from sam4mllm.data.images import load_image
    from sam4mllm.pipeline.ask import question_about
    from sam4mllm.pipeline.pipeline import Pipeline
    from sam4mllm.viz.drawing import save_image

    # 1. Check arguments and files before a model is loaded, which may take minutes.
    if options.votes > 1 or options.constrained:
        raise DataError("--votes and --constrained are for answers about a phrase; ask answers in text, leave them out")
    image = load_image(options.image)
    question_about(image, options.question, options.boxes)
    check_image_files(options.output)

    # 2. Ask.
    arguments = pipeline_arguments(options)
    arguments["constrained"] = False
    pipeline = Pipeline.from_pretrained(options.run, options.adapter, **arguments)
    result = pipeline.ask(image, options.question, options.boxes)

    # 3. Print the answer with the number of each mark, then the boxes, and write the requested files.
    if options.json != STDOUT:
        print(result.numbered())
        for number, mark in enumerate(result.marks, start=1):
            print(f"[{number}] {','.join(f'{value:.1f}' for value in mark.box)}")
    if options.output is not None:
        save_image(result.draw(image, options.boxes, long_side=384), options.output)
    if options.json is not None:
        asked = {"image": str(options.image), "question": options.question, "boxes_xyxy": options.boxes}
        write_json({**asked, **result.to_json()}, options.json)
    if not result.finished:
        print(
            f"the answer was cut off at {pipeline.max_new_tokens} tokens (generation.max_new_tokens)", file=sys.stderr
        )
    return 0 if result.finished else 1


def _box(text: str) -> Box:
    """Parse "x1,y1,x2,y2"."""
    from sam4mllm.geometry import Box

    try:
        x1, y1, x2, y2 = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected x1,y1,x2,y2 in pixels; got {text!r}") from None
    return Box(x1, y1, x2, y2)


ASK = Subcommand(
    "ask",
    "ask a question about an image or a region",
    _ask_options,
    _ask,
    detail="Prints the answer and the boxes that it marks; -o writes the image with their masks. Models answer the "
    "kinds of questions that they were trained on: chat, 'What is at <region>?', 'Describe the image, and mark each "
    "object that you name.'",
)
