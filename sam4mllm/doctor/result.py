"""The result of a check: True, or one line with the reason why it failed or does not apply on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec

CheckResult = bool | str

NOT_APPLICABLE = "n/a: "
"""The prefix of the reason why a check does not apply; any other text is the reason of a failure."""


class NotApplicableError(Exception):
    """Raised by a check that cannot be made on this machine, with the reason."""


class CheckError(Exception):
    """Raised by a check that failed, with what was found."""


def expect(condition: bool, message: str) -> None:
    """Fail the check with `message` unless `condition` holds.

    Raises:
        CheckError: The condition does not hold.
    """
    if not condition:
        raise CheckError(message)


def require_package(package: str, extra: str) -> None:
    """Skip the check if a package is not installed; `extra` is the extra of sam4mllm that installs it.

    Raises:
        NotApplicableError: The package is not installed.
    """
    if find_spec(package) is None:
        raise NotApplicableError(f"needs {package}: pip install sam4mllm[{extra}]")


def run_check(check: Callable[[], None]) -> CheckResult:
    """Run a check and return its result; any exception becomes one line, so that the other checks still run."""
    try:
        check()
    except NotApplicableError as reason:
        return f"{NOT_APPLICABLE}{reason}"
    except CheckError as failure:
        return _first_line(str(failure))
    except Exception as error:
        return _first_line(f"{type(error).__name__}: {error}")
    return True


def is_not_applicable(result: CheckResult) -> bool:
    """Return whether the check does not apply on this machine."""
    return isinstance(result, str) and result.startswith(NOT_APPLICABLE)


def is_failure(result: CheckResult) -> bool:
    """Return whether the check failed; a check that does not apply has not failed."""
    return result is not True and not is_not_applicable(result)


def any_failed(*tables: Mapping[str, Mapping[str, CheckResult]]) -> bool:
    """Return whether a check failed in tables of results by model, then by check."""
    return any(is_failure(result) for table in tables for row in table.values() for result in row.values())


def _first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0][:300] if lines else "no message"
