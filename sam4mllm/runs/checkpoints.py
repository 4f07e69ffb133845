"""The folder `checkpoints` of a run: the state that training resumes from, and the best adapter so far.

checkpoints/checkpoint-100/    as the Trainer saves it
checkpoints/best-200/          the adapter with the best validation, its cIoU and its calibration
checkpoints/learnt             the digest of the data
checkpoints/taught             the digest of the training conversations
checkpoints/answers            the digest of each trained answer, by which removed records are recognized
checkpoints/world_size         the number of processes that wrote the checkpoints
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from sam4mllm.errors import RecipeError
from sam4mllm.runs.calibration import Calibration
from sam4mllm.runs.file_names import CALIBRATION, TRAINER_STATE, VALIDATION
from sam4mllm.utils.atomic_io import atomic_write_text, remove_folder, writing

CHECKPOINT = "checkpoint-"
_BEST = "best-"
_INCOMPLETE = ("unfinished-", "removed-")
"""How the names of folders begin that are being written or removed."""
_WORLD_SIZE = "checkpoints/world_size"
# These names are kept, so that runs of older versions can be resumed.
_DATA_DIGEST = "checkpoints/learnt"
_CONVERSATIONS_DIGEST = "checkpoints/taught"
_ANSWERS = "checkpoints/answers"

logger = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints in `folder`, of the run folder `run`."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.folder = run / "checkpoints"

    @property
    def exist(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return bool(numbered_folders(self.folder, CHECKPOINT))

    def record_data_digest(self, digest: str, *, is_finished: bool) -> None:
        """Record the digest of the data that the run is trained on; that of a finished run is compared instead.

        Raises:
            RecipeError: Training has finished, and it was on other data.
        """
        file = self.run / _DATA_DIGEST
        if is_finished and file.is_file() and file.read_text("utf-8") != digest:
            raise RecipeError(
                f"{self.run}: training has finished, and the data have changed since; set another output to "
                "train on the new data, or remove the folder"
            )
        if not is_finished:
            atomic_write_text(file, digest)

    def check_resumable(self, digest: str, answers: Collection[str] = ()) -> None:
        """Check that existing checkpoints were trained on the conversations with this digest, and record the digest.

        Conversations of which only answers were removed are accepted with a warning, because a record that cannot be
        used must not end a run for good. Their order is another one.

        Args:
            digest: The digest of all conversations in order.
            answers: A digest of each answer with its question and image.

        Raises:
            RecipeError: The checkpoints were trained on other conversations, so their position in the data is
                meaningless.
        """
        file, known = self.run / _CONVERSATIONS_DIGEST, self.run / _ANSWERS
        if self.exist and file.is_file() and file.read_text("utf-8") != digest:
            trained = set(known.read_text("utf-8").split()) if known.is_file() else set()
            if answers and set(answers) < trained:
                logger.warning(
                    "%s: %d of %d answers are no longer in the training data; training resumes without them, so the "
                    "order of the data differs from that of an uninterrupted run",
                    self.run,
                    len(trained.difference(answers)),
                    len(trained),
                )
            else:
                raise self._other_conversations()
        # The answers first: without them, a later call would refuse removed records.
        atomic_write_text(known, "".join(f"{each}\n" for each in sorted(set(answers))))
        atomic_write_text(file, digest)

    def _other_conversations(self) -> RecipeError:
        return RecipeError(
            f"{self.run}: its checkpoints were trained on other conversations: the data, the targets or "
            "the samples removed by the leakage filter have changed since; restore them, or remove "
            f"{self.folder} to start again"
        )

    def complete(self, world_size: int = 1) -> list[Path]:
        """Return the complete checkpoints of `world_size` processes, the latest first; remove all incomplete folders.

        A checkpoint is complete if the trainer's state can be read and every process has saved its random state.

        Raises:
            RecipeError: The checkpoints were written by another number of processes.
        """
        numbered = numbered_folders(self.folder, CHECKPOINT)
        file = self.run / _WORLD_SIZE
        saved_size = int(file.read_text(encoding="utf-8")) if file.is_file() else 1
        if numbered and saved_size != world_size:
            raise RecipeError(
                f"{self.run}: its checkpoints were written by {saved_size} process(es), now there are "
                f"{world_size}, which would change the order of the data; start {saved_size}, or remove {self.folder} "
                "to start again"
            )
        atomic_write_text(file, str(world_size))
        for prefix in _INCOMPLETE:
            for folder in self.folder.glob(f"{prefix}*"):
                shutil.rmtree(folder)
        complete = []
        for _, folder in numbered:
            if _is_json(folder / TRAINER_STATE) and len(list(folder.glob("rng_state*.pth"))) == world_size:
                complete.append(folder)
            else:
                shutil.rmtree(folder)
        return complete[::-1]

    def best(self) -> tuple[int, float, Path] | None:
        """Return step, cIoU and folder of the best adapter so far, or None."""
        numbered = numbered_folders(self.folder, _BEST)
        if not numbered:
            return None
        step, folder = max(numbered)
        metrics = json.loads((folder / VALIDATION).read_text(encoding="utf-8"))
        return step, float(metrics["ciou"]), folder

    def save_best(
        self,
        model: Any,
        step: int,
        ciou: float,
        weights: dict[str, Any] | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        """Save the adapter of `model` as the best so far, with the calibration on its answers.

        The previous one is removed when this one is complete. `weights` is the state dict of a model whose parameters
        are sharded over several processes.
        """
        folder = self.folder / f"{_BEST}{step}"
        unfinished = folder.with_name(f"unfinished-{folder.name}")
        shutil.rmtree(unfinished, ignore_errors=True)
        with writing(unfinished):
            save_adapter(model, unfinished, weights)
        atomic_write_text(unfinished / VALIDATION, json.dumps({"step": step, "ciou": ciou}) + "\n")
        write_calibration(unfinished, calibration)
        if folder.exists():
            remove_folder(folder)
        os.replace(unfinished, folder)
        for other, previous in numbered_folders(self.folder, _BEST):
            if other != step:
                remove_folder(previous)

    def drop_best_after(self, step: int) -> None:
        """Remove the best adapter if it is from after `step`."""
        for other, folder in numbered_folders(self.folder, _BEST):
            if other > step:
                remove_folder(folder)


def save_adapter(model: Any, folder: Path, weights: dict[str, Any] | None = None) -> None:
    """Write the adapter of `model` to `folder`, and a mask decoder that is trained with it beside it.

    `weights` is as in `Checkpoints.save_best`.
    """
    from sam4mllm.segmenters.mask_decoder import save_mask_decoder

    model.save_pretrained(folder, state_dict=weights)
    save_mask_decoder(model, folder)


def write_calibration(folder: Path, calibration: Calibration | None) -> None:
    """Write the calibration into `folder`; for None, remove the file of an earlier one."""
    if calibration is None:
        (folder / CALIBRATION).unlink(missing_ok=True)
    else:
        atomic_write_text(folder / CALIBRATION, json.dumps(calibration.to_json(), indent=2, allow_nan=False) + "\n")


def numbered_folders(folder: Path, prefix: str) -> list[tuple[int, Path]]:
    """Return the sub-folders `{prefix}{number}` with their numbers, in ascending order."""
    suffixes = [(path.name.removeprefix(prefix), path) for path in folder.glob(f"{prefix}*") if path.is_dir()]
    return sorted((int(suffix), path) for suffix, path in suffixes if suffix.isdecimal())


def _is_json(file: Path) -> bool:
    try:
        json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True
