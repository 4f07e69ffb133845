"""RunFolder: the output of a training run, with all files that inference needs.

    adapter_config.json, adapter_model.safetensors   the adapter, as peft saves it; written when training ends
    mask_decoder.safetensors                         SAM's mask decoder, if the run trained it
    processor and tokenizer files                    as the base's processor saves them
    recipe.yaml                                      every setting of the run, with defaults
    method.json                                      the method that asks the model: `Method.settings()`
    versions.json                                    the versions of the libraries that were used
    calibration.json                                 how confidences become scores, if a calibration was fitted
    leakage.json                                     the samples that the leakage filter removed from each data set
    train_log.jsonl                                  loss and validation, by step
    checkpoints/                                     the state that training resumes from, and the best adapter so far

A merged run has the complete model (config.json, weights, processor) in place of the adapter, beside recipe.yaml,
method.json, versions.json and calibration.json.
"""

from __future__ import annotations

import difflib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sam4mllm.errors import ModelError, RecipeError
from sam4mllm.methods.base import Method
from sam4mllm.methods.registry import method_from_settings, plain_method
from sam4mllm.recipe.compare import differences, is_longer
from sam4mllm.recipe.loading import load_recipe
from sam4mllm.recipe.schema import Recipe
from sam4mllm.runs.calibration import Calibration
from sam4mllm.runs.checkpoints import Checkpoints, save_adapter, write_calibration
from sam4mllm.runs.file_names import (
    CALIBRATION,
    LEAKAGE,
    METHOD,
    RECIPE,
    TRAIN_LOG,
    VERSIONS,
)
from sam4mllm.utils.atomic_io import atomic_write_text, writing
from sam4mllm.utils.hub import ADAPTER_CONFIG, ADAPTER_WEIGHTS, MASK_DECODER, MODEL_CONFIG
from sam4mllm.utils.versions import versions


class RunFolder:
    """A run folder at `path`; use `create` for training and `open` for a trained run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, recipe: Recipe, method: Method | None = None) -> RunFolder:
        """Create the folder `recipe.output`, or open the one that an earlier start of the same recipe left.

        A finished run is reopened by a recipe that only trains for more steps or epochs. A folder in which nothing was
        trained yet, as a start that ended with an error leaves it, gets the new recipe.

        `method` is for recipes whose method depends on the model's family; None builds it from the recipe. An existing
        folder keeps its own method, which its checkpoints were trained with; see `keeps_method`.

        Raises:
            RecipeError: The folder holds a run of another recipe, or a finished one without a checkpoint.
        """
        run = cls(recipe.output)
        keeps_method = run.keeps_method(recipe)
        if (run.path / RECIPE).is_file():
            changed = run.differences(recipe)
            if changed and run.is_trained:
                raise RecipeError(
                    f"{run.path}: holds a run of another recipe ({'; '.join(changed)}); "
                    "choose another output, or remove that folder's recipe.yaml, adapter and checkpoints"
                )
            if run.is_finished and not run.is_finished_for(recipe):
                run._reopen()
        run.checkpoints.folder.mkdir(parents=True, exist_ok=True)
        if keeps_method:
            method = run.method
        run.write_settings(recipe, method or plain_method(recipe))
        return run

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Open the run folder of a finished training run.

        Raises:
            ModelError: The folder does not exist, or has no recipe or no adapter.
        """
        run = cls(Path(path))
        if not run.path.is_dir():
            near = did_you_mean_run(path)
            raise ModelError(f"{path}: no such run folder{near or '; train one with `sam4mllm train RECIPE`'}")
        if not (run.path / RECIPE).is_file():
            raise ModelError(f"{path}: not a run folder (recipe.yaml is missing); `sam4mllm train RECIPE` creates one")
        if not (run.is_finished or run.is_merged):
            raise ModelError(
                f"{path}: this run folder has no adapter ({ADAPTER_CONFIG} is missing); "
                f"finish its training with `sam4mllm train {run.path / 'recipe.yaml'}`"
            )
        return run

    def differences(self, recipe: Recipe) -> list[str]:
        """Return at most three settings, as text, in which `recipe` would train another adapter than this run's."""
        return differences(self.recipe, recipe)

    def write_settings(self, recipe: Recipe, method: Method) -> None:
        """Write the recipe, the method's settings, and the libraries' versions."""
        atomic_write_text(self.path / RECIPE, recipe.to_yaml())
        atomic_write_text(self.path / METHOD, json.dumps(method.settings(), indent=2) + "\n")
        atomic_write_text(self.path / VERSIONS, json.dumps(versions(), indent=2) + "\n")

    @property
    def recipe(self) -> Recipe:
        """The recipe; its keys for other libraries are not checked, because their versions may differ now.

        Settings that it lacks have the values with which versions before them trained and validated.
        """
        recipe = load_recipe(self.path / RECIPE, to_train=False)
        method, generation = recipe.method, recipe.generation
        if "packing" not in method.model_fields_set:
            method = method.model_copy(update={"packing": "turns"})
        if "constrained" not in generation.model_fields_set:
            generation = generation.model_copy(update={"constrained": False})
        return recipe.model_copy(update={"method": method, "generation": generation})

    @property
    def method(self) -> Method:
        """The method that asks this run's model.

        Raises:
            ModelError: method.json is missing or damaged.
            RecipeError: It names a method or settings that this version does not have.
        """
        file = self.path / METHOD
        try:
            return method_from_settings(json.loads(file.read_text(encoding="utf-8")))
        except RecipeError as error:
            raise RecipeError(f"{file}: {error}") from error
        except (OSError, ValueError, AttributeError) as error:
            raise ModelError(f"{file}: cannot be read as the settings of a method: {error}") from error

    @property
    def calibration(self) -> Calibration | None:
        """How confidences become scores; None if no calibration was fitted.

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
                f"{file}: not a calibration: {error}; remove it, and fit another with `sam4mllm calibrate {self.path}`"
            ) from error

    def write_calibration(self, calibration: Calibration | None) -> None:
        """Write the calibration; None removes an earlier one."""
        write_calibration(self.path, calibration)

    def write_leakage(self, record: dict[str, Any]) -> None:
        """Write which splits the leakage filter protected, and what it removed."""
        atomic_write_text(self.path / LEAKAGE, json.dumps(record, indent=2) + "\n")

    @property
    def is_started(self) -> bool:
        """Whether the run's method is written."""
        return (self.path / METHOD).is_file()

    @property
    def is_trained(self) -> bool:
        """Whether the folder holds anything that was trained: an adapter, a merged model or a checkpoint."""
        checkpoints = self.checkpoints
        return self.is_finished or self.is_merged or checkpoints.exist or checkpoints.best() is not None

    def keeps_method(self, recipe: Recipe) -> bool:
        """Whether the folder keeps its method for `recipe`: it has one, and no other recipe replaces its own."""
        if not self.is_started:
            return False
        return self.is_trained or not ((self.path / RECIPE).is_file() and self.differences(recipe))

    @property
    def is_finished(self) -> bool:
        """Whether the adapter is complete: its config is written last."""
        return (self.path / ADAPTER_CONFIG).is_file()

    def is_finished_for(self, recipe: Recipe) -> bool:
        """Whether the adapter is complete, and `recipe` does not train it for more steps or epochs."""
        return self.is_finished and not ((self.path / RECIPE).is_file() and is_longer(self.recipe, recipe))

    def _reopen(self) -> None:
        """Make a finished run an unfinished one, which resumes from its last checkpoint."""
        if not self.checkpoints.exist:
            raise RecipeError(
                f"{self.path}: training has finished and its checkpoints were removed, so it cannot be continued; set "
                "another output"
            )
        # First of all: from now on, an interrupted training must not be taken for a finished one.
        (self.path / ADAPTER_CONFIG).unlink()

    @property
    def is_merged(self) -> bool:
        """Whether the folder holds a complete model with the adapter merged into it."""
        return (self.path / MODEL_CONFIG).is_file() and not self.is_finished

    @property
    def checkpoints(self) -> Checkpoints:
        """The folder that training resumes from."""
        return Checkpoints(self.path)

    @property
    def log(self) -> TrainLog:
        """The training log."""
        return TrainLog(self.path / TRAIN_LOG)

    def rewind(self, step: int) -> None:
        """Remove what was logged and saved after `step`, the step that training resumes from."""
        self.log.truncate(step)
        self.checkpoints.drop_best_after(step)

    def finish(self, model: Any, processor: Any, weights: dict[str, Any] | None = None) -> None:
        """Write the processor, then the best adapter with its calibration; without validations, the adapter of `model`.

        `weights` is as in `Checkpoints.save_best`.
        """
        with writing(self.path):
            processor.save_pretrained(self.path)
        best = self.checkpoints.best()
        source = self.checkpoints.folder / "unfinished-adapter"
        shutil.rmtree(source, ignore_errors=True)
        with writing(source):
            if best is None:
                save_adapter(model, source, weights)
            else:
                shutil.copytree(best[2], source)
        if (source / CALIBRATION).is_file():
            os.replace(source / CALIBRATION, self.path / CALIBRATION)
        else:
            self.write_calibration(None)
        (self.path / MASK_DECODER).unlink(missing_ok=True)
        if (source / MASK_DECODER).is_file():
            os.replace(source / MASK_DECODER, self.path / MASK_DECODER)
        os.replace(source / ADAPTER_WEIGHTS, self.path / ADAPTER_WEIGHTS)
        config = (source / ADAPTER_CONFIG).read_text(encoding="utf-8")
        shutil.rmtree(source)
        # With this file the run is finished, so it is written last.
        atomic_write_text(self.path / ADAPTER_CONFIG, config)


def did_you_mean_run(name: str | Path) -> str:
    """Return "; did you mean X or Y?" for the run folders whose paths are closest to `name`, or "" if none is close.

    They are searched beside `name`, and in the working folder and its subfolders.
    """
    runs = [file.parent for pattern in ("*", "*/*") for file in sorted(Path().glob(f"{pattern}/{RECIPE}"))]
    runs += [file.parent for file in sorted(Path(name).parent.glob(f"*/{RECIPE}"))]
    near = difflib.get_close_matches(str(name), dict.fromkeys(map(str, runs)), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(near)}?" if near else ""


class TrainLog:
    """The training log in `file`: one JSON object per line, each with its `step`.

        {"step": 20, "epoch": 0.4, "loss": 1.1, "learning_rate": 0.001, "grad_norm": 0.8}
        {"step": 100, "validation": {"ciou": 0.61, "malformed": 0.01, "n": 48}}

    It holds neither dates nor durations, so the logs of two runs can be compared line by line. A last line that is
    truncated, because the process was killed, is ignored.
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    def read(self) -> list[dict[str, Any]]:
        """Return the records in their order; none if there is no file."""
        if not self.file.is_file():
            return []
        text = self.file.read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def append(self, record: Mapping[str, Any]) -> None:
        """Append a record."""
        with writing(self.file), self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def truncate(self, step: int) -> None:
        """Remove the records after `step`."""
        kept = [record for record in self.read() if record["step"] <= step]
        atomic_write_text(self.file, "".join(json.dumps(record) + "\n" for record in kept))

    def validations(self) -> dict[int, dict[str, Any]]:
        """Return the metrics of each validation, by step."""
        return {record["step"]: record["validation"] for record in self.read() if "validation" in record}
