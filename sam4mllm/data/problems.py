"""Problems of a data set's records: a stage stops at the first one, `sam4mllm check` lists all of them.

A reader parses each record in a block of `record_errors()`. An error of the block ends the reading, or, within
`listing_problems()`, is added to the list, and the reader continues with the next record.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar

from sam4mllm.errors import DataError

SKIP_ADVICE = "to leave out bad records, set skip_bad: true for the data set, or use `sam4mllm convert --skip-bad`"

_listed: ContextVar[list[DataError] | None] = ContextVar("listed", default=None)


@contextmanager
def listing_problems() -> Iterator[list[DataError]]:
    """Let readers continue after a bad record; yield the list that its error is added to."""
    problems: list[DataError] = []
    token = _listed.set(problems)
    try:
        yield problems
    finally:
        _listed.reset(token)


class _RecordErrors:
    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, DataError):
            return False
        if add_problems([error]):
            return True
        if SKIP_ADVICE in str(error):
            return False
        raise DataError(f"{error}; {SKIP_ADVICE}", kind_of(error)) from error


_RECORD_ERRORS = _RecordErrors()


def record_errors() -> AbstractContextManager[None]:
    """Add an error of the block, which parses one record, to the list of problems, if these are listed.

    Raises:
        DataError: The error of the block, if problems are not listed.
    """
    # One object for all records, because contextlib would make one for each.
    return _RECORD_ERRORS


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Let errors of the block begin with `where`, the file and the record.

    Raises:
        DataError: The error of the block.
    """
    try:
        yield
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def add_problems(errors: Iterable[DataError]) -> bool:
    """Add errors to the list of problems; return False if problems are not listed."""
    listed = _listed.get()
    if listed is None:
        return False
    listed += errors
    return True


def kind_of(error: BaseException) -> str:
    """Return the kind of a problem: that of the first error in the chain of causes that has one, else "file"."""
    kind = "file"
    link: BaseException | None = error
    while link is not None:
        kind = (isinstance(link, DataError) and link.kind) or kind
        link = link.__cause__ or link.__context__
    return kind
