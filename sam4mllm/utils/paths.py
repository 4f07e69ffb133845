"""How messages name a file or folder that does not exist."""

from __future__ import annotations

from pathlib import Path


def with_start(path: str | Path) -> str:
    """Return a path with the folder that it starts from, if it is relative: "data (relative to /home/me)".

    Relative paths of recipes start from the working directory, not from the recipe's folder.
    """
    return str(path) if Path(path).is_absolute() else f"{path} (relative to {Path.cwd()})"
