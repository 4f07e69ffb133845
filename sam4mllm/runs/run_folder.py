"""RunFolder: what a training leaves behind and all that inference needs.

    adapter_config.json, adapter_model.safetensors   the adapter, as peft saves it; there once training has ended
    processor and tokenizer files                    as the base's processor saves them
    recipe.yaml                                      every setting of the run, defaults written out
    method.json                                      how to ask: `Method.settings()`
    versions.json                                    the libraries that trained it
    calibration.json                                 how evidence becomes scores; there where it was fitted
    leakage.json                                     what the leakage guard took out of each set
    train_log.jsonl                                  loss and validation, by step
    checkpoints/                                     what a resume needs, and the best adapter so far

A folder that `merge` wrote holds the whole model (config.json, weights, processor) in the adapter's place, beside
recipe.yaml, method.json, versions.json and calibration.json. What is done is known from these files alone. This module
loads no model.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from sam4mllm.errors import ModelError, RecipeError
from sam4mllm.methods.registry import Method, method_from_settings
from sam4mllm.runs.calibration import Calibration
from sam4mllm.recipe.schema import Recipe
from sam4mllm.recipe.loading import load_recipe
from sam4mllm.recipe.compare import differences
from sam4mllm.runs.train_log import TrainLog
from sam4mllm.utils.versions import versions
from sam4mllm.utils.atomic_io import atomic_write_text

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
MODEL_CONFIG = "config.json"
CALIBRATION = "calibration.json"

_CHECKPOINT = "checkpoint-"
_BEST = "best-"
_BEST_FIGURE = "validation.json"
_TRAINER_STATE = "trainer_state.json"
_WORLD_SIZE = "world_size"
_LEARNT = "learnt"
_TAUGHT = "taught"


class RunFolder:
    """A run folder at `path`. Made by `create`, to train in, or `open`, to use what was trained."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, recipe: Recipe, method: Method | None = None) -> RunFolder:
        """The folder `recipe.output`, new or left by an earlier start of the very same recipe.

        `method` is how it teaches and asks, where the model's family has a say; None takes the recipe's word for it. A
        folder that was there keeps its own, for its checkpoints were taught by it.

        Raises:
            RecipeError: the folder holds a run of another recipe.
        """
        run = cls(recipe.output)
        written = run.path / "recipe.yaml"
        if written.is_file():
            changed = run.differences(recipe)
            if changed:
                raise RecipeError(
                    f"{run.path}: holds a run of another recipe ({'; '.join(changed)}); "
                    "choose another output, or remove that folder's recipe.yaml, adapter and checkpoints"
                )
        run.checkpoints.mkdir(parents=True, exist_ok=True)
        settled = run.method if run.is_started else method or method_from_settings(recipe.method.model_dump())
        run.describe(recipe, settled)
        return run

    def differences(self, recipe: Recipe) -> list[str]:
        """The settings in which `recipe` would train another adapter than this folder's, as text; at most three."""
        return differences(self.recipe, recipe)

    def describe(self, recipe: Recipe, method: Method) -> None:
        """Write the recipe, how to ask, and the libraries' versions."""
        atomic_write_text(self.path / "recipe.yaml", recipe.to_yaml())
        atomic_write_text(self.path / "method.json", json.dumps(method.settings(), indent=2) + "\n")
        atomic_write_text(self.path / "versions.json", json.dumps(versions(), indent=2) + "\n")

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """The run folder of a training that has ended.

        Raises:
            ModelError: no such folder, or one without recipe or adapter.
        """
        run = cls(Path(path))
        if not run.path.is_dir():
            raise ModelError(f"{path}: no such run folder; train one with `sam4mllm train RECIPE`")
        if not (run.path / "recipe.yaml").is_file():
            raise ModelError(f"{path}: is no run folder (recipe.yaml is missing); `sam4mllm train RECIPE` makes one")
        if not (run.is_finished or run.is_merged):
            raise ModelError(
                f"{path}: this run folder has no adapter ({ADAPTER_CONFIG} is missing); "
                f"train it to its end with `sam4mllm train {run.path / 'recipe.yaml'}`"
            )
        return run

    @property
    def recipe(self) -> Recipe:
        return load_recipe(self.path / "recipe.yaml", to_train=False)

    @property
    def method(self) -> Method:
        """How to ask this run's model.

        Raises:
            ModelError: method.json is missing or damaged.
        """
        file = self.path / "method.json"
        try:
            return method_from_settings(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, AttributeError) as error:
            raise ModelError(f"{file}: does not say how to ask the model: {error}") from error

    @property
    def calibration(self) -> Calibration | None:
        """How this run's evidence becomes scores; None where nothing was fitted.

        Raises:
            ModelError: calibration.json is damaged.
        """
        file = self.path / CALIBRATION
        if not file.exists():
            return None
        try:
            return Calibration.from_json(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise ModelError(
                f"{file}: is no calibration: {error}; remove it, and make another with `sam4mllm calibrate {self.path}`"
            ) from error

    def keep_calibration(self, calibration: Calibration | None) -> None:
        """Write the calibration; for None, have none."""
        _write_calibration(self.path, calibration)

    @property
    def is_started(self) -> bool:
        """Whether it is settled how this run teaches and asks."""
        return (self.path / "method.json").is_file()

    @property
    def is_finished(self) -> bool:
        """Whether the adapter is there; its config is written last."""
        return (self.path / ADAPTER_CONFIG).is_file()

    @property
    def is_merged(self) -> bool:
        """Whether the whole model is there, with the adapter merged into it."""
        return (self.path / MODEL_CONFIG).is_file() and not self.is_finished

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def log(self) -> TrainLog:
        return TrainLog(self.path / "train_log.jsonl")

    def keep_leakage(self, record: dict[str, Any]) -> None:
        """Write down what the leakage guard guarded, and what it took out."""
        atomic_write_text(self.path / "leakage.json", json.dumps(record, indent=2) + "\n")

    def record_data_digest(self, data: str, *, is_finished: bool) -> None:
        """Remember the digest of the data.

        Raises:
            RecipeError: training has ended, and it was on other data.
        """
        record = self.checkpoints / _LEARNT
        if is_finished and record.is_file() and record.read_text("utf-8") != data:
            raise RecipeError(
                f"{self.path}: is trained, and the data have changed since; set another output to train on them, or "
                "remove the folder"
            )
        if not is_finished:
            atomic_write_text(record, data)

    def check_resumable(self, taught: str) -> None:
        """Remember the digest of what is taught.

        Raises:
            RecipeError: the checkpoints were taught something else, so the place where they stopped is no place in it.
        """
        record = self.checkpoints / _TAUGHT
        if _numbered(self.checkpoints, _CHECKPOINT) and record.is_file() and record.read_text("utf-8") != taught:
            raise RecipeError(
                f"{self.path}: its checkpoints were taught other conversations: the data, the targets or what the "
                f"guard takes out have changed since; bring them back, or remove {self.checkpoints} to begin anew"
            )
        atomic_write_text(record, taught)

    def whole_checkpoints(self, world_size: int = 1) -> list[Path]:
        """The checkpoints that `world_size` processes wrote to their end, the latest first; the others are removed.

        A checkpoint is whole when the trainer's state can be read and every process has left its random numbers.

        Raises:
            RecipeError: they were written by another number of processes.
        """
        numbered = _numbered(self.checkpoints, _CHECKPOINT)
        record = self.checkpoints / _WORLD_SIZE
        wrote = int(record.read_text(encoding="utf-8")) if record.is_file() else 1
        if numbered and wrote != world_size:
            raise RecipeError(
                f"{self.path}: {wrote} process(es) trained its checkpoints, now there are {world_size}, which would "
                f"change the order of the data; start {wrote}, or remove {self.checkpoints} to begin anew"
            )
        atomic_write_text(record, str(world_size))
        whole = []
        for _, folder in numbered:
            if _is_json(folder / _TRAINER_STATE) and len(list(folder.glob("rng_state*.pth"))) == world_size:
                whole.append(folder)
            else:
                shutil.rmtree(folder)
        return whole[::-1]

    def best(self) -> tuple[int, float, Path] | None:
        """Step, cIoU and folder of the best adapter so far, or None."""
        kept = _numbered(self.checkpoints, _BEST)
        if not kept:
            return None
        step, folder = max(kept)
        figures = json.loads((folder / _BEST_FIGURE).read_text(encoding="utf-8"))
        return step, float(figures["ciou"]), folder

    def keep_best(
        self,
        model: Any,
        step: int,
        ciou: float,
        weights: dict[str, Any] | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        """The adapter on `model` as the best so far, with what was fitted to its answers.

        The one before it is removed once this one is whole. `weights` are the model's where it does not hold them
        itself, because several processes hold a part each.
        """
        folder = self.checkpoints / f"{_BEST}{step}"
        unfinished = folder.with_name(f"unfinished-{folder.name}")
        shutil.rmtree(unfinished, ignore_errors=True)
        model.save_pretrained(unfinished, state_dict=weights)
        atomic_write_text(unfinished / _BEST_FIGURE, json.dumps({"step": step, "ciou": ciou}) + "\n")
        _write_calibration(unfinished, calibration)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(unfinished, folder)
        self._drop_best(lambda other: other != step)

    def rewind(self, step: int) -> None:
        """Forget what came after `step`, from where training goes on and will meet it all again."""
        self.log.truncate(step)
        self._drop_best(lambda other: other > step)

    def finish(self, model: Any, processor: Any, weights: dict[str, Any] | None = None) -> None:
        """Write the processor, then the best adapter, or the one on `model` where none was validated.

        The best one's calibration comes along. `weights` as in `keep_best`.
        """
        processor.save_pretrained(self.path)
        best = self.best()
        source = self.path / "checkpoints" / "unfinished-adapter"
        shutil.rmtree(source, ignore_errors=True)
        if best is None:
            model.save_pretrained(source, state_dict=weights)
        else:
            shutil.copytree(best[2], source)
        if (source / CALIBRATION).is_file():
            os.replace(source / CALIBRATION, self.path / CALIBRATION)
        else:
            self.keep_calibration(None)
        os.replace(source / ADAPTER_WEIGHTS, self.path / ADAPTER_WEIGHTS)
        os.replace(source / ADAPTER_CONFIG, self.path / ADAPTER_CONFIG)
        shutil.rmtree(source)

    def _drop_best(self, unwanted: Any) -> None:
        for step, folder in _numbered(self.checkpoints, _BEST):
            if unwanted(step):
                shutil.rmtree(folder)


def _write_calibration(folder: Path, calibration: Calibration | None) -> None:
    """The calibration as the folder's file; for None no file, not even an earlier one."""
    if calibration is None:
        (folder / CALIBRATION).unlink(missing_ok=True)
    else:
        atomic_write_text(folder / CALIBRATION, json.dumps(calibration.to_json(), indent=2, allow_nan=False) + "\n")


def _numbered(folder: Path, prefix: str) -> list[tuple[int, Path]]:
    """The sub-folders `{prefix}{number}` with their numbers, ascending."""
    found = [(place.name.removeprefix(prefix), place) for place in folder.glob(f"{prefix}*") if place.is_dir()]
    return sorted((int(number), place) for number, place in found if number.isdecimal())


def _is_json(file: Path) -> bool:
    try:
        json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True
