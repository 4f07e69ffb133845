"""Build sdist and wheel, install the wheel into an empty environment, and run its command line outside the repository.

    python tools/check_package.py [--demo DIR] [--with-dependencies]

The wheel is built from the sdist, so a file that either of them lacks is found. The environment gets the wheel alone
and finds the dependencies in those of the running interpreter, which takes seconds; with --with-dependencies it
installs them, as a user does. `--demo` also runs the demo into DIR.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def build(folder: Path) -> Path:
    """Build the sdist into `folder`, and the wheel from it; return the wheel."""
    _run([sys.executable, "-m", "build", "--outdir", folder, ROOT], ROOT)
    (wheel,) = folder.glob("*.whl")
    return wheel


def install(wheel: Path, environment: Path, *, with_dependencies: bool) -> Path:
    """Install a wheel into a new environment and return its folder of programs."""
    venv.create(environment, with_pip=True)
    programs = environment / "bin"
    dependencies = ["-c", str(ROOT / "constraints.txt")] if with_dependencies else ["--no-deps"]
    pip: list[str | Path] = [programs / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*pip, wheel, *dependencies], environment)
    if with_dependencies:
        return programs
    # A folder that a .pth file names is searched after the environment's own, and its .pth files are not read: neither
    # hides the wheel, not even an editable installation of this checkout.
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return programs


def check(programs: Path, folder: Path, demo: Path | None) -> None:
    """Run what needs the package's own data from `folder`: recipes, embedded weights, the templates of pages."""
    found = _run([programs / "python", "-c", "import sam4mllm; print(sam4mllm.__file__)"], folder, capture=True)
    if not Path(found.strip()).is_relative_to(programs.parent):
        raise SystemExit(f"the package is imported from {found.strip()}, not from the wheel")
    program = programs / "sam4mllm"
    # Where the shipped recipes for the generated data expect them.
    root = "runs/demo/shapes"
    image = f"{root}/images/mscoco/images/train2014/COCO_train2014_000000000001.jpg"
    for command in (
        ["--version"],
        ["shapes", root, "--scenes", "8"],
        ["check", "--dataset", "refcoco", "--root", root, "--output", "checked"],
        ["train", "shapes_ppg", "--dry-run"],
        ["segment", "shapes", image, "the largest shape", "-o", "out.png"],
    ):
        _run([program, *command], folder)
    if demo is not None:
        _run([program, "demo", "--output", demo.absolute()], folder)


def _run(command: list[str | Path], folder: Path, *, capture: bool = False) -> str:
    """Run a command in `folder` without the variables that add this checkout to Python's path; exit if it fails."""
    print("$", shlex.join(map(str, command)), flush=True)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env=environment,
        check=False,
        text=True,
        stdout=subprocess.PIPE if capture else None,
    )
    if done.returncode:
        raise SystemExit(f"failed with status {done.returncode}")
    return done.stdout or ""


def main() -> None:
    """Parse the command line and run all steps in a temporary folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, metavar="DIR", help="also run the demo, into DIR")
    parser.add_argument("--with-dependencies", action="store_true", help="install the dependencies as well")
    options = parser.parse_args()
    demo = None if options.demo is None else options.demo.absolute()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel = build(folder / "dist")
        programs = install(wheel, folder / "environment", with_dependencies=options.with_dependencies)
        check(programs, folder, demo)
    print("the package is complete")


if __name__ == "__main__":
    main()
