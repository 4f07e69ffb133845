"""Verdicts: what a check comes to: true, false, or one line that says why it failed or does not apply here.

This module knows no check.
"""

from __future__ import annotations

from collections.abc import Callable

Verdict = bool | str

NOT_APPLICABLE = "n/a: "
"""How a line begins that tells why a check does not apply on this machine; any other line tells of a failure."""


class NotApplicableError(Exception):
    """A check that this machine cannot make, and why."""


class CheckError(Exception):
    """A check that found something else than it should."""


def expect(condition: bool, otherwise: str) -> None:
    """Nothing, if `condition` holds.

    Raises:
        CheckError: with `otherwise`, if it does not.
    """
    if not condition:
        raise CheckError(otherwise)


def verdict_of(check: Callable[[], None]) -> Verdict:
    """What a check comes to; whatever it raises becomes one line, so that one broken check hides no other."""
    try:
        check()
    except NotApplicableError as reason:
        return f"{NOT_APPLICABLE}{reason}"
    except CheckError as found:
        return _one_line(str(found))
    except Exception as error:
        return _one_line(f"{type(error).__name__}: {error}")
    return True


def failed(verdict: Verdict) -> bool:
    """Whether a verdict is a failure; what does not apply here is none."""
    return verdict is False or (isinstance(verdict, str) and not verdict.startswith(NOT_APPLICABLE))


def _one_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0][:300] if lines else "nothing is said"
