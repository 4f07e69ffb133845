"""`push`: upload a run to the Hugging Face Hub."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from sam4mllm.cli.options import add_json_option
from sam4mllm.cli.output import STDOUT, write_json
from sam4mllm.cli.subcommand import Subcommand


def _push_options(parser: ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", type=Path, help="the run folder of a finished training, or a merged one")
    parser.add_argument("repo_id", metavar="USER/NAME", help="the repository; it is created if it does not exist")
    parser.add_argument("--private", action="store_true", help="create a private repository")
    parser.add_argument("--dry-run", action="store_true", help="list the files and print the model card, send nothing")
    add_json_option(parser, "also write the files and their sizes to FILE as one JSON object; - is standard output")


def _push(options: Namespace) -> int:
    from sam4mllm.evaluation.push import plan_upload, send

    upload = plan_upload(options.run, options.repo_id)
    record = upload.to_json()
    for note in upload.notes:
        print(f"note: {note}", file=sys.stderr)
    if options.json != STDOUT:
        for name, size in record["files"].items():
            print(f"{name}  {size} bytes")
    if options.dry_run:
        if upload.card is not None and options.json != STDOUT:
            print(f"\n{upload.card}", end="")
    else:
        print(send(upload, private=options.private), file=sys.stderr)
    write_json(record, options.json)
    return 0


PUSH = Subcommand(
    "push",
    "upload a run to the Hugging Face Hub, with a model card",
    _push_options,
    _push,
    detail="Uploads the adapter or the merged model, the method, the recipe, the calibration and a model card with "
    "data, figures, protocol and licenses; a README.md in RUN replaces the card. `segment` and `predict` take "
    "USER/NAME as RUN, and so does `Pipeline.from_pretrained`.",
)
