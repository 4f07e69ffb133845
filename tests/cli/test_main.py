"""The command line: fast help, mistyped commands, and how errors end the program."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sam4mllm.cli.main import SUBCOMMANDS, build_parser, main, parse
from sam4mllm.errors import DataError

NAMES = (
    "demo",
    "prepare",
    "inspect",
    "train",
    "segment",
    "predict",
    "ask",
    "evaluate",
    "calibrate",
    "score",
    "check",
    "convert",
    "merge",
    "doctor",
    "shapes",
)


def cpu_seconds(*arguments: str) -> float:
    """Return the least CPU time of five runs; a busy machine affects it less than wall time."""
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], capture_output=True, check=True, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times)


def test_help_answers_within_0_3_seconds_of_a_bare_python() -> None:
    assert cpu_seconds("-m", "sam4mllm", "--help") - cpu_seconds("-c", "pass") < 0.3


def test_help_and_the_package_load_nothing_heavy() -> None:
    code = (
        "import sys, sam4mllm, sam4mllm.cli.main; sam4mllm.cli.main.build_parser().format_help(); "
        "heavy = ('torch', 'transformers', 'numpy', 'pydantic', 'PIL', 'datasets', 'tqdm'); "
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_subcommand_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert f"usage: sam4mllm {name}" in capsys.readouterr().out


def test_the_subcommands_are_those_of_the_contract() -> None:
    assert tuple(name for name in SUBCOMMANDS if name in NAMES) == NAMES
    help_text = build_parser().format_help()
    # The explanation of a long name begins on the next line.
    assert all(re.search(rf"^    {name}\s", help_text, re.MULTILINE) for name in SUBCOMMANDS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "unknown subcommand 'trian'; did you mean train?"),
        (["segmnet", "a", "b"], "did you mean segment?"),
        (["xyzzy"], "unknown subcommand 'xyzzy' (see"),
        ([], "SUBCOMMAND"),
        (["predict", "run", "q.jsonl", "--ouput", "x", "--output", "y"], "did you mean --output?"),
        (["train", "recipe", "--divice=cpu"], "unknown argument '--divice=cpu'; did you mean --device?"),
        (["shapes", "dir", "--scenes", "many"], "argument --scenes: expected an integer of 1 or more; got 'many'"),
        (["shapes", "dir", "--seed", "-1"], "argument --seed: expected an integer of 0 or more; got '-1'"),
        (["train", "recipe", "--dry-run", "--tflops", "nan"], "expected a number above 0; got 'nan'"),
        (["score", "p.jsonl", "--dataset", "refcocoo", "--root", ".", "--split", "val"], "refcoco"),
        (["shapes", "d", "--scenes", "0"], "1 or more"),
        (["shapes", "d", "--seed", "-1"], "0 or more"),
        (["segment", "run"], "IMAGE"),
    ],
)
def test_a_mistyped_command_gets_one_line_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert error.startswith("sam4mllm: error: ") and error.count("\n") == 1 and message in error


def test_overrides_are_accepted_before_and_after_options() -> None:
    options = parse(["train", "shapes_ppg", "seed=1", "--device", "cpu", "training.max_steps=3"])
    assert options.overrides == ["seed=1", "training.max_steps=3"] and options.device == "cpu"


@pytest.mark.usefixtures("scripted")
def test_an_output_that_cannot_be_written_gets_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "q.jsonl").write_text(json.dumps({"id": "1", "image": "a.png", "phrase": "left"}))
    (tmp_path / "taken").write_text("a file, not a folder")
    arguments = ["predict", "run", str(tmp_path / "q.jsonl"), "--output", str(tmp_path / "taken")]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("sam4mllm: error: ") and error.count("\n") == 1 and "taken" in error
    with pytest.raises(DataError, match="taken"):
        main(["--traceback", *arguments])


@pytest.mark.parametrize(
    ("arguments", "function", "advice"),
    [
        (["demo"], "sam4mllm.demo.run_demo", " to resume"),
        (["shapes", "new"], "sam4mllm.synthetic.writer.write_dataset", ""),
    ],
)
def test_an_interruption_ends_with_130_and_names_the_way_to_resume(
    arguments: list[str],
    function: str,
    advice: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(function, interrupted)
    assert main(arguments) == 130
    assert capsys.readouterr().err == f"sam4mllm: interrupted; run the same command again{advice}\n"
    assert list(tmp_path.glob("*/*")) == []


def test_a_defect_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def defect(output: Path, *, full: bool) -> None:
        raise RuntimeError("ours")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sam4mllm.demo.run_demo", defect)
    with pytest.raises(RuntimeError, match="ours"):
        main(["demo"])


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore"), "CUDA out of memory. Tried to "),
        (MemoryError(), "the machine's memory is used up\n"),
    ],
)
def test_memory_that_runs_out_where_nothing_can_be_divided_gets_one_line(
    error: Exception,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def load(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sam4mllm.demo.run_demo", load)
    assert main(["demo"]) == 2
    written = capsys.readouterr().err
    assert written.startswith(f"sam4mllm: error: out of memory, outside of any batch: {reason}")
    assert written.count("\n") == 1


def test_standard_output_can_be_piped_to_a_program_that_stops_reading(root: Path, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text("")
    command = f"{sys.executable} -m sam4mllm score {tmp_path}/p.jsonl --dataset refcoco --root {root} --split val"
    done = subprocess.run(["bash", "-c", f"{command} | true"], capture_output=True, text=True, timeout=120, check=False)
    assert "Traceback" not in done.stderr
