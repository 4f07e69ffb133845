"""The options that verbs share, and the parser that they stand in. This module knows no verb."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

DATASETS = ("refcoco", "refcoco+", "refcocog", "grefcoco", "reasonseg", "shapes", "jsonl", "coco", "hub")

_ROOT_HELP = (
    "folder that holds refcoco/refs(unc).p and instances.json, grefcoco/, ReasonSeg/ and "
    "images/mscoco/images/train2014/"
)
_JSON_HELP = "also write the figures to FILE as one JSON object; - is standard output"


class Parser(argparse.ArgumentParser):
    """argparse's parser with one line per error, and the nearest name for a mistyped one."""

    def error(self, message: str) -> NoReturn:
        verb = self.prog.partition(" ")[2]
        see = f"sam4mllm {verb} --help".replace("  ", " ")
        self.exit(2, f"sam4mllm: error: {message} (see `{see}`)\n")

    def known_options(self) -> list[str]:
        return [option for action in self._actions for option in action.option_strings]


def nearest_to(given: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run folder, or a base model (a folder, a Hub id, or `shapes`)")
    parser.add_argument("--adapter", metavar="DIR", help="a LoRA adapter for a base model")
    parser.add_argument(
        "--segmenter",
        metavar="CHECKPOINT",
        help="SAM checkpoint (.pth, folder, Hub id or `shapes`); default: the run's",
    )
    engine_options(parser)


def engine_options(parser: argparse.ArgumentParser) -> None:
    """Where and how the model of RUN answers."""
    device_option(parser)
    dtype_option(parser)
    parser.add_argument(
        "--server",
        metavar="URL",
        help="an OpenAI-compatible server (vLLM, SGLang, transformers serve) that answers in place of RUN's model",
    )
    parser.add_argument("--server-model", metavar="NAME", help="its name for the model; default: the only one it has")
    parser.add_argument(
        "--fallback-margin",
        type=share,
        metavar="X",
        help="take the box's mask where SAM thinks it better than that of box and points by more than this IoU; this "
        "and --fallback-outside replace the run's own settings",
    )
    parser.add_argument(
        "--fallback-outside",
        type=share,
        metavar="X",
        help="take the box's mask where more than this share of the other lies outside the box",
    )


def dtype_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"), help="default: the checkpoint's"
    )


def device_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 ...; default: cuda where there is one")


def dataset_options(parser: argparse.ArgumentParser, *, several: bool = False, required: bool = True) -> None:
    """Where a data set is; what each of them needs is checked with the rest of a recipe's data entry."""
    if several:
        parser.add_argument(
            "--dataset",
            required=True,
            action="append",
            choices=(*DATASETS, "all"),
            help="which data set; may be repeated; all: every benchmark that the root holds; jsonl, coco and hub are "
            "data of your own",
        )
        parser.add_argument(
            "--split",
            action="append",
            default=[],
            help="val, testA, testB, test ...; may be repeated; default: every split that is not for training",
        )
    else:
        parser.add_argument(
            "--dataset",
            required=required,
            choices=DATASETS,
            help="which data set; jsonl, coco and hub are data of your own",
        )
        parser.add_argument("--split", help="val, testA, testB, test ...")
    parser.add_argument("--root", type=Path, metavar="DIR", help=_ROOT_HELP)
    parser.add_argument(
        "--path",
        type=Path,
        metavar="FILE",
        help="data of your own, in place of --root and --split: the JSONL, COCO's instances, or the folder of a data "
        "set of `datasets`",
    )
    parser.add_argument("--phrases", type=Path, metavar="FILE", help="for coco: the file of phrases")
    parser.add_argument(
        "--column",
        action="append",
        metavar="OURS=THEIRS",
        help="for hub: the column of image, phrase, masks or mask, boxes or bbox, id",
    )
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="folder of the images, where it is not the usual one"
    )
    parser.add_argument("--split-by", metavar="NAME", help="whose split: refs(NAME).p; default: unc, for refcocog umd")


def score_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--protocol",
        choices=("refcoco", "grefcoco", "reasonseg"),
        help="default: the data set's own, as published; grefcoco for data of your own",
    )
    parser.add_argument(
        "--min-pixels", type=positive, default=1, metavar="N", help="a smaller mask counts as no target (default: 1)"
    )


def recipe_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe", metavar="RECIPE", help="a YAML file, or the name of a recipe that travels with sam4mllm"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings that replace the recipe's: training.max_steps=100"
    )


def json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", metavar="FILE", help=_JSON_HELP)


def batch_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--batch-size", type=positive, metavar="N", help="questions generated at once (default: the run's)"
    )


def positive(text: str) -> int:
    """A whole number of at least 1; argparse turns the ValueError into its message."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more; got {text}")
    return value


def whole(text: str) -> int:
    """A whole number of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number of 0 or more; got {text!r}")
    return int(text)


def share(text: str) -> float:
    """A number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1; got {text}")
    return value


def above_zero(text: str) -> float:
    """A finite number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0; got {text}")
    return value
