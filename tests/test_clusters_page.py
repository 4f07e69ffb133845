"""docs/clusters.md: its commands and manifests parse, and the arithmetic of its plan holds."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from sam4mllm.cli.main import SUBCOMMANDS, parse
from sam4mllm.recipe.yaml_text import read_yaml

PAGE = (Path(__file__).parent.parent / "docs" / "clusters.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


COMMANDS = [line for block in blocks("sh") for line in block.splitlines() if "sam4mllm" in line.split()]
(SCRIPT,) = blocks("bash")
(MANIFEST,) = map(read_yaml, blocks("yaml"))


@pytest.mark.parametrize("line", COMMANDS)
def test_each_command_parses(line: str) -> None:
    words = shlex.split(line)
    assert parse(words[words.index("sam4mllm") + 1 :]).ray in ("local", "head:6379")


def run_with_stubs(script: str, folder: Path, variables: dict[str, str], **stubs: str) -> list[list[str]]:
    """Run a script of bash whose programs are stubs; return the words of each call of `sam4mllm`."""
    record = 'printf "%s\\0" "$@" >> "$CALLS"; printf "\\n" >> "$CALLS"'
    for name, body in {"sam4mllm": record, **stubs}.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    environment = os.environ | variables | {"PATH": f"{folder}:{os.environ['PATH']}", "CALLS": str(folder / "calls")}
    subprocess.run(["bash", "-c", script], check=True, env=environment, cwd=folder)
    return [line.split("\0")[:-1] for line in (folder / "calls").read_text().splitlines()]


def test_the_script_of_slurm_starts_torchrun_on_every_node(tmp_path: Path) -> None:
    variables = {"SLURM_JOB_NODELIST": "n[1-4]", "SLURM_NNODES": "4", "SLURM_JOB_ID": "7"}
    srun = 'printf "%s\\0" "$@" >> "$CALLS"; printf "\\n" >> "$CALLS"'
    (words,) = run_with_stubs(SCRIPT, tmp_path, variables, srun=srun, scontrol='printf "n1\\nn2\\n"')
    assert words[1:4] == ["torchrun", "--nnodes", "4"] and "n1:29500" in words
    options = parse(words[words.index("sam4mllm") + 1 :])
    assert SUBCOMMANDS[options.subcommand].distributed and options.output == Path("runs/answers")


def test_a_pod_answers_the_part_of_its_index(tmp_path: Path) -> None:
    spec = MANIFEST["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    assert container["command"] == ["bash", "-c"] and spec["completionMode"] == "Indexed"
    (words,) = run_with_stubs(container["args"][0], tmp_path, {"JOB_COMPLETION_INDEX": "41"})
    options = parse(words)
    assert options.queries == Path("/data/queries-041.jsonl") and options.output == Path("/data/answers/041")
    assert len(f"{spec['completions'] - 1}") == 3


@pytest.mark.skipif(shutil.which("split") is None, reason="needs split of coreutils")
def test_queries_are_divided_into_the_files_of_the_pods(tmp_path: Path) -> None:
    (command,) = (line for block in blocks("sh") for line in block.splitlines() if line.startswith("split "))
    lines = [f'{{"id": "{index}"}}\n' for index in range(3000)]
    (tmp_path / "queries.jsonl").write_text("".join(lines))
    subprocess.run(shlex.split(command), check=True, cwd=tmp_path)
    parts = [tmp_path / f"queries-{index:03d}.jsonl" for index in range(MANIFEST["spec"]["completions"])]
    assert "".join(part.read_text() for part in parts) == "".join(lines)


def number_before(text: str) -> float:
    (found,) = set(re.findall(rf"([\d,.]+) {re.escape(text)}", " ".join(PAGE.split())))
    return float(found.replace(",", ""))


def test_the_arithmetic_of_the_plan() -> None:
    page = " ".join(PAGE.split())
    for line in re.findall(r"^\| ([\d.]+) s \| ([\d,]+) \| ([\d.]+) \| ([\d,]+) \|$", PAGE, re.MULTILINE):
        seconds, hours, days, cost = (float(value.replace(",", "")) for value in line)
        assert hours == round(1e9 * seconds / 3600) and cost == round(2 * 1e9 * seconds / 3600)
        assert days == round(1e9 * seconds / 256 / 86400, 1)
    assert "1.245 s + 6.860 s = 8.105 s" in page and round(1e9 * 8.105 * 2 / 3600 / 1e6, 1) == 4.5
    assert number_before("shards, each with a file of lines") == 1e6 / 64 == number_before("files in two folders") / 2
    assert "64 / 0.011 s = 5,818" in page and int(64 / 0.011) == 5818
    assert "5,818 x 0.05 = 290 GPUs" in page and int(5818 * 0.05) == 290
    assert 256 / 0.05 * 150e3 == 768e6
