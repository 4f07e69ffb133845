"""Time the start of the program: `sam4mllm --help`, and `sam4mllm segment` on the embedded models.

    python benchmarks/bench_start.py --json runs/bench/start.json

Each run is a process of its own, timed from its start to its end on files that the system has cached. The baseline of
--help is Python without any import; that of `segment` is a process that imports torch, torchvision, transformers and
segment_anything, and computes nothing: the difference is the loading of the embedded models and the answer.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from PIL import Image
from script import Figures, parser_of, report
from timing import Row, compare

from sam4mllm.synthetic.scenes import make_scene

PHRASE = "the red ring"
LIBRARIES = "import torch, torchvision, segment_anything; from transformers import AutoProcessor"


def start(*arguments: str) -> str:
    """Run Python with arguments, and return its standard output.

    Raises:
        CalledProcessError: Its exit status is neither 0 nor 1, which a malformed answer has.
    """
    # The embedded models are files of the package, so nothing is looked up on the Hub.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    job = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)
    if job.returncode not in (0, 1):
        raise subprocess.CalledProcessError(job.returncode, job.args, job.stdout, job.stderr)
    return job.stdout


def run(options: argparse.Namespace) -> Figures:
    """Return the settings and the rows of --help and of segment."""
    compared = partial(compare, items=1, item="start", repeats=options.repeats, device="cpu")
    rows: list[Row] = compared(
        "--help",
        {
            "python, no import": partial(start, "-c", "pass"),
            "sam4mllm --help": partial(start, "-m", "sam4mllm", "--help"),
        },
    )
    with tempfile.TemporaryDirectory(prefix="bench-start-") as folder:
        image = Path(folder, "scene.png")
        Image.fromarray(make_scene(options.seed).image).save(image)
        segment = ("-m", "sam4mllm", "segment", "shapes", str(image), PHRASE, "--device", options.device)
        rows += compared(
            "segment",
            {
                "python, imports of the libraries": partial(start, "-c", LIBRARIES),
                "sam4mllm segment shapes": partial(start, *segment),
            },
        )
    return {"phrase": PHRASE}, rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and print the figures."""
    report(parser_of(__doc__), run, arguments)


if __name__ == "__main__":
    main()
