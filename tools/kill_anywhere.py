"""Kill subcommands by SIGKILL at random times, resume them, and compare every file with that of an uninterrupted run.

    OMP_NUM_THREADS=1 python tools/kill_anywhere.py --kills 20 --json kills.json
    OMP_NUM_THREADS=1 python tools/kill_anywhere.py --kills 20 --interrupt --json interrupts.json

The stages prepare, train, predict, evaluate, score and calibrate run on a few generated scenes and the embedded models;
with --tiny, which is much cheaper, the models of prepare and train are tiny and random, and the answers of the other
stages are scripted, with masks that are the answers' boxes. All files are read and written by the same code.

For each stage and each kill, the folder is restored to its state before the stage, the stage is killed, and the same
command is run again to its end. Half of the kills are at a random time of the run, half directly before a random file
operation of it (open to write, rename, remove, create or remove a folder), because most faults are between two of
them. Then all files must be equal, also in number; only dates, durations, and the times and inodes of images, are not
compared. With --interrupt all signals are SIGINT, as Ctrl-C sends it, at a random time; then the stage must also end
within 2 seconds, with exit status 130 and a line that names the way to resume.

Each run is a fork of this process, which has imported the libraries: a kill then hits the work and not the imports.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import json
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from forked_runs import Run, run_stage

from sam4mllm.utils.interruption import INTERRUPTED

STATE = "state"
"""The folder in the work folder that all stages run in."""

_SPLIT = ["--dataset", "refcoco", "--root", "data", "--split"]
_RECIPE = [
    "shapes_ppg",
    "output=run",
    "targets.store=targets",
    "targets.groups=4",
    "training.max_steps=6",
    "training.save_steps=2",
    "training.logging_steps=1",
    "training.per_device_train_batch_size=2",
    "training.gradient_accumulation_steps=1",
    "training.validate.every_steps=3",
    "training.validate.samples=2",
    "data.validation.root=data",
    *(f"data.train.{index}.{setting}" for index in range(3) for setting in ("root=data", "limit=4")),
]
_TINY = ["model.base=base", "segmenter.checkpoint=sam.pth", "generation.max_new_tokens=4"]
STAGES: dict[str, list[str]] = {
    "prepare": ["prepare", *_RECIPE, "--json", "prepare.json"],
    "train": ["train", *_RECIPE],
    "predict": ["predict", "run", *_SPLIT, "testA", "--output", "predictions", "--json", "predict.json"],
    "evaluate": [
        *["evaluate", "run", *_SPLIT, "val", "--limit", "6", "--baseline", "box", "--baseline", "filled-box"],
        *["--cases", "1", "--output", "evaluation", "--json", "evaluate.json"],
    ],
    "score": ["score", "predictions/predictions.jsonl", *_SPLIT, "testA", "--json", "score.json"],
    "calibrate": ["calibrate", "run", *_SPLIT, "val", "--limit", "6", "--json", "calibrate.json"],
}
"""The command line of each stage, in an order in which each finds the files that it needs."""

SECONDS_TO_END = 2.0
"""The longest time between an interrupt and the end of a process."""

_NOT_COMPARED = ("date", "seconds", "mtime_ns", "ctime_ns", "inode")
"""Keys of JSON files, at any depth; the last three are of images, which the restored folder has as other files."""


@dataclass(slots=True)
class StageResult:
    """What the kills of one stage gave.

    `at_time` and `at_operation` are the runs that were killed; `ended_before` those that ended before their kill.
    `slowest_end` is the longest time in seconds between an interrupt and the end of the process.
    """

    seconds: float
    operations: int
    files: int
    at_time: int = 0
    at_operation: int = 0
    ended_before: int = 0
    slowest_end: float = 0.0
    problems: list[str] = field(default_factory=list)


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in a folder by its path; without `_NOT_COMPARED` in JSON files."""
    found = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = file.read_bytes()
        if file.suffix == ".json":
            content = json.dumps(_without_times(json.loads(content))).encode()
        found[file.relative_to(folder).as_posix()] = hashlib.sha256(content).hexdigest()
    return found


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(each) for key, each in value.items() if key not in _NOT_COMPARED}
    return [_without_times(each) for each in value] if isinstance(value, list) else value


def differences(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    """Return one line for each file that is missing, additional or different."""
    lines = [f"missing: {name}" for name in expected if name not in found]
    lines += [f"additional: {name}" for name in found if name not in expected]
    return lines + [f"different: {name}" for name in expected if name in found and expected[name] != found[name]]


def kill_stage(arguments: Sequence[str], work: Path, kills: int, rng: random.Random, *, interrupt: bool) -> StageResult:
    """Run a stage once without a kill, then kill and resume it `kills` times; leave the files of the first run."""
    state, before, after = work / STATE, work / "before", work / "after"
    _replace(before, state)
    run_to_end(arguments, state)  # It imports what the later runs then find imported.
    _replace(state, before)
    reference = run_to_end(arguments, state)
    expected = digests(state)
    _replace(after, state)
    result = StageResult(round(reference.seconds, 2), reference.operations, len(expected))
    for number in range(kills):
        _replace(state, before)
        if interrupt or number % 2 == 0:
            after_seconds = rng.uniform(0, reference.seconds)
            where = f"{after_seconds:.3f} s"
            sent = signal.SIGINT if interrupt else signal.SIGKILL
            killed = run_stage(arguments, state, after_seconds=after_seconds, sent=sent)
            result.at_time += killed.status in (-signal.SIGKILL, INTERRUPTED)
        else:
            operation = rng.randrange(reference.operations)
            where = f"file operation {operation} of {reference.operations}"
            killed = run_stage(arguments, state, at_operation=operation)
            result.at_operation += killed.status == -signal.SIGKILL
        result.ended_before += killed.status == 0
        problems = problems_of_end(killed, work) if interrupt else []
        result.slowest_end = round(max(result.slowest_end, killed.seconds_after_signal if interrupt else 0.0), 3)
        resumed = run_stage(arguments, state)
        if resumed.status != 0:
            problems.append(f"exit status {resumed.status} when resumed: {_last_line(work)}")
        problems += differences(expected, digests(state))
        result.problems += [f"signal at {where}: {problem}" for problem in problems]
    _replace(state, after)
    return result


def problems_of_end(interrupted: Run, work: Path) -> list[str]:
    """Return what is wrong with the end of an interrupted run; nothing for one that ended before."""
    if interrupted.status == 0:
        return []
    problems = []
    if interrupted.status != INTERRUPTED or not _last_line(work).startswith("sam4mllm: interrupted; run the same"):
        problems.append(f"exit status {interrupted.status}, last line: {_last_line(work)}")
    if interrupted.seconds_after_signal > SECONDS_TO_END:
        problems.append(f"ended {interrupted.seconds_after_signal:.1f} s after the interrupt")
    return problems


def run_to_end(arguments: Sequence[str], state: Path) -> Run:
    """Run a stage without a kill, and import the modules that it imported, so that later forks have them.

    Raises:
        SystemExit: The exit status is not 0.
    """
    run = run_stage(arguments, state)
    if run.status != 0:
        raise SystemExit(f"{arguments[0]}: exit status {run.status}: {_last_line(state.parent)}")
    for module in run.modules:
        with contextlib.suppress(Exception):
            importlib.import_module(module)
    return run


def _replace(target: Path, source: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)


def _last_line(work: Path) -> str:
    lines = (work / "output.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    return lines[-1] if lines else ""


def prepare_work(work: Path, scenes: int) -> None:
    """Generate the data in the folder of the stages, and let shards be small, so that there are several."""
    from sam4mllm.pipeline.batch import predict
    from sam4mllm.synthetic.writer import write_dataset
    from sam4mllm.targets import prepare

    write_dataset(work / STATE / "data", scenes=scenes, held_out=2)
    prepare.SHARD_OBJECTS = 4
    predict.__kwdefaults__ = {**(predict.__kwdefaults__ or {}), "shard_size": 3}


def use_tiny_models(state: Path) -> None:
    """Save tiny random models in the folder of the stages, and let pipelines of this process have scripted answers."""
    from sam4mllm.methods.registry import method_from_settings
    from sam4mllm.pipeline.pipeline import Pipeline
    from sam4mllm.recipe.schema import MethodSection
    from sam4mllm.testing import BoxSegmenter, ScriptedEngine, save_tiny_mllm, save_tiny_sam

    save_tiny_mllm("fast_vlm", state / "base", seed=1)
    save_tiny_sam(state / "sam.pth")
    method = method_from_settings(MethodSection().model_dump())
    # The empty key is a part of every question.
    pipeline = Pipeline(method, ScriptedEngine({"": "[0,0,999,999] +(500,500)(400,400) -(0,0)"}), BoxSegmenter())
    Pipeline.from_pretrained = lambda *arguments, **options: pipeline  # type: ignore[method-assign]


def main(arguments: Sequence[str] | None = None) -> int:
    """Kill the named stages; the exit status is 1 if a file differs or a stage cannot be resumed."""
    parser = argparse.ArgumentParser(description="Kill subcommands at random times, resume them, compare all files.")
    parser.add_argument("--kills", type=int, default=20, metavar="N", help="kills of each stage (default: 20)")
    parser.add_argument("--stages", nargs="+", choices=tuple(STAGES), default=list(STAGES), help="default: all")
    parser.add_argument("--interrupt", action="store_true", help="send SIGINT (Ctrl-C) in place of SIGKILL")
    parser.add_argument("--tiny", action="store_true", help="use tiny random models and scripted answers")
    parser.add_argument("--scenes", type=int, default=4, metavar="N", help="training scenes (default: 4)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the random times (default: 0)")
    parser.add_argument("--work", type=Path, metavar="DIR", help="a new folder; default: a temporary one")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    options = parser.parse_args(arguments)
    # A shell starts background jobs with SIGINT ignored, but this script interrupts its own work.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    record: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        work = (options.work or Path(temporary)).resolve()
        prepare_work(work, options.scenes)
        if options.tiny:
            use_tiny_models(work / STATE)
        for name, command in STAGES.items():
            if set(record) == set(options.stages):
                break
            if options.tiny and name in ("prepare", "train"):
                command = [*command, *_TINY]
            if name not in options.stages:
                run_to_end(command, work / STATE)
                continue
            result = kill_stage(
                command, work, options.kills, random.Random(f"{options.seed}/{name}"), interrupt=options.interrupt
            )
            record[name] = asdict(result)
            print(
                f"{name}: {result.seconds} s, {result.operations} file operations, {result.files} files; ended "
                f"{result.at_time} times at a time, {result.at_operation} before a file operation "
                f"({result.ended_before} had ended before); {len(result.problems)} problems",
                flush=True,
            )
            print("".join(f"  {problem}\n" for problem in result.problems), end="", flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return 1 if any(each["problems"] for each in record.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
