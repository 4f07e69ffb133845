"""Reader of RefCOCO, RefCOCO+ and RefCOCOg: refs(unc).p beside COCO's instances.json, a sample for each sentence.

The files of refs come from the internet as pickles that Python 2 wrote. Lists, dicts, numbers and text need no class,
so a pickle that asks for a class is not such a file: it is rejected before any of its code runs.
"""

from __future__ import annotations

import io
import pickle
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from sam4mllm.data.file_kinds import HEAD_BYTES, wrong_kind
from sam4mllm.data.plain_pickle import is_plain_pickle
from sam4mllm.data.readers.refs import RefRecord, RefsReader
from sam4mllm.errors import DataError
from sam4mllm.utils.paths import with_start


class _PlainUnpickler(pickle._Unpickler):
    """An unpickler of containers, numbers and text; every class and function is rejected, so nothing can be called.

    It derives from the unpickler written in Python, because the one in C allocates as many memo entries as a pickle
    announces, so seven bytes of a damaged file could exhaust the memory. Byte arrays, which this one allocates before
    it reads them, do not occur in plain data.
    """

    dispatch = {  # noqa: RUF012 - only read, as in the base class
        opcode: load for opcode, load in pickle._Unpickler.dispatch.items() if opcode != pickle.BYTEARRAY8[0]
    }

    def find_class(self, module: str, name: str, /) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which plain data does not need")


class _FastUnpickler(pickle.Unpickler):
    """As `_PlainUnpickler`, but in C, for pickles that `is_plain_pickle` recognizes."""

    def find_class(self, module: str, name: str, /) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which plain data does not need")


def load_plain(path: Path, what: str = "the list of refs") -> Any:
    """Load a pickle of containers, numbers and text; byte strings of Python 2 become text as latin-1.

    Raises:
        DataError: No such file; a pickle that asks for a class or function; a damaged or incomplete file, or one of
            another format.
    """
    if not path.is_file():
        raise DataError(f"{with_start(path)}: no such file; {what} was expected there")
    content = path.read_bytes()
    # A damaged pickle may raise nearly anything (the pickle documentation names five and "not limited to"). The
    # unpickler in Python reports it.
    if is_plain_pickle(content):
        with suppress(Exception):
            # The unpickler reads lines one by one from a file that cannot look ahead, which BytesIO cannot.
            return _FastUnpickler(io.BufferedReader(io.BytesIO(content)), encoding="latin1").load()
    try:
        return _PlainUnpickler(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:
        raise DataError(
            f"{path}: {what} must be a pickle of plain data (lists, dicts, numbers, text) and was not read: "
            f"{_reason(content, error)}"
        ) from error


def _reason(content: bytes, error: Exception) -> str:
    """Return why a file could not be read as a pickle, and what to do."""
    head = content[:HEAD_BYTES]
    if (kind := wrong_kind(head)) and not head.startswith(pickle.PROTO):
        return f"the file {kind}"
    if head.lstrip().startswith((b"{", b"[")):
        return "the file is JSON; convert it with pickle.dump, or give the file refs(...).p of the data set"
    is_refused = isinstance(error, pickle.UnpicklingError) and "it asks for" in str(error)
    if not is_refused and not content.endswith(pickle.STOP):
        return "the file is truncated; download it again"
    detail = str(error) if isinstance(error, pickle.UnpicklingError) else f"{type(error).__name__} {error}".rstrip()
    return f"{detail}; if the file is damaged, download it again"


class RefCocoRecord(RefRecord):
    """A ref of RefCOCO, RefCOCO+ or RefCOCOg: exactly one object."""

    ann_id: int

    def annotation_ids(self) -> tuple[int, ...]:
        return (self.ann_id,)


_READER = RefsReader("refs({}).p", lambda path: load_plain(path), RefCocoRecord)
read, splits, images_by_split = _READER.read, _READER.splits, _READER.images_by_split
