"""Versions of libraries, and the commit of the checkout that holds the package, but of no other checkout."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sam4mllm.utils.versions import LIBRARIES, commit, versions


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, timeout=60)


def test_every_library_has_its_version() -> None:
    by_library = versions()
    assert by_library.keys() == {"python", *LIBRARIES} and by_library["torch"]


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_commit_of_a_checkout_and_whether_files_differ_from_it(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    assert commit(package) is None
    git(tmp_path, "init")
    # A checkout of another project, inside which the package is located.
    assert commit(package) is None
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "x")
    clean = commit(package)
    assert clean is not None and re.fullmatch("[0-9a-f]{40}", clean)
    (package / "__init__.py").write_text("changed = True")
    assert commit(package) == f"{clean}-dirty"


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert commit() is None
