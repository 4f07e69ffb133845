"""Parts of messages that several modules write: the first of many items, and the first line of an error."""

from __future__ import annotations

from collections.abc import Sequence


def first_and_more(items: Sequence[object], limit: int, separator: str = "; ") -> str:
    """Return the first `limit` items as text, and the number of the others: "a; b; and 3 more"."""
    more = [f"and {len(items) - limit} more"] if len(items) > limit else []
    return separator.join([*map(str, items[:limit]), *more])


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class if it has none, in 200 characters."""
    return (str(error) or type(error).__name__).splitlines()[0][:200]
