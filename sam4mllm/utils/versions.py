"""What ran: the versions of libraries and, where sam4mllm runs from a checkout, the commit. It loads no library."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

LIBRARIES = ("sam4mllm", "torch", "transformers", "peft", "accelerate", "datasets", "segment-anything", "timm")


def versions(libraries: Sequence[str] = LIBRARIES) -> dict[str, str | None]:
    """Versions by library; None for one that is not installed as a distribution."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for library in libraries:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            found[library] = None
    return found


def commit(package: Path | None = None) -> str | None:
    """The commit of the checkout that sam4mllm runs from, with "-dirty" where files differ from it; None for none.

    An installed package may lie inside somebody else's checkout; only one that tracks the package's files counts.
    """
    folder = Path(__file__).parents[1] if package is None else package
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    return _git(folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints; None where there is no git, or where it says no."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
