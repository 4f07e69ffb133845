"""Files of one JSON record a line: read line by line, what is wrong gathered, so that all bad lines are told at once.

This module knows no format: whoever calls says what a line's record is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from sam4mllm.errors import DataError, Sam4mllmError

# An error names so many bad lines and counts the rest.
_SHOWN = 10

Record = TypeVar("Record")


def read_lines(
    path: Path, parse: Callable[[object], Record], faults: list[str], kind: type[Sam4mllmError] = DataError
) -> Iterator[tuple[int, Record]]:
    """Line numbers (from 1) and records; what is wrong with a line goes into `faults`. Blank lines are skipped.

    Raises:
        Sam4mllmError: of this `kind`: the file cannot be read.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise kind(f"{path}: cannot be read: {error.strerror}") from error
    with file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = parse(json.loads(line.decode("utf-8-sig")))
            except json.JSONDecodeError as error:
                faults.append(f"line {number}: no JSON: {error.msg} (column {error.colno})")
            # OverflowError: a number with more digits than a float can hold.
            except (ValueError, OverflowError, RecursionError, DataError) as error:
                faults.append(f"line {number}: {error}")
            else:
                yield number, record


def raise_faults(path: Path, faults: list[str], kind: type[Sam4mllmError] = DataError) -> None:
    """One error that counts all faults and tells the first ten; nothing where there are none.

    Raises:
        Sam4mllmError: of this `kind`.
    """
    if faults:
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise kind(f"{path}: {len(faults)} bad line(s): {'; '.join(faults[:_SHOWN])}{more}")
