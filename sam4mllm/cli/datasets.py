"""`check`, `convert` and `shapes`: subcommands that read or write data sets."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from sam4mllm.cli.options import (
    add_dataset_options,
    add_json_option,
    add_limit_option,
    data_arguments,
    errors_name_options,
    non_negative_int,
    positive_int,
)
from sam4mllm.cli.output import STDOUT, write_json
from sam4mllm.cli.subcommand import Subcommand


def _convert_options(parser: ArgumentParser) -> None:
    add_dataset_options(parser)
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="FILE.jsonl")
    add_limit_option(parser)
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave bad records out and count them, instead of ending with an error"
    )


def _convert(options: Namespace) -> int:
    from sam4mllm.data.readers.jsonl import write_jsonl
    from sam4mllm.data.reading import read_dataset
    from sam4mllm.data.records import file_exists

    with errors_name_options():
        samples = read_dataset(options.dataset, **data_arguments(options), skip_bad=options.skip_bad)
    write_jsonl(samples, options.output)
    images = dict.fromkeys(sample.image for sample in samples)
    print(f"{options.output}: {len(samples)} phrases about {len(images)} images")
    if missing := [image for image in images if not file_exists(image)]:
        print(
            f"note: {len(missing)} of the {len(images)} images do not exist, the first one is {missing[0]}; name their "
            "folder with --images, or download them before training",
            file=sys.stderr,
        )
    return 0


def _check_options(parser: ArgumentParser) -> None:
    add_dataset_options(parser, with_chat=True)
    parser.add_argument(
        "--task",
        choices=("segment", "region-caption", "grounded-caption", "chat"),
        help="what the data are read for; default: the data set's usual task",
    )
    add_limit_option(parser)
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="also write a page (index.html) of problems and drawn samples"
    )
    parser.add_argument(
        "--samples", type=positive_int, default=40, metavar="N", help="samples on the page (default: 40)"
    )
    parser.add_argument(
        "--examples", type=positive_int, default=5, metavar="N", help="problems listed of each kind (default: 5)"
    )
    add_json_option(parser, "also write all problems to FILE as one JSON object; - is standard output")


def _check(options: Namespace) -> int:
    """Report everything that is wrong with a data set; the exit status is 1 when something is."""
    from sam4mllm.training.check import check_dataset, write_page

    with errors_name_options():
        check = check_dataset(options.dataset, **data_arguments(options), task=options.task)
    if options.json != STDOUT:
        print(check.summary(options.examples), end="")
    write_json(check.to_json(), options.json)
    if options.output is not None:
        page = write_page(check, options.output, limit=options.samples, examples=options.examples)
        print(page, file=sys.stderr if options.json == STDOUT else sys.stdout)
    return 1 if check.problems else 0


def _shapes_options(parser: ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", type=Path)
    parser.add_argument("--scenes", type=positive_int, default=200, metavar="N", help="training scenes (default: 200)")
    parser.add_argument("--seed", type=non_negative_int, default=0, metavar="N", help="default: 0")


def _shapes(options: Namespace) -> int:
    from sam4mllm.synthetic.writer import write_dataset

    write_dataset(options.directory, scenes=options.scenes, seed=options.seed)
    print(options.directory)
    return 0


CHECK = Subcommand(
    "check",
    "list all problems of a data set: bad records, masks and boxes, and images that are missing or damaged",
    _check_options,
    _check,
    detail="Reads every record and decodes every image. Of a record with several problems the first is listed. Without "
    "--split, all splits are checked. The exit status is 1 if there is a problem.",
)

CONVERT = Subcommand(
    "convert",
    "write a data set as one JSONL file, the format of custom data",
    _convert_options,
    _convert,
    detail="Reads every supported data set. Images are not copied: the file refers to them where they are, by relative "
    "paths if they are in its folder.",
)

SHAPES = Subcommand(
    "shapes",
    "write the generated data set to a folder, in the formats of RefCOCO, gRefCOCO and ReasonSeg",
    _shapes_options,
    _shapes,
)
