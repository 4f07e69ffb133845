"""Pickles of plain data, read without running anything.

RefCOCO's refs come from the internet as pickles that Python 2 wrote. Containers, numbers and text need no class, so a
pickle that asks for one is not such a file: it is refused before anything of it runs. This module knows nothing about
refs.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, NoReturn

from sam4mllm.errors import DataError


class _PlainUnpickler(pickle._Unpickler):
    """Admits containers, numbers and text; every class and function is refused, so nothing can be called.

    It is the unpickler that is written in Python, five times slower: the one in C makes room for as many objects as a
    pickle says that it numbers, so seven bytes of a damaged file could fill any memory. Byte arrays, whose room this
    one makes before it reads them, no plain data has.
    """

    dispatch = {  # noqa: RUF012 - read alone, as in the class above
        opcode: load for opcode, load in pickle._Unpickler.dispatch.items() if opcode != pickle.BYTEARRAY8[0]
    }

    def find_class(self, module: str, name: str, /) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which plain data does not need")


def load_plain(path: Path, what: str) -> Any:
    """The value in a pickle of containers, numbers and text; Python 2's byte strings become text as latin-1.

    Raises:
        DataError: no such file; a pickle that asks for a class or function; a file that is no whole pickle.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; {what} was expected there")
    with path.open("rb") as file:
        try:
            return _PlainUnpickler(file, encoding="latin1").load()
        # A damaged pickle may raise nearly anything (the pickle documentation names five and "not limited to").
        except Exception as error:
            raise DataError(
                f"{path}: {what} must be a pickle of plain data (lists, dicts, numbers, text) and was not read: {error}"
            ) from error
