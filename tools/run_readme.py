"""Run the README after a demo: every command that needs no more than `runs/demo`, and the Python snippet, as written.

    python tools/run_readme.py

Works in a folder of its own, in which `runs/demo` is this checkout's. Commands that need real weights or data, hours,
or a shell of their own are listed, not run; tests parse those and walk their verbs on small models.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
NOT_HERE = ("make", "source", "_ppg", "runs/refcoco-ppg", "tools/")


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def run_readme(readme: str, demo: Path, program: Path) -> int:
    """Run what can be run, with `program` for sam4mllm; returns how many commands failed."""
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "runs").mkdir()
        (Path(folder) / "runs" / "demo").symlink_to(demo, target_is_directory=True)
        queries = next(block for block in blocks(readme, "jsonl") if '"id"' in block and '"phrase"' in block)
        (Path(folder) / "queries.jsonl").write_text(queries, encoding="utf-8")
        lines = [line for block in blocks(readme, "sh") for line in block.splitlines() if line.strip()]
        commands = []
        for line in lines:
            if any(mark in line for mark in NOT_HERE):
                print(f"not run here: {line}")
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
    demo = HOME / "runs" / "demo"
    if not (demo / "scores.json").is_file():
        print(f"{demo}: no demo was run here; run `make demo` first", file=sys.stderr)
        return 2
    readme = (HOME / "README.md").read_text(encoding="utf-8")
    return 1 if run_readme(readme, demo, Path(sys.executable).with_name("sam4mllm")) else 0


if __name__ == "__main__":
    sys.exit(main())
