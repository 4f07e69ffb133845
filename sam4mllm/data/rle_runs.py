"""Lengths of runs as arrays: of values, and those in COCO's compressed counts.

`masks.check_rle` decodes the counts in a loop for the few masks that `run_array` does not take.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

# Within these, no value, no run and no sum of runs exceeds 64 bits: values have 5 bits per character, and a run is a
# sum of values.
_MOST_CHARACTERS = 1 << 16
_MOST_IN_A_VALUE = 6


def run_lengths(values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return the lengths of the runs of equal values in `values` (N,), in their order: (runs,), whose sum is N.

    Examples:
        >>> run_lengths(np.array([5, 5, 5, 0, 1, 1])).tolist()
        [3, 1, 2]
    """
    return np.diff(np.flatnonzero(np.diff(values)) + 1, prepend=0, append=len(values))


# A prediction's counts are checked when they are read and used when they are scored; the next line follows then.
@lru_cache(maxsize=8)
def run_array(counts: str) -> npt.NDArray[np.int64] | None:
    """Decode COCO's compressed counts to the lengths of the runs (runs,), which nothing has checked.

    None for counts that are malformed, or too large for 64 bits. The format is described in `masks`.
    """
    if not counts.isascii() or not 0 < len(counts) <= _MOST_CHARACTERS:
        return None
    codes = np.frombuffer(counts.encode("ascii"), dtype=np.uint8) - 48
    ends = np.flatnonzero(codes & 32 == 0)
    # Codes below 0 have wrapped around.
    if codes.max() > 63 or codes[-1] & 32:
        return None
    starts = np.empty_like(ends)
    starts[0], starts[1:] = 0, ends[:-1] + 1
    lengths = ends - starts + 1
    if lengths.max() > _MOST_IN_A_VALUE:
        return None
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    runs = np.add.reduceat((codes & 31).astype(np.int64) << shifts, starts)
    runs -= (codes[ends] & 16 > 0) * (np.int64(1) << 5 * lengths)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    runs.flags.writeable = False
    return runs
