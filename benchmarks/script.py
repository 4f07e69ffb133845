"""What all benchmarks share: options, sizes, tables and files.

A benchmark adds its options in `main`, returns its settings and rows from `run`, and ends with `report`. Each compares
our code with the code that a user would write from the libraries' own examples, in one run, on the same weights, data,
device and threads:

    --small      sizes for `make bench`: all benchmarks together take less than ten minutes on two cores
    --real       a random model with the proportions of a real one, where the benchmark has one
    --repeats N  turns that are timed, after one whose results are compared
    --markdown   print the table as docs/performance.md holds it
    --json FILE  write the settings and, per variant, the seconds of each turn
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from timing import Row, machine

from sam4mllm.errors import Sam4mllmError
from sam4mllm.evaluation.report import text_table
from sam4mllm.utils.atomic_io import atomic_write_text
from sam4mllm.utils.device import resolve_device
from sam4mllm.utils.library_logging import silence_libraries

Figures = tuple[dict[str, Any], list[Row]]
"""What `run` returns: the settings that produced the figures, and the rows."""


def parser_of(document: str | None, *, real: bool = False) -> argparse.ArgumentParser:
    """Return a parser with the options of all benchmarks; `real` adds --real.

    Args:
        document: The script's docstring.
        real: Whether the script can create a random model with the proportions of a real one.
    """
    parser = argparse.ArgumentParser(description=document, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--small", action="store_true", help="smaller sizes, as in make bench")
    if real:
        sizes.add_argument("--real", action="store_true", help="a random model with the proportions of a real one")
    parser.set_defaults(real=False)
    parser.add_argument("--repeats", type=positive, default=5, metavar="N", help="turns that are timed (default: 5)")
    parser.add_argument("--seed", type=int, default=0, help="of the data (default: 0)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--markdown", action="store_true", help="print the table in Markdown")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    return parser


def add_models(parser: argparse.ArgumentParser, *, adapter: bool = True, checkpoint: bool = False) -> None:
    """Add --base, --dtype and --work (the folder of random models), --adapter, and --checkpoint for SAM."""
    parser.add_argument("--base", default="shapes", help="a model folder or Hub id (default: shapes, the embedded one)")
    if adapter:
        parser.add_argument("--adapter", type=Path, metavar="DIR", help="a LoRA adapter on it")
    if checkpoint:
        parser.add_argument("--checkpoint", default="shapes", help="a SAM's .pth (default: shapes, the embedded one)")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    parser.add_argument(
        "--work", type=Path, default=Path("runs/bench"), metavar="DIR", help="for random models (default: runs/bench)"
    )


def add_phrases(parser: argparse.ArgumentParser) -> None:
    """Add --phrases, the number of phrases about an image."""
    parser.add_argument("--phrases", type=positive, default=5, metavar="N", help="phrases per image (default: 5)")


def add_size(
    parser: argparse.ArgumentParser, flag: str, help: str, *, default: Any, small: Any, real: Any = None, **more: Any
) -> None:
    """Add an option for a size, whose default depends on --small and --real.

    Args:
        parser: A parser of `parser_of`.
        flag: The option, such as "--objects".
        help: What it is.
        default: The default without --small and --real.
        small: The default with --small.
        real: The default with --real; None for `default`.
        more: Further arguments of `add_argument`.
    """
    defaults = f"default: {_words(default)}; {_words(small)} with --small"
    if real is not None:
        defaults += f"; {_words(real)} with --real"
    more = {"type": positive, "metavar": "N", **more}
    action = parser.add_argument(flag, help=f"{help} ({defaults})", **more)
    sizes = dict(parser.get_default("sizes") or {})
    sizes[action.dest] = {"default": default, "small": small, "real": default if real is None else real}
    parser.set_defaults(sizes=sizes)


def positive(text: str) -> int:
    """Parse a number of 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of 1 or more")
    return int(text)


def report(
    parser: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace], Figures],
    arguments: Sequence[str] | None,
) -> None:
    """Parse the arguments, run the benchmark, and print and write its figures; an error of ours ends it in one line."""
    options = parser.parse_args(arguments)
    name = Path(sys.modules[run.__module__].__file__ or "").stem
    size = "real" if options.real else "small" if options.small else "default"
    for option, defaults in (vars(options).pop("sizes", None) or {}).items():
        if getattr(options, option) is None:
            setattr(options, option, defaults[size])
    silence_libraries()
    try:
        options.device = resolve_device(options.device)
        settings, rows = run(options)
    except Sam4mllmError as error:
        sys.exit(f"{name}: error: {error}")
    words = shlex.join(sys.argv[1:] if arguments is None else arguments)
    record = {
        "benchmark": name,
        "command": f"python benchmarks/{name}.py {words}".strip(),
        "machine": machine(options.device),
        "settings": settings,
        "rows": [row_record(row) for row in rows],
    }
    print("\n".join((markdown if options.markdown else table)(record)))
    write_json(record, options.json)


def row_record(row: Row) -> dict[str, Any]:
    """Return a row as it is written to the JSON file."""
    return asdict(row) | {"ratio": row.ratio._asdict(), "ms_an_item": row.ms_an_item}


def table(record: Mapping[str, Any]) -> list[str]:
    """Return the figures of a record as text; x 2.0 is twice as fast as the baseline, the first variant of a work."""
    heading, header, rows = _cells(record)
    return [heading, "", *text_table([*header, ""], [[*row, ""] for row in rows])]


def markdown(record: Mapping[str, Any]) -> list[str]:
    """Return the figures of a record as a table in Markdown."""
    heading, header, rows = _cells(record)
    kept = [column for column in range(len(header)) if any(row[column] for row in rows)]
    lines = [f"| {' | '.join(line[column] for column in kept)} |" for line in (header, *rows)]
    return [heading, "", lines[0], "|---" * len(kept) + "|", *lines[1:]]


def _cells(record: Mapping[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    """Return the heading, the titles of the columns and the cells of a record."""
    about = record["machine"]
    settings = ", ".join(f"{name.replace('_', ' ')}: {_words(value)}" for name, value in record["settings"].items())
    repeats = len(record["rows"][0]["seconds"])
    hardware = f"{about['processor']}, {about['threads']} thread(s), torch {about['torch']}"
    heading = f"`{record['command']}` ({hardware}; {settings})"
    notes = list(dict.fromkeys(name for row in record["rows"] for name in row["notes"] or ()))
    header = ["work", "variant", "time", f"ratio (least to most of {repeats})", "same", *notes]
    rows = []
    for row in record["rows"]:
        ratio, same = row["ratio"], row["same"]
        rows.append(
            [
                row["work"],
                row["variant"],
                f"{_time(row['ms_an_item'])} per {row['item']}",
                f"x {ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})",
                "" if same is None else f"{100 * same:.1f} %",
                *(_words((row["notes"] or {}).get(name, "")) for name in notes),
            ]
        )
    return heading, header, rows


def _time(milliseconds: float) -> str:
    """Write a time with three digits or more."""
    if milliseconds >= 10_000:
        return f"{milliseconds / 1000:.1f} s"
    return f"{milliseconds:.0f} ms" if milliseconds >= 100 else f"{milliseconds:.3g} ms"


def _words(value: Any) -> str:
    """Write a setting or a note: the items of a list separated by spaces."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def write_json(record: Mapping[str, Any], path: Path | None) -> None:
    """Write the record to `path` (atomically) and create its folder; do nothing for None."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(path, json.dumps(record, indent=2) + "\n")
