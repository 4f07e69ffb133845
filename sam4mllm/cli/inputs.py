"""What the verbs' options mean: pipelines, targets, data sets, and places to write to. This module runs no stage.

Everything heavy is imported late, as in `commands.py`.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam4mllm.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sam4mllm.data.entry import DataEntry
    from sam4mllm.data.readers.chat import Dialogue
    from sam4mllm.data.sample import Sample
    from sam4mllm.evaluate.suite import Suite
    from sam4mllm.pipeline.batch import BatchSummary
    from sam4mllm.pipeline.pipeline import Pipeline
    from sam4mllm.recipe.schema import Recipe
    from sam4mllm.targets.store import TargetStore


def pipeline_of(options: Namespace) -> Pipeline:
    from sam4mllm.pipeline.pipeline import Pipeline
    from sam4mllm.segmenters.fallback import BoxFallback

    given = BoxFallback(options.fallback_margin, options.fallback_outside)
    return Pipeline.from_pretrained(
        options.run,
        options.adapter,
        device=options.processes.device(options.device),
        dtype=options.dtype,
        segmenter=options.segmenter,
        batch_size=options.batch_size,
        server=options.server,
        server_model=options.server_model,
        fallback=given if given.is_on else None,
    )


def targets_of(recipe: Recipe, samples: Sequence[Sample], options: Namespace) -> TargetStore:
    """The targets of `samples`, computed where the store lacks them."""
    from sam4mllm.segmenters.loading import load_segmenter
    from sam4mllm.targets.prepare import compute_targets
    from sam4mllm.targets.settings import TargetSettings
    from sam4mllm.utils.device import resolve_device

    settings = TargetSettings.from_recipe(recipe)
    device = resolve_device(options.processes.device(options.device))
    segmenter = load_segmenter(recipe.segmenter.checkpoint, device, recipe.segmenter.dtype)
    return compute_targets(samples, segmenter, settings, recipe.targets.store, options.processes)


def samples_of(options: Namespace) -> list[Sample]:
    from sam4mllm.data.registry import read_samples

    return read_samples(entry_of(options))


def suite_of(options: Namespace) -> Suite:
    """What `evaluate` evaluates: benchmarks under a root, or one set of data of one's own."""
    from sam4mllm.data.entry import OWN_SETS
    from sam4mllm.evaluate.suite import Suite, choose_suite

    own = set(options.dataset).intersection(OWN_SETS)
    if own and (len(options.dataset) > 1 or len(options.split) > 1):
        raise DataError(f"{min(own)} is evaluated alone; give one --dataset and at most one --split")
    if own:
        single = {"dataset": options.dataset[0], "split": options.split[0] if options.split else None}
        return Suite((entry_of(Namespace(**{**vars(options), **single})),), named=True)
    if options.root is None:
        raise DataError(f"--root: is missing; {', '.join(options.dataset)} needs the folder of the data sets' folders")
    for key in ("path", "phrases", "column"):
        if getattr(options, key) is not None:
            raise DataError(f"--{key}: has no meaning for {', '.join(options.dataset)}; give --root and --split")
    return choose_suite(
        options.dataset,
        options.split,
        options.root,
        images=options.images,
        split_by=options.split_by,
        limit=options.limit,
    )


DATA_OPTIONS = ("root", "split", "split_by", "path", "phrases", "column", "images", "limit")
"""The options that say where a data set is, and how much of it is meant; `--dataset` names it."""


def entry_of(options: Namespace) -> DataEntry:
    """The options of a data set as a recipe's data entry, checked by the same rules."""
    import pydantic

    from sam4mllm.data.entry import DataEntry

    keys = ("dataset", *DATA_OPTIONS)
    settings = {key: value for key in keys if (value := getattr(options, key, None)) is not None}
    if columns := settings.pop("column", None):
        settings["columns"] = dict(column.partition("=")[::2] for column in columns)
    try:
        return DataEntry.model_validate(settings)
    except pydantic.ValidationError as error:
        found = error.errors(include_url=False)[0]
        # A section's own validators lead their line with the key, which is the option.
        said = str(found["ctx"]["error"]) if found["type"] == "value_error" else f"column: {found['msg']}"
        raise DataError(f"--{said.replace('_', '-', 1) if said.startswith('split_by') else said}") from None


def chats_of(options: Namespace) -> list[Dialogue]:
    """The chat file of the options, read before any work is done."""
    from sam4mllm.data.entry import DataEntry
    from sam4mllm.data.registry import read_dialogues

    if options.chat is None:
        if options.chat_images is not None:
            raise DataError("--chat-images: has no meaning without --chat; name the chat file")
        return []
    return read_dialogues(DataEntry(dataset="chat", path=options.chat, images=options.chat_images))


def tell(summary: BatchSummary) -> None:
    """How a batch run ended, on standard error, which stays readable when standard output is a program's."""
    print(
        f"{summary.total} predictions in {summary.predictions}: {summary.ok} ok, {summary.no_object} no object, "
        f"{summary.malformed} malformed, {summary.error} errors",
        file=sys.stderr,
    )


def write_json(record: dict[str, Any], place: str | None) -> None:
    """The record as JSON into the file `place`, or to standard output for "-"; nothing for None."""
    if place is None:
        return
    text = json.dumps(record, indent=2, allow_nan=False) + "\n"
    if place == "-":
        sys.stdout.write(text)
        return
    try:
        Path(place).write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{place}: cannot be written: {error.strerror}") from error


def check_json_place(place: str | None) -> None:
    """Makes sure, before any work is done, that there is a folder for the file of `--json`.

    Raises:
        DataError: a folder that is missing.
    """
    if place not in (None, "-") and not Path(place).absolute().parent.is_dir():
        raise DataError(f"{place}: its folder {Path(place).parent} does not exist; make it first")


def check_not_read(place: Path | None, source: Path | None, what: str) -> None:
    """Makes sure that the file which a verb reads is not the one that it writes.

    Raises:
        DataError: it is; `what` says which file that is, and what to do.
    """
    if place is not None and source is not None and place.exists() and source.exists() and place.samefile(source):
        raise DataError(f"{place}: {what}")


def check_image_places(*places: Path | None) -> None:
    """Makes sure, before any work is done, that images can be written to `places`.

    Raises:
        DataError: a folder that is missing, or an ending that names no image format.
    """
    from PIL import Image

    endings = {ending for ending, format in Image.registered_extensions().items() if format in Image.SAVE}
    for place in places:
        if place is None:
            continue
        if not place.parent.is_dir():
            raise DataError(f"{place}: its folder {place.parent} does not exist; make it first")
        if place.suffix.lower() not in endings:
            raise DataError(f"{place}: {place.suffix or 'no ending'} names no image format; take .png or .jpg")
