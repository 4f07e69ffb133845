"""Run the README's commands after a demo: all that need only `runs/demo`, and the Python snippet, unchanged.

    python tools/run_readme.py

The commands run in a temporary folder in which `runs/demo` links to that of this checkout. Commands that need real
weights or data, hours, or an interactive shell are listed and not run; tests parse them.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SKIPPED = ("make ", "source ", "python ", "_ppg", "runs/refcoco-ppg")
"""Parts of the commands that are not run: set-up, training of hours, and models or data that are not downloaded."""


def blocks(text: str, language: str) -> list[str]:
    """Return the fenced code blocks in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def run_readme(readme: str, demo: Path, program: Path) -> int:
    """Run the commands, with `program` as sam4mllm; return the number of commands that failed."""
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "runs").mkdir()
        (Path(folder) / "runs" / "demo").symlink_to(demo, target_is_directory=True)
        queries = next(block for block in blocks(readme, "jsonl") if '"id"' in block and '"phrase"' in block)
        (Path(folder) / "queries.jsonl").write_text(queries, encoding="utf-8")
        lines = [line for block in blocks(readme, "sh") for line in block.splitlines() if line.strip()]
        commands = []
        for line in lines:
            if any(part in line for part in SKIPPED):
                print(f"skipped: {line}")
            else:
                commands.append([str(program), *shlex.split(line, comments=True)[1:]])
        commands += [[sys.executable, "-c", block] for block in blocks(readme, "python")]
        for command in commands:
            print("$", shlex.join(command) if len(command) > 3 else "python snippet", flush=True)
            status = subprocess.run(command, cwd=folder, check=False).returncode
            if status:
                failed += 1
                print(f"failed with status {status}")
    print(f"{len(commands) - failed} passed, {failed} failed")
    return failed


def main() -> int:
    """Run the README of this checkout; the exit status is 1 if a command failed and 2 without a demo."""
    demo = ROOT / "runs" / "demo"
    if not (demo / "scores.json").is_file():
        print(f"{demo}: not found; run `make demo` first", file=sys.stderr)
        return 2
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return 1 if run_readme(readme, demo, Path(sys.executable).with_name("sam4mllm")) else 0


if __name__ == "__main__":
    sys.exit(main())
