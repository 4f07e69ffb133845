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
from tools.lower_bounds import lower_bounds
from tools.lower_bounds import requirements as requirement_lines

HOME = Path(__file__).parent.parent


PROJECT = tomllib.loads((HOME / "pyproject.toml").read_text())["project"]


def constraints() -> dict[str, str]:
    lines = [line for line in (HOME / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9A-Za-z.]*", line) for line in lines)
    return {name.lower().replace("_", "-"): version for name, version in (line.split("==") for line in lines)}


def as_numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def test_every_requirement_has_a_lower_bound_and_a_tested_version_above_it() -> None:
    tested = constraints()
    for name, bound in (pin.split("==") for pin in lower_bounds(PROJECT)):
        assert as_numbers(tested[name]) >= as_numbers(bound), name


NARROWER = {"ray": "2.64"}
"""Bounds below the next major version; pyproject.toml gives their reasons."""


def test_every_dependency_is_bounded_by_the_major_version_after_the_tested_one() -> None:
    # gradio requires pillow 12; `make test-newest`, which has no gradio, tests pillow 13.
    tested = {**constraints(), "pillow": "13"}
    extras = {name: lines for name, lines in PROJECT["optional-dependencies"].items() if name != "dev"}
    for line in requirement_lines({**PROJECT, "optional-dependencies": extras}):
        name, upper = line.split(">=")[0], line.rpartition(",<")[2]
        assert upper == NARROWER.get(name, str(as_numbers(tested[name])[0] + 1)), line


@pytest.mark.parametrize("line", ["torch", "torch<3", "torch~=2.1", "torch>=2.*"])
def test_a_requirement_without_a_lower_bound_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="has no lower bound"):
        lower_bounds({"name": "mine", "dependencies": [line], "optional-dependencies": {}})


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


def test_the_installation_has_what_the_tests_of_the_page_import() -> None:
    makefile = (HOME / "Makefile").read_text()
    assert '-e ".[dev,app]" -c constraints.txt' in makefile
    assert as_numbers(constraints()["pillow"])[0] == 12


def test_the_ci_script_is_valid_and_executable() -> None:
    script = HOME / ".ci" / "run"
    subprocess.run(["bash", "-n", str(script)], check=True, timeout=30)
    assert script.stat().st_mode & 0o111
