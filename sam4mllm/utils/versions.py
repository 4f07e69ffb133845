"""Versions of the installed libraries, and the git commit of a checkout, without importing the libraries."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

LIBRARIES = (
    "sam4mllm",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "llguidance",
    "segment-anything",
    "timm",
)


def versions(libraries: Sequence[str] = LIBRARIES) -> dict[str, str | None]:
    """Return the version of Python and of each library; None for one that is not installed as a distribution."""
    by_library: dict[str, str | None] = {"python": platform.python_version()}
    for library in libraries:
        try:
            by_library[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            by_library[library] = None
    return by_library


def commit(package: Path | None = None) -> str | None:
    """Return the commit of the git checkout that sam4mllm runs from, with "-dirty" where files differ from it.

    None without git or a checkout. An installed package may be located inside another project's checkout, so only a
    checkout that tracks the package's own files counts. `package` is the package's folder, by default sam4mllm's.
    """
    folder = Path(__file__).parents[1] if package is None else package
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    return _git(folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(folder: Path, *arguments: str) -> str | None:
    """Return git's output; None without git or where git fails."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
