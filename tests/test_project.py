"""The project's own files: public names, tested versions, the Makefile and the CI script."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import sam4mllm

HOME = Path(__file__).parent.parent


def requirements() -> dict[str, str]:
    """Lower bounds of all requirements in pyproject.toml, by name."""
    project = tomllib.loads((HOME / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    return dict(line.split(">=") for line in wanted if not line.startswith("sam4mllm"))


def constraints() -> dict[str, str]:
    lines = [line for line in (HOME / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9A-Za-z.]*", line) for line in lines)
    return {name.lower().replace("_", "-"): version for name, version in (line.split("==") for line in lines)}


def as_numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def test_every_requirement_has_a_lower_bound_and_a_tested_version_above_it() -> None:
    tested = constraints()
    for name, bound in requirements().items():
        assert as_numbers(tested[name]) >= as_numbers(bound), name


def test_no_package_of_one_kind_of_machine_is_pinned() -> None:
    assert not [name for name in constraints() if name.startswith(("nvidia", "cuda", "triton"))]


@pytest.mark.parametrize("name", sam4mllm.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    assert getattr(sam4mllm, name) is not None and name in dir(sam4mllm)


def test_no_subpackage_has_the_name_of_a_public_function() -> None:
    """The first import from such a subpackage would set it as an attribute in the function's place."""
    subpackages = {path.parent.name for path in (HOME / "sam4mllm").glob("*/__init__.py")}
    assert not subpackages & set(sam4mllm.__all__)


def test_the_package_is_imported_without_heavy_libraries() -> None:
    code = "import sys, sam4mllm; print([name for name in ('torch', 'numpy', 'pydantic') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_public_name_raises_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Pipelin"):
        sam4mllm.Pipelin  # noqa: B018


def test_the_package_is_marked_as_typed_and_has_a_license() -> None:
    assert (HOME / "sam4mllm" / "py.typed").is_file()
    assert "Apache License" in (HOME / "LICENSE").read_text()


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    ("target", "runs"), [("install", "pip install"), ("test", "pytest"), ("demo", "sam4mllm demo"), ("check", "mypy")]
)
def test_make_creates_the_environment_first(target: str, runs: str, tmp_path: Path) -> None:
    done = subprocess.run(
        ["make", "-n", target, f"VENV={tmp_path / 'venv'}"],
        cwd=HOME,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert "-m venv" in done.stdout and runs in done.stdout


def test_the_ci_script_is_valid_and_executable() -> None:
    script = HOME / ".ci" / "run"
    subprocess.run(["bash", "-n", str(script)], check=True, timeout=30)
    assert script.stat().st_mode & 0o111
