"""`label-studio`: the ML backend of Label Studio."""

from __future__ import annotations

import argparse
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from urllib.parse import urlsplit

from sam4mllm.cli.options import add_address_options, add_batch_option, add_model_options, pipeline_arguments
from sam4mllm.cli.subcommand import Subcommand
from sam4mllm.errors import DataError


def _label_studio_options(parser: ArgumentParser) -> None:
    add_model_options(parser)
    add_batch_option(parser)
    add_address_options(parser, 9090, any_free=True)
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of local images; no file outside it is read")
    parser.add_argument(
        "--label-studio-url",
        type=_url,
        default="http://localhost:8080",
        metavar="URL",
        help="the labeling server, from which uploaded images and annotated tasks are read "
        "(default: http://localhost:8080)",
    )
    parser.add_argument(
        "--allow-url",
        type=_url,
        action="append",
        default=[],
        metavar="URL",
        help="the beginning of other addresses whose images may be downloaded; may be repeated",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("label-studio"),
        metavar="DIR",
        help="where corrected data sets and downloaded images are kept (default: label-studio)",
    )


def _label_studio(options: Namespace) -> int:
    """Serve until the process is interrupted."""
    from sam4mllm.labeling.backend import LabelStudioBackend
    from sam4mllm.labeling.server import create_server
    from sam4mllm.labeling.task_images import TaskImages
    from sam4mllm.pipeline.pipeline import Pipeline

    if options.images is not None and not options.images.is_dir():
        raise DataError(f"{options.images}: no such folder; --images is the folder of local images")
    pipeline = Pipeline.from_pretrained(options.run, options.adapter, **pipeline_arguments(options))
    images = TaskImages(options.images, options.label_studio_url, options.allow_url, options.output / "images")
    backend = LabelStudioBackend(pipeline, images, options.output, Path(options.run).name)
    with create_server(backend, options.host, options.port) as server:
        host, port = server.server_address[:2]
        print(f"ML backend at http://{host!s}:{port}; stop it with Ctrl-C", file=sys.stderr, flush=True)
        server.serve_forever()
    return 0


def _url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise argparse.ArgumentTypeError(f"expected an address such as https://host/; got {text!r}")
    return text


LABEL_STUDIO = Subcommand(
    "label-studio",
    "serve as an ML backend of Label Studio, which pre-annotates tasks by their phrases",
    _label_studio_options,
    _label_studio,
    detail="A task's phrases are its data `phrase` and `phrases`, or else the labels of the project. When training is "
    "started in Label Studio, the corrected tasks are written to DIR/project-ID.jsonl, a data set for `train`.",
)
