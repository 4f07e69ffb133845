"""`segment` and `predict`: subcommands that answer queries about one image or many."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sam4mllm.cli.options import (
    add_batch_option,
    add_dataset_options,
    add_json_option,
    add_model_options,
    data_arguments,
    errors_name_options,
    given_data_options,
    pipeline_arguments,
    positive_int,
)
from sam4mllm.cli.output import STDOUT, check_image_files, print_summary, write_json
from sam4mllm.cli.subcommand import Subcommand
from sam4mllm.errors import DataError, LaunchError

if TYPE_CHECKING:
    from sam4mllm.data.predictions import Query
    from sam4mllm.pipeline.batch import BatchSummary
    from sam4mllm.pipeline.pipeline import Pipeline
    from sam4mllm.pipeline.plan import PipelineOptions
    from sam4mllm.utils.progress import Advance

_LOSSLESS = (".png", ".bmp", ".tif", ".tiff")
"""Suffixes of the image formats that keep every pixel of a mask as it is."""


def _segment_options(parser: ArgumentParser) -> None:
    add_model_options(parser)
    parser.set_defaults(batch_size=1)
    parser.add_argument("image", metavar="IMAGE", type=Path)
    parser.add_argument("phrase", metavar="PHRASE")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE.png", help="the image with masks and prompts")
    parser.add_argument("--mask", type=Path, metavar="FILE.png", help="the union of the masks alone, as 0 and 255")
    add_json_option(parser, "the answer as one line of predictions.jsonl; - is standard output")


def _segment(options: Namespace) -> int:
    """Segment one image; the exit status is 1 when the model's answer is malformed."""
    from sam4mllm.data.images import load_image
    from sam4mllm.data.predictions import Query
    from sam4mllm.data.records import check_not_empty, check_phrase
    from sam4mllm.pipeline.result import prediction_line
    from sam4mllm.viz.drawing import mask_image, save_image

    # 1. Check arguments and files before a model is loaded, which may take minutes.
    check_phrase(check_not_empty(options.phrase, "PHRASE"), "PHRASE")
    image = load_image(options.image)
    check_image_files(options.output, options.mask)
    if options.mask is not None and options.mask.suffix.lower() not in _LOSSLESS:
        raise DataError(f"{options.mask}: this format would not keep a mask's 0 and 255; use .png")

    # 2. Segment the image.
    result = _load_pipeline(options)(image, options.phrase)

    # 3. Print the answer, and write the requested files.
    if options.json != STDOUT:
        count = len(result.prompts)
        headlines = {
            "ok": f"{count} object{'' if count == 1 else 's'}",
            "no_object": "no object",
            "malformed": f"malformed answer: {result.reason}",
        }
        print(f"{headlines[result.status]}\n{result.answer}")
    if options.output is not None:
        save_image(result.draw(image, long_side=384), options.output)
    if options.mask is not None:
        save_image(mask_image(result.mask.cpu().numpy()), options.mask)
    if options.json is not None:
        write_json(prediction_line(Query("", options.image, options.phrase), result).to_json(), options.json)
    return 1 if result.status == "malformed" else 0


def _predict_options(parser: ArgumentParser) -> None:
    add_model_options(parser)
    parser.add_argument(
        "queries",
        metavar="QUERIES",
        nargs="?",
        type=Path,
        help='a file of lines {"id", "image", "phrase"}, or .parquet with these columns; or a folder, with --phrase',
    )
    parser.add_argument(
        "--phrase",
        action="append",
        default=[],
        metavar="TEXT",
        help="for a folder: a phrase that is asked about each image; may be given several times",
    )
    add_dataset_options(parser, required=False)
    parser.add_argument("--output", required=True, type=Path, metavar="DIR")
    add_batch_option(parser)
    parser.add_argument(
        "--ray",
        nargs="?",
        const="local",
        metavar="ADDRESS",
        help="answer on a Ray cluster, by default the one that runs on this machine or is in RAY_ADDRESS, else a new "
        "one; needs pip install 'sam4mllm[ray]'",
    )
    parser.add_argument(
        "--ray-workers", type=positive_int, metavar="N", help="default: one per GPU, or one per machine without GPUs"
    )
    add_json_option(parser)


def _predict(options: Namespace) -> int:
    """Answer the queries of a file, a folder or a data set; the exit status is 1 when a query has status "error"."""
    from sam4mllm.pipeline.batch import predict
    from sam4mllm.utils.progress import bar

    _check_ray(options)
    queries = _read_queries(options)
    processes = options.processes
    pipeline = None if options.ray else _load_pipeline(options)
    with bar("predict", len(queries), unit="phrases", shown=processes.is_main) as advance:
        if pipeline is None:
            summary = _predict_on_cluster(options, queries, advance)
        else:
            summary = predict(pipeline, queries, options.output, advance=advance, processes=processes)
    if not processes.is_main:
        return 0
    print_summary(summary)
    write_json(summary.to_json(), options.json)
    return 1 if summary.error else 0


def _read_queries(options: Namespace) -> list[Query]:
    """Read the queries of a file, of a folder of images and `--phrase`, or of the data set of `--dataset`."""
    from sam4mllm.data.folder_queries import folder_queries
    from sam4mllm.data.predictions import queries_of
    from sam4mllm.data.query_files import read_queries
    from sam4mllm.data.reading import read_dataset

    source: Path | None = options.queries
    if (source is None) == (options.dataset is None):
        raise DataError("predict reads either QUERIES or a data set named by --dataset; give one of them")
    is_folder = source is not None and source.is_dir()
    if is_folder and not options.phrase:
        raise DataError(f"{source}: is a folder; give a phrase about its images: --phrase TEXT")
    if options.phrase and not is_folder:
        raise DataError(f"--phrase: is about a folder of images, but {source or '--dataset'} has phrases of its own")
    if source is None:
        arguments = data_arguments(options)
        with errors_name_options():
            return options.processes.compute_on_machine(lambda: queries_of(read_dataset(options.dataset, **arguments)))
    if given := ", ".join(given_data_options(options)):
        raise DataError(f"{given}: belongs to a data set, but {source} is not one; leave it out")
    return folder_queries(source, options.phrase) if is_folder else read_queries(source)


def _check_ray(options: Namespace) -> None:
    """Check the options of a cluster before any work.

    Raises:
        DataError: They contradict each other.
        LaunchError: The subcommand was started by a launcher.
    """
    if options.ray is None:
        if options.ray_workers is not None:
            raise DataError("--ray-workers: is for a Ray cluster; give --ray as well")
        return
    if options.processes.world_size > 1:
        raise LaunchError("--ray starts processes itself; give the command without torchrun or accelerate")
    if Path(options.ray).exists():
        raise DataError(f"--ray {options.ray}: is a file, and the address of a cluster was expected; give --ray last")


def _predict_on_cluster(options: Namespace, queries: Sequence[Query], advance: Advance) -> BatchSummary:
    from sam4mllm.pipeline.cluster import predict_on_cluster

    arguments = pipeline_arguments(options)
    return predict_on_cluster(
        partial(_from_pretrained, options.run, options.adapter, arguments),
        queries,
        options.output,
        address=options.ray,
        workers=options.ray_workers,
        use_gpus=options.device != "cpu" and options.server is None,
        advance=advance,
    )


def _load_pipeline(options: Namespace) -> Pipeline:
    return _from_pretrained(options.run, options.adapter, pipeline_arguments(options))


def _from_pretrained(run: str, adapter: str | None, arguments: PipelineOptions) -> Pipeline:
    from sam4mllm.pipeline.pipeline import Pipeline

    return Pipeline.from_pretrained(run, adapter, **arguments)


SEGMENT = Subcommand(
    "segment",
    "segment one image",
    _segment_options,
    _segment,
    detail="Prints the answer; -o writes the image with masks, boxes and points, --mask the mask alone.",
)

PREDICT = Subcommand(
    "predict",
    "segment many images",
    _predict_options,
    _predict,
    detail="Answers a file of queries, phrases about a folder of images, or all queries of a data set. Writes "
    'DIR/predictions.jsonl; resumes from complete shards. A query that cannot be answered gets status "error"; all '
    "others are answered, and the exit status is 1.",
    distributed=True,
    resumes=True,
)
