"""`app`: a page in the browser."""

from __future__ import annotations

import sys
import threading
from argparse import ArgumentParser, Namespace
from pathlib import Path

from sam4mllm.cli.options import (
    add_address_options,
    add_batch_option,
    add_model_options,
    pipeline_arguments,
    positive_int,
)
from sam4mllm.cli.subcommand import Subcommand
from sam4mllm.errors import DataError, ModelError
from sam4mllm.utils.atomic_io import check_folder_of


def _app_options(parser: ArgumentParser) -> None:
    add_model_options(parser)
    add_batch_option(parser)
    add_address_options(parser, 7860)
    parser.add_argument("--compare", metavar="RUN", help="a second run folder or base model, to show beside the first")
    parser.add_argument(
        "--root",
        type=Path,
        metavar="DIR",
        help="folder of folders of images for the tab `Folder`; default: no such tab",
    )
    parser.add_argument(
        "--save",
        type=Path,
        default=Path("corrections.jsonl"),
        metavar="FILE.jsonl",
        help="the data set that corrected answers are added to, with their images in images/ beside it "
        "(default: corrections.jsonl)",
    )
    parser.add_argument(
        "--max-upload", type=positive_int, default=20, metavar="MIB", help="largest image file in MiB (default: 20)"
    )


def _app(options: Namespace) -> int:
    """Serve until the process is interrupted."""
    # Before the models are loaded, which takes long.
    if options.root is not None and not options.root.is_dir():
        raise DataError(f"{options.root}: no such folder; --root is the folder of folders with images")
    if options.save.exists() and not options.save.is_file():
        raise DataError(f"{options.save}: is not a file; --save is a data set in JSONL")
    check_folder_of(options.save)
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ModelError("the page needs gradio: pip install 'sam4mllm[app]'") from error
    from sam4mllm.app.answers import Models
    from sam4mllm.app.limits import Limits
    from sam4mllm.app.page import serving
    from sam4mllm.app.saving import CorrectedData
    from sam4mllm.evaluation.suite import home_of
    from sam4mllm.pipeline.pipeline import Pipeline

    arguments = pipeline_arguments(options)
    pipelines = {str(options.run): Pipeline.from_pretrained(options.run, options.adapter, **arguments)}
    if options.compare is not None:
        title = options.compare if options.compare != options.run else f"{options.compare} (2)"
        pipelines[title] = Pipeline.from_pretrained(options.compare, device=arguments["device"], dtype=options.dtype)
    home = home_of(options.run)
    with serving(
        Models(pipelines),
        CorrectedData(options.save),
        root=options.root,
        home=home if home.is_dir() else None,
        host=options.host,
        port=options.port,
        limits=Limits(upload_bytes=options.max_upload * 2**20),
    ) as address:
        print(f"page at {address}; stop it with Ctrl-C", file=sys.stderr, flush=True)
        threading.Event().wait()
    return 0


APP = Subcommand(
    "app",
    "show a page in the browser: segment, correct and save answers, browse evaluations",
    _app_options,
    _app,
    detail="Corrected answers are added to the data set FILE.jsonl, which `train` reads. The page is for trusted "
    "users: with --host it is open to all who reach the address. Needs gradio: pip install 'sam4mllm[app]'.",
)
