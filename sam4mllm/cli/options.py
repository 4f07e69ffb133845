"""What subcommands share: the parser, the record of a subcommand, the common options and what they stand for.

Everything heavy is imported inside functions, so that `sam4mllm --help` answers at once.
"""

from __future__ import annotations

import argparse
import difflib
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from sam4mllm.data.registry import DATASETS, LOCATION_KEYS, dataset_names, scored_dataset_names
from sam4mllm.errors import DataError

if TYPE_CHECKING:
    from sam4mllm.data.entry import DataEntry
    from sam4mllm.pipeline.pipeline import Pipeline

_OPTION_OF_KEY = {key: f"--{key.replace('_', '-')}" for key in (*LOCATION_KEYS, "limit")} | {"columns": "--column"}
"""The options that locate a data set and select a part of it, by the keys of a recipe's data entry."""


@dataclass(frozen=True, slots=True)
class Subcommand:
    """One subcommand: its name, its help texts, its options and its action.

    `run` returns the exit status: 0, or 1 when part of the work failed. It imports what it needs itself. `distributed`
    subcommands share their work among the processes of a launcher (`torchrun -m sam4mllm NAME ...`); `resumes` is True
    where the same command continues interrupted work.
    """

    name: str
    help: str
    add_options: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], int]
    detail: str = ""
    distributed: bool = False
    resumes: bool = False

    def add_to(self, subparsers: argparse._SubParsersAction[Parser]) -> None:
        """Add the parser of this subcommand."""
        parser = subparsers.add_parser(
            self.name,
            help=self.help,
            description=f"{self.help[0].upper()}{self.help[1:]}. {self.detail}".strip(),
            allow_abbrev=False,
        )
        self.add_options(parser)


class Parser(ArgumentParser):
    """argparse's parser with one line per error, and the nearest known name for a mistyped one."""

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with status 2."""
        subcommand = self.prog.partition(" ")[2]
        usage = f"sam4mllm {subcommand} --help".replace("  ", " ")
        self.exit(2, f"sam4mllm: error: {message} (see `{usage}`)\n")

    def option_names(self) -> list[str]:
        """All option strings of this parser, such as `--device`."""
        return [option for action in self._actions for option in action.option_strings]


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Return "; did you mean X?" for the known name that is closest to `name`, or "" when none is close."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def add_model_options(parser: ArgumentParser) -> None:
    """Add RUN, and everything that changes how its model is loaded and answers."""
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
        "--server",
        metavar="URL",
        help="generate with an OpenAI-compatible server (vLLM, SGLang, transformers serve) instead of RUN's model",
    )
    parser.add_argument(
        "--server-model", metavar="NAME", help="the model's name on the server; default: the only one that it serves"
    )
    parser.add_argument(
        "--fallback-margin",
        type=fraction,
        metavar="X",
        help="use the mask of the box alone where SAM predicts that its IoU is higher by more than X than that of box "
        "and points; this and --fallback-outside replace the run's own settings",
    )
    parser.add_argument(
        "--fallback-outside",
        type=fraction,
        metavar="X",
        help="use the mask of the box alone where more than this share of the other mask is outside the box",
    )


def load_pipeline(options: Namespace) -> Pipeline:
    """Load the pipeline that `add_model_options` and `add_batch_option` describe."""
    from sam4mllm.pipeline.pipeline import Pipeline
    from sam4mllm.segmenters.fallback import BoxFallback

    fallback = BoxFallback(options.fallback_margin, options.fallback_outside)
    return Pipeline.from_pretrained(
        options.run,
        options.adapter,
        device=options.processes.device(options.device),
        dtype=options.dtype,
        segmenter=options.segmenter,
        batch_size=options.batch_size,
        server=options.server,
        server_model=options.server_model,
        fallback=fallback if fallback.enabled else None,
    )


def add_dtype_option(parser: ArgumentParser) -> None:
    """Add `--dtype`, of the MLLM."""
    parser.add_argument(
        "--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"), help="default: the checkpoint's"
    )


def add_device_option(parser: ArgumentParser) -> None:
    """Add `--device`."""
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 ...; default: cuda if there is one")


def add_dataset_options(parser: ArgumentParser, *, several: bool = False, required: bool = True) -> None:
    """Add the options that name and locate a data set; `DataEntry` checks which of them each data set needs."""
    custom = ", ".join(dataset_names("custom"))
    if several:
        parser.add_argument(
            "--dataset",
            required=True,
            action="append",
            choices=(*scored_dataset_names(), "all"),
            help=f"which data set; may be repeated; all: every benchmark that is in the root; {custom} are custom data",
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
            choices=scored_dataset_names(),
            help=f"which data set; {custom} are custom data",
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
        help="custom data, instead of --root and --split: the JSONL, COCO's instances, or the folder of a data set of "
        "`datasets`",
    )
    parser.add_argument("--phrases", type=Path, metavar="FILE", help="for coco: the file of phrases")
    parser.add_argument(
        "--column",
        action="append",
        metavar="OURS=THEIRS",
        help="for hub: the column of image, phrase, masks or mask, boxes or bbox, id",
    )
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="folder of the images, if it is not the data set's usual one"
    )
    parser.add_argument(
        "--split-by", metavar="NAME", help="the author of the split: refs(NAME).p; default: unc, for refcocog umd"
    )


def data_entry(options: Namespace) -> DataEntry:
    """Return the data set of the options as a recipe's data entry, checked by the same rules.

    Raises:
        DataError: an option that the data set needs is missing, or one that it does not take is given.
    """
    from sam4mllm.data.entry import make_entry

    settings = {key: getattr(options, key, None) for key in _OPTION_OF_KEY if key != "columns"}
    if options.column:
        settings["columns"] = dict(column.partition("=")[::2] for column in options.column)
    try:
        return make_entry(dataset=options.dataset, **settings)
    except DataError as error:
        # The message begins with the key.
        key, _, problem = str(error).partition(": ")
        raise DataError(f"{_OPTION_OF_KEY[key.partition('.')[0]]}: {problem}") from None


def given_data_options(options: Namespace) -> list[str]:
    """Return those of the options that locate a data set which are given, as `--root`."""
    attributes = {"columns": "column"}
    return [option for key, option in _OPTION_OF_KEY.items() if getattr(options, attributes.get(key, key), None)]


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


def positive_int(text: str) -> int:
    """Parse an integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of 1 or more; got {text}")
    return value


def non_negative_int(text: str) -> int:
    """Parse an integer of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected an integer of 0 or more; got {text!r}")
    return int(text)


def fraction(text: str) -> float:
    """Parse a number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1; got {text}")
    return value


def positive_float(text: str) -> float:
    """Parse a finite number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0; got {text}")
    return value
