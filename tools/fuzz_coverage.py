"""Search with a coverage-guided fuzzer (atheris) for texts and files that break what reads them.

    make fuzz                                               # both targets, 10 minutes each, in .venv-quality
    .venv-quality/bin/python tools/fuzz_coverage.py lines --seconds 60

The targets:

- answers: the answer parser, with the checks of `fuzz_answers.py`, in every coordinate format;
- lines: the readers of queries.jsonl and predictions.jsonl. A file is read or raises one of the package's errors, and
  what was read is read again from the lines that are written of it.

atheris (libFuzzer) mutates inputs and keeps those that reach new branches of the instrumented modules. It is not a
dependency of the package. The search ends at the first fault, with exit status 77 and the input in --faults.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

INSTRUMENTED = (
    "fuzz_answers",
    "sam4mllm.geometry",
    *(f"sam4mllm.prompts.{name}" for name in ("coordinates", "grammar")),
    *(f"sam4mllm.data.{name}" for name in ("file_kinds", "masks", "predictions", "records")),
)
MOST_BYTES = 1000
SECONDS_OF_ONE_INPUT = 5
MOST_LINES_OF_ERROR = 12
MOST_PIXELS = 1 << 20

# Every import of the package is in a function, so that `main` can instrument the modules while they are imported.


class FaultError(Exception):
    """An input that was not handled as documented; the message names what is wrong."""


def check_answer(data: bytes) -> None:
    """Parse an answer: the first two bytes select coordinate format and image size, the others are the text.

    Raises:
        FaultError: See `fuzz_answers.problem`.
    """
    fuzz_answers = importlib.import_module("fuzz_answers")
    # Bytes that are not UTF-8 become lone surrogates.
    text = data[2:].decode("utf-8", "surrogateescape")
    which, size = (*data[:2], 0, 0)[:2]
    coordinates = fuzz_answers.FORMATS[which % len(fuzz_answers.FORMATS)]
    size_wh = fuzz_answers.SIZES_WH[size % len(fuzz_answers.SIZES_WH)]
    wrong, _ = fuzz_answers.problem(text, coordinates, size_wh)
    if wrong is not None:
        raise FaultError(f"{text!r} for {coordinates} and {size_wh}: {wrong}")


def answer_seeds() -> Iterable[bytes]:
    """Return answers of every coordinate format."""
    fuzz_answers = importlib.import_module("fuzz_answers")
    for index, coordinates in enumerate(fuzz_answers.FORMATS):
        yield from (bytes([index, 0]) + text.encode() for text in fuzz_answers.seeds(coordinates))


class _FileInMemory:
    """A file with some content in the place of a path: a file system is a hundred times slower."""

    suffix = ".jsonl"

    def __init__(self, content: bytes) -> None:
        self.content = content

    def open(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self.content)

    def __str__(self) -> str:
        return "lines.jsonl"


def check_lines(data: bytes) -> None:
    """Read a file as queries.jsonl and as predictions.jsonl.

    Raises:
        FaultError: What was read cannot be written, read again, or decoded.
    """
    from sam4mllm.data.json_lines import dump_line
    from sam4mllm.data.masks import decode
    from sam4mllm.data.predictions import read_predictions
    from sam4mllm.data.query_files import read_queries
    from sam4mllm.errors import Sam4mllmError

    for read in (read_queries, read_predictions):
        try:
            records: list[Any] = list(read(cast(Path, _FileInMemory(data))))
        except Sam4mllmError as error:
            if len(lines := str(error).splitlines()) > MOST_LINES_OF_ERROR:
                raise FaultError(f"an error of {len(lines)} lines: {error}") from error
            continue
        text = "".join(map(dump_line, records))
        if records and "".join(map(dump_line, read(cast(Path, _FileInMemory(text.encode()))))) != text:
            raise FaultError(f"other lines when they are read again: {text}")
        for item in (item for record in records for item in getattr(record, "objects", ())):
            height, width = item.segmentation["size"]
            if height * width < MOST_PIXELS and decode(item.segmentation).shape != (height, width):
                raise FaultError(f"a mask of another size: {item.segmentation}")


def line_seeds() -> Iterable[bytes]:
    """Return lines of queries and predictions of every status."""
    from sam4mllm.data.json_lines import dump_line
    from sam4mllm.data.predictions import PredictedObject, PredictionLine, Query
    from sam4mllm.geometry import Box, Point, SamPrompt

    prompt = SamPrompt(Box(1, 2, 3, 4), (Point(2.5, 3.5, 1), Point(0.5, 0.5, 0)))
    item = PredictedObject({"size": [4, 5], "counts": "52203"}, prompt, 0.5)
    yield dump_line(Query("q1", Path("a.png"), "the red ring")).encode()
    yield dump_line(PredictionLine("q1", "ok", (item, item), Path("a.png"), "it", "[1,2,3,4]", score=0.5)).encode()
    for status in ("no_object", "malformed", "error"):
        yield dump_line(PredictionLine("q2", status, error="a reason")).encode()
    runs = {"size": [2, 3], "counts": [1, 2, 3]}
    yield json.dumps({"id": "q3", "status": "ok", "objects": [{"segmentation": runs}]}).encode()


TARGETS: dict[str, tuple[Callable[[bytes], None], Callable[[], Iterable[bytes]]]] = {
    "answers": (check_answer, answer_seeds),
    "lines": (check_lines, line_seeds),
}


def write_seeds(folder: Path, seeds: Iterable[bytes]) -> None:
    """Write each seed to a file of the corpus."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds):
        (folder / f"seed-{number:03d}").write_bytes(seed)


def write_dictionary(file: Path, pieces: Iterable[str]) -> None:
    """Write pieces of text that the fuzzer inserts, in libFuzzer's format."""
    encoded = [piece.encode("utf-8", "surrogatepass") for piece in pieces]
    lines = ('"' + "".join(f"\\x{byte:02x}" for byte in each) + '"' for each in encoded if len(each) <= 64)
    file.write_text("\n".join(lines) + "\n", encoding="ascii")


def main(arguments: Sequence[str] | None = None) -> int:
    """Fuzz one target for some seconds; libFuzzer prints its counts and ends the process."""
    parser = argparse.ArgumentParser(description="Coverage-guided fuzzing of the answer parser and of JSON lines.")
    parser.add_argument("target", choices=tuple(TARGETS))
    parser.add_argument("--seconds", type=int, default=600, help="of the search (default 600)")
    parser.add_argument("--seed", type=int, default=1, help="of the mutations; 0 is a random one (default 1)")
    parser.add_argument("--corpus", type=Path, metavar="DIR", help="keep the inputs here, and continue with them")
    parser.add_argument("--faults", type=Path, metavar="DIR", default=Path(), help="for inputs with faults (default .)")
    options = parser.parse_args(arguments)
    try:
        atheris = importlib.import_module("atheris")
    except ImportError:
        raise SystemExit("fuzz_coverage.py needs atheris: run make fuzz, which installs it in .venv-quality") from None
    # The hook of regular expressions cannot be used: its patterns have no `match` from a position.
    atheris.enabled_hooks.add("str")
    with tempfile.TemporaryDirectory() as name, atheris.instrument_imports(include=INSTRUMENTED):
        folder = Path(name)
        pieces = importlib.import_module("fuzz_answers").PIECES
        check, seeds = TARGETS[options.target]
        corpus = options.corpus or folder / "corpus"
        write_seeds(corpus, seeds())
        write_dictionary(folder / "pieces.txt", pieces)
        options.faults.mkdir(parents=True, exist_ok=True)
        limits = [f"-max_total_time={options.seconds}", f"-max_len={MOST_BYTES}", f"-timeout={SECONDS_OF_ONE_INPUT}"]
        places = [f"-dict={folder / 'pieces.txt'}", f"-artifact_prefix={options.faults}/", str(corpus)]
        atheris.Setup([sys.argv[0], f"-seed={options.seed}", "-print_final_stats=1", *limits, *places], check)
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
