"""Load test of `predict`: many queries, one percent of them broken, interrupted on the way, and its memory measured.

    OMP_NUM_THREADS=1 python tools/load_predict.py --images 2000 --json load.json

Each image has 10 queries. One percent of the images are truncated, empty, text, or missing, and one percent of the
answers are malformed. Answers are scripted and masks are the boxes of the answers, so that reading, decoding, writing
and merging are measured, and no model. The steps:

1. A file of queries of which one percent of the lines are broken is refused in one line, and nothing is written.
2. `predict` is interrupted by SIGINT twice, at 30 % and at 60 % of the answers; each time it ends with status 130.
3. It is resumed, and ends with status 1, because some images cannot be read: each query has one line.
4. With the images restored, it is run again, and ends with status 0.

The exit status is 1 if a step has another result, or if memory grows by more than `GROWTH_MIB` after the first tenth.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from sam4mllm.cli.main import main as run_subcommand
from sam4mllm.methods.registry import method_from_settings
from sam4mllm.mllm.engine import Reply
from sam4mllm.pipeline.pipeline import Pipeline
from sam4mllm.prompts.conversation import Conversation
from sam4mllm.recipe.schema import MethodSection
from sam4mllm.segmenters.fake import BoxSegmenter

QUERIES_PER_IMAGE = 10
BROKEN_EVERY = 100
GROWTH_MIB = 64.0
_SIZE_WH = (320, 240)
_ANSWER = "[100,100,399,499] +(200,200)(300,300) -(900,900)"
_MIB = 2**20


class LoadEngine:
    """An engine with one answer, or a malformed one where the question is marked; it measures memory.

    At each count of answers in `interrupt_at` it sends SIGINT to its process.
    """

    def __init__(self, total: int, interrupt_at: Sequence[int] = ()) -> None:
        self.answers = 0
        self.interrupted_at = 0.0
        self.memory_mib: list[tuple[float, float]] = []
        self._total = total
        self._interrupt_at = list(interrupt_at)

    def generate(self, conversations: Sequence[Conversation], max_new_tokens: int) -> list[Reply]:
        """Answer; `max_new_tokens` does not cut answers off."""
        self.answers += len(conversations)
        self.memory_mib.append((self.answers / self._total, memory_mib()))
        if self._interrupt_at and self.answers >= self._interrupt_at[0]:
            self._interrupt_at.pop(0)
            self.interrupted_at = time.perf_counter()
            os.kill(os.getpid(), signal.SIGINT)
        return [Reply("who knows" if "riddle" in each.turns[-1].text else _ANSWER) for each in conversations]


def memory_mib() -> float:
    """Return the resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / _MIB


def write_image(file: Path, number: int) -> None:
    """Write an image of one color, which depends on its number."""
    Image.new("RGB", _SIZE_WH, (number % 256, number // 256 % 256, 128)).save(file)


def break_image(file: Path, number: int) -> None:
    """Truncate, empty or remove an image, or replace it with text."""
    content = file.read_bytes()
    replacements = (content[: len(content) // 2], b"", b"not an image")
    if number % 4 < len(replacements):
        file.write_bytes(replacements[number % 4])
    else:
        file.unlink()


def write_queries(folder: Path, images: int) -> tuple[list[dict[str, str]], list[Path]]:
    """Write images and queries, and return the queries and the broken images."""
    (folder / "images").mkdir(parents=True)
    files = [folder / "images" / f"{number:06d}.png" for number in range(images)]
    for number, file in enumerate(files):
        write_image(file, number)
    broken = files[BROKEN_EVERY // 2 :: BROKEN_EVERY]
    for number, file in enumerate(broken):
        break_image(file, number)
    total = images * QUERIES_PER_IMAGE
    # In an order in which the queries of an image are far from each other.
    queries = [
        {
            "id": f"q{number}",
            "image": str(files[number % images]),
            "phrase": f"{'riddle' if number % BROKEN_EVERY == 7 else 'object'} {number}",
        }
        for number in range(total)
    ]
    lines = [json.dumps(query) + "\n" for query in queries]
    (folder / "queries.jsonl").write_text("".join(lines), encoding="utf-8")
    lines[::BROKEN_EVERY] = [line[:-5] + "\n" for line in lines[::BROKEN_EVERY]]
    (folder / "broken.jsonl").write_text("".join(lines), encoding="utf-8")
    return queries, broken


def predict(folder: Path, engine: LoadEngine, queries: str = "queries.jsonl") -> tuple[int, str]:
    """Run `sam4mllm predict` with the engine; return its exit status and what it wrote to standard error."""
    method = method_from_settings(MethodSection().model_dump())
    original = Pipeline.from_pretrained
    Pipeline.from_pretrained = lambda *arguments, **options: Pipeline(method, engine, BoxSegmenter())  # type: ignore[method-assign]
    error = io.StringIO()
    try:
        with contextlib.redirect_stderr(error):
            status = run_subcommand(["predict", "run", str(folder / queries), "--output", str(folder / "out")])
    finally:
        Pipeline.from_pretrained = original  # type: ignore[method-assign]
    return status, error.getvalue()


def measure(folder: Path, images: int) -> tuple[dict[str, Any], list[str]]:
    """Run all steps; return the figures and the problems."""
    queries, broken = write_queries(folder, images)
    total, problems = len(queries), []

    def expect(condition: bool, problem: str) -> None:
        if not condition:
            problems.append(problem)

    # 1. A file with broken lines.
    status, error = predict(folder, LoadEngine(total), "broken.jsonl")
    expect(status == 2 and error.count("\n") == 1 and len(error) < 2000, f"broken lines: {status}, {error[:300]}")
    expect(not (folder / "out").exists(), "broken lines: something was written")
    # 2. Interruptions.
    ends = []
    for share in (0.3, 0.6):
        engine = LoadEngine(total, [max(1, int(0.3 * total))])
        status, error = predict(folder, engine)
        ends.append(round(time.perf_counter() - engine.interrupted_at, 3))
        expect(status == 130 and error.endswith("again to resume\n"), f"interrupt at {share}: {status}, {error[-300:]}")
        expect(ends[-1] < 2, f"interrupt at {share}: ended after {ends[-1]} s")
    # 3. To the end.
    start, engine = time.perf_counter(), LoadEngine(total)
    status, error = predict(folder, engine)
    seconds = time.perf_counter() - start
    statuses = check_lines(folder, queries, broken, problems)
    expect(status == 1, f"broken images: exit status {status}, {error[-300:]}")
    # 4. With all images.
    for file in broken:
        write_image(file, int(file.stem))
    again = LoadEngine(total)
    status, error = predict(folder, again)
    expect(status == 0, f"restored images: exit status {status}, {error[-300:]}")
    check_lines(folder, queries, [], problems)
    later = [memory for share, memory in engine.memory_mib if share >= 0.1]
    growth = max(later) - later[0]
    expect(growth <= GROWTH_MIB, f"memory grew by {growth:.0f} MiB")
    figures = {
        "images": images,
        "queries": total,
        "broken_images": len(broken),
        "statuses": statuses,
        "seconds_after_interrupt": ends,
        "seconds_of_last_part": round(seconds, 1),
        "answers_of_last_part": engine.answers,
        "answers_after_restoring": again.answers,
        "memory_mib_at_first_tenth": round(later[0], 1),
        "memory_mib_largest_later": round(max(later), 1),
    }
    return figures, problems


def check_lines(
    folder: Path, queries: list[dict[str, str]], broken: Sequence[Path], problems: list[str]
) -> Counter[str]:
    """Compare predictions.jsonl with the queries: each once, with the status that its image and phrase imply."""
    expected, unreadable = {}, {str(file) for file in broken}
    for query in queries:
        answered = "malformed" if query["phrase"].startswith("riddle") else "ok"
        expected[query["id"]] = "error" if query["image"] in unreadable else answered
    found: dict[str, str] = {}
    count = 0
    with (folder / "out/predictions.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            count += 1
            record = json.loads(line)
            found[record["id"]] = record["status"]
    if count != len(queries) or found != expected:
        wrong = sum(found.get(key) != status for key, status in expected.items())
        problems.append(f"{count} lines for {len(queries)} queries, {wrong} of them wrong or missing")
    return Counter(found.values())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the load test and print its figures."""
    parser = argparse.ArgumentParser(description="Load test of predict: many queries, broken images, interruptions.")
    parser.add_argument("--images", type=int, default=2000, metavar="N", help="images, with 10 queries each")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    options = parser.parse_args(arguments)
    # A shell starts background jobs with SIGINT ignored, but this script interrupts its own work.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as folder:
        figures, problems = measure(Path(folder), options.images)
    text = json.dumps({**figures, "problems": problems}, indent=2) + "\n"
    print(text, end="")
    if options.json is not None:
        options.json.write_text(text, encoding="utf-8")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
