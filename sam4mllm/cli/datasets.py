"""`convert` and `shapes`: subcommands that write data sets."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from sam4mllm.cli.options import (
    add_dataset_options,
    add_limit_option,
    data_arguments,
    errors_name_options,
    non_negative_int,
    positive_int,
)
from sam4mllm.cli.subcommand import Subcommand


def _convert_options(parser: ArgumentParser) -> None:
    add_dataset_options(parser)
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="FILE.jsonl")
    add_limit_option(parser)


def _convert(options: Namespace) -> int:
    from sam4mllm.data.readers.jsonl import write_jsonl
    from sam4mllm.data.reading import read_dataset

    with errors_name_options():
        samples = read_dataset(options.dataset, **data_arguments(options))
    write_jsonl(samples, options.output)
    print(f"{options.output}: {len(samples)} phrases about {len({sample.image for sample in samples})} images")
    return 0


def _shapes_options(parser: ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", type=Path)
    parser.add_argument("--scenes", type=positive_int, default=200, metavar="N", help="training scenes (default: 200)")
    parser.add_argument("--seed", type=non_negative_int, default=0, metavar="N", help="default: 0")


def _shapes(options: Namespace) -> int:
    from sam4mllm.synthetic.writer import write_dataset

    write_dataset(options.directory, scenes=options.scenes, seed=options.seed)
    print(options.directory)
    return 0


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
