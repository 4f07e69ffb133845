"""Options that several subcommands share, and the arguments of the Python API that they stand for.

Heavy modules are imported inside functions, so that `sam4mllm --help` starts fast.
"""

from __future__ import annotations

import argparse
import math
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam4mllm.data.registry import DATASETS, LOCATION_KEYS, dataset_names, scored_dataset_names
from sam4mllm.errors import ArgumentError, DataError

if TYPE_CHECKING:
    from sam4mllm.pipeline.plan import PipelineOptions

_OPTION_OF_KEY = {key: f"--{key.replace('_', '-')}" for key in (*LOCATION_KEYS, "limit", "task", "chat_images")}
_OPTION_OF_KEY["columns"] = "--column"
"""The option for each argument of the Python API that locates data."""


def add_model_options(parser: ArgumentParser) -> None:
    """Add RUN, and the options that change how its model is loaded and how it generates."""
    parser.add_argument("run", metavar="RUN", help="a run folder, or a base model (a folder, a Hub id, or `shapes`)")
    parser.add_argument("--adapter", metavar="DIR", help="a LoRA adapter for a base model")
    parser.add_argument(
        "--segmenter",
        metavar="CHECKPOINT",
        help="SAM checkpoint (.pth, folder, Hub id or `shapes`); default: the run's",
    )
    add_device_option(parser)
    add_dtype_option(parser)
    parser.add_argument(
        "--no-merge-adapter",
        dest="merge_adapter",
        action="store_const",
        const=False,
        help="keep the adapter's layers, which takes longer for each answer; default: merge them into the weights, "
        "unless these are quantized",
    )
    parser.add_argument(
        "--constrained",
        action=argparse.BooleanOptionalAction,
        help="generate only tokens that can become an answer, so that no answer is malformed unless cut off; vLLM "
        "and SGLang do it for --server; default: the run's generation.constrained",
    )
    parser.add_argument(
        "--votes",
        type=positive_int,
        default=1,
        metavar="N",
        help="draw N answers to each phrase at random and merge them by their majority (default: 1, one answer by "
        "greedy decoding)",
    )
    parser.add_argument(
        "--temperature",
        type=positive_float,
        metavar="T",
        help="with --votes: logits are divided by T before an answer is drawn (default: 0.5)",
    )
    parser.add_argument(
        "--server",
        metavar="URL",
        help="generate with an OpenAI-compatible server (vLLM, SGLang, transformers serve) instead of RUN's model; "
        "needs the openai package: pip install 'sam4mllm[serving]'",
    )
    parser.add_argument(
        "--server-model", metavar="NAME", help="the model's name on the server; default: the only one that it serves"
    )


def pipeline_arguments(options: Namespace) -> PipelineOptions:
    """Return the arguments of `Pipeline.from_pretrained` that `add_model_options` and `add_batch_option` stand for."""
    return {
        "device": options.processes.device(options.device),
        "dtype": options.dtype,
        "segmenter": options.segmenter,
        "batch_size": options.batch_size,
        "server": options.server,
        "server_model": options.server_model,
        "merge_adapter": options.merge_adapter,
        "constrained": options.constrained,
        "votes": options.votes,
        "temperature": options.temperature,
    }


def add_dtype_option(parser: ArgumentParser) -> None:
    """Add `--dtype`, of the MLLM."""
    parser.add_argument(
        "--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"), help="default: the checkpoint's"
    )


def add_device_option(parser: ArgumentParser) -> None:
    """Add `--device`."""
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 ...; default: cuda if there is one")


def add_dataset_options(
    parser: ArgumentParser, *, several: bool = False, required: bool = True, with_chat: bool = False
) -> None:
    """Add the options that name and locate a data set; `DataEntry` checks which of them each data set needs."""
    custom = ", ".join(dataset_names("custom"))
    if several:
        parser.add_argument(
            "--dataset",
            required=True,
            action="append",
            choices=(*(dataset_names() if with_chat else scored_dataset_names()), "all"),
            help=f"data set; may be repeated; all: every benchmark with a folder in the root; {custom} are custom data",
        )
        parser.add_argument(
            "--split",
            action="append",
            default=[],
            help="val, testA, testB, test ...; may be repeated; default: every split except train",
        )
    else:
        parser.add_argument(
            "--dataset",
            required=required,
            choices=dataset_names() if with_chat else scored_dataset_names(),
            help=f"data set; {custom} are custom data",
        )
        parser.add_argument("--split", help="val, testA, testB, test ...")
    parser.add_argument(
        "--root",
        type=Path,
        metavar="DIR",
        help="folder that holds refcoco/refs(unc).p and instances.json, grefcoco/, ReasonSeg/ and "
        "images/mscoco/images/train2014/",
    )
    parser.add_argument(
        "--path",
        type=Path,
        metavar="FILE",
        help="custom data, instead of --root and --split: the JSONL, COCO's instances, the export of a labeling "
        "program, or the folder of a data set of `datasets`",
    )
    parser.add_argument("--phrases", type=Path, metavar="FILE", help="for coco: the file of phrases")
    parser.add_argument(
        "--column",
        action="append",
        metavar="OURS=THEIRS",
        help="for hub: the column of image, phrase, masks or mask, boxes or bbox, id",
    )
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="folder of the images; default: the data set's usual one"
    )
    parser.add_argument(
        "--split-by", metavar="NAME", help="the NAME in refs(NAME).p; default: unc, but umd for refcocog"
    )


def data_arguments(options: Namespace) -> dict[str, Any]:
    """Return the arguments of `read_dataset` that `add_dataset_options` stands for; the name is in `--dataset`."""
    arguments = {key: getattr(options, key, None) for key in (*LOCATION_KEYS, "limit")}
    columns = [column.partition("=")[::2] for column in options.column or ()]
    return arguments | {"columns": dict(columns) or None}


def given_data_options(options: Namespace) -> list[str]:
    """Return the given options among those that locate a data set, such as `--root`."""
    return [_OPTION_OF_KEY[key] for key, value in data_arguments(options).items() if value]


@contextmanager
def errors_name_options() -> Iterator[None]:
    """Turn errors about arguments of the Python API ("split_by: ...") into errors about options ("--split-by: ...").

    Raises:
        DataError: The `ArgumentError` that was raised, with the option's name.
    """
    try:
        yield
    except ArgumentError as error:
        # "columns.phrase" is a column's name in the option --column.
        option = _OPTION_OF_KEY.get(error.argument.partition(".")[0])
        if option is None:
            raise
        raise DataError(f"{option}: {error.problem}") from error


def add_score_options(parser: ArgumentParser) -> None:
    """Add the options of the evaluation protocol."""
    parser.add_argument(
        "--protocol",
        choices=tuple(dict.fromkeys(row.protocol for row in DATASETS.values() if row.protocol)),
        help="default: the data set's own, as published; grefcoco for custom data",
    )
    parser.add_argument(
        "--min-pixels",
        type=positive_int,
        default=1,
        metavar="N",
        help='a smaller mask counts as "no object" (default: 1)',
    )


def add_recipe_options(parser: ArgumentParser) -> None:
    """Add RECIPE and its overrides."""
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, or the name of a recipe of the package")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings that replace the recipe's: training.max_steps=100"
    )


def add_json_option(
    parser: ArgumentParser, help: str = "also write the figures to FILE as one JSON object; - is standard output"
) -> None:
    """Add `--json`; the folder of its file is checked before a subcommand starts."""
    parser.add_argument("--json", metavar="FILE", help=help)


def add_limit_option(
    parser: ArgumentParser, help: str = "use only the first N phrases", default: int | None = None
) -> None:
    """Add `--limit`, a number of samples."""
    parser.add_argument("--limit", type=positive_int, default=default, metavar="N", help=help)


def add_batch_option(parser: ArgumentParser) -> None:
    """Add `--batch-size`."""
    parser.add_argument(
        "--batch-size", type=positive_int, metavar="N", help="answers generated at once (default: the run's)"
    )


def add_address_options(parser: ArgumentParser, port: int, *, any_free: bool = False) -> None:
    """Add `--host` and `--port`, whose default is `port`; with `any_free`, port 0 is allowed, for any free one."""
    lowest = 0 if any_free else 1

    def parse(text: str) -> int:
        if not text.isdecimal() or not lowest <= int(text) <= 65535:
            raise argparse.ArgumentTypeError(f"expected a number from {lowest} to 65535; got {text!r}")
        return int(text)

    parser.add_argument("--host", default="127.0.0.1", help="the address to listen at (default: this machine alone)")
    help = f"default: {port}" + ("; 0 is any free port" if any_free else "")
    parser.add_argument("--port", type=parse, default=port, help=help)


def positive_int(text: str) -> int:
    """Parse an integer of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of 1 or more; got {text!r}")
    return value


def non_negative_int(text: str) -> int:
    """Parse an integer of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected an integer of 0 or more; got {text!r}")
    return int(text)


def positive_float(text: str) -> float:
    """Parse a finite number above 0."""
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0; got {text!r}")
    return value


def share(text: str) -> float:
    """Parse a number from 0 to 1."""
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1; got {text!r}")
    return value


def _number(text: str) -> float:
    """Parse a number; NaN for text that is not one, which no range contains."""
    try:
        return float(text)
    except ValueError:
        return math.nan
