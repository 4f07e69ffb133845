"""Experiment trackers of `training.report_to` (TensorBoard, W&B, trackio ...), which transformers connects.

transformers reports the loss, the learning rate and the norm of the gradient. The validations are added here: cIoU, the
share of malformed answers, the share of points on the object and, in these three, images of the first cases. The last
validation comes after the training, so trackers are closed after it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from sam4mllm.data.images import load_image
from sam4mllm.runs.run_folder import RunFolder
from sam4mllm.training.validation import Validation, ValidationCase

TENSORBOARD_FOLDER = "tensorboard"
"""The folder in a run folder for TensorBoard's events, unless TENSORBOARD_LOGGING_DIR names another."""

_IMAGE_MODULES = {"WandbCallback": "wandb", "TrackioCallback": "trackio"}
"""The classes of transformers' callbacks whose packages have `log` and `Image`, with the names of these packages."""

_LONG_SIDE = 384


class Trackers:
    """The trackers of a training; none unless `training.report_to` names one.

    Args:
        run: The run folder.
    """

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._open: list[_OpenTracker] = []
        self._trainer: Any = None

    def attach(self, trainer: Any) -> None:
        """Take over the trackers of a transformers Trainer before it trains."""
        from transformers.integrations import get_reporting_integration_callbacks

        kinds = tuple(get_reporting_integration_callbacks(trainer.args.report_to))
        callbacks = trainer.callback_handler.callbacks
        self._trainer = trainer
        for index, callback in enumerate(callbacks):
            if isinstance(callback, kinds):
                # TensorBoard's is in the folder of checkpoints by default, which may be removed after a training.
                if getattr(callback, "logging_dir", "") is None:
                    callback.logging_dir = str(self._run.path / TENSORBOARD_FOLDER)
                callbacks[index] = _OpenTracker(callback)
                self._open.append(callbacks[index])

    def report(self, validation: Validation) -> None:
        """Report a validation of the current step; trackers of a training that did not start get nothing."""
        figures = {name: value for name, value in validation.record().items() if name != "n" and value is not None}
        # Trackers show names that begin with eval_ in a group of their own.
        logs = {f"eval_{name}": float(value) for name, value in figures.items()}
        for tracker in self._open:
            if tracker.has_begun:
                trainer = self._trainer
                tracker.on_log(trainer.args, trainer.state, trainer.control, model=trainer.model, logs=logs)
                self._report_images(tracker, validation)

    def close(self) -> None:
        """Close the trackers."""
        for tracker in self._open:
            tracker.close()

    def _report_images(self, tracker: _OpenTracker, validation: Validation) -> None:
        """Report the drawn cases to a tracker that takes images, in the main process."""
        writer, module = getattr(tracker, "tb_writer", None), _IMAGE_MODULES.get(tracker.kind)
        state = self._trainer.state
        if (writer is None and module is None) or not state.is_world_process_zero:
            return
        images = {f"validation/{index}": draw_case(case) for index, case in enumerate(validation.cases)}
        if writer is not None:
            for name, image in images.items():
                writer.add_image(name, np.asarray(image), state.global_step, dataformats="HWC")
            writer.flush()
        elif module is not None and images:
            package = import_module(module)
            logged = {name: package.Image(image) for name, image in images.items()}
            package.log({**logged, "train/global_step": state.global_step})


def draw_case(case: ValidationCase) -> Any:
    """Return a PIL image of annotation and answer side by side, with the phrase below."""
    from sam4mllm.viz.drawing import overlay, panels

    image = load_image(case.sample.image)
    truth = overlay(image, [item.mask() for item in case.sample.objects], long_side=_LONG_SIDE)
    answer = case.result.draw(image, long_side=_LONG_SIDE)
    return panels([(truth, "truth"), (answer, case.result.status)], case.sample.phrase)


class _OpenTracker:
    """A tracker's callback that stays open at the end of the training, until `close`."""

    def __init__(self, callback: Any) -> None:
        self._callback = callback
        self._end: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self.has_begun = False
        self.kind = type(callback).__name__

    def __getattr__(self, name: str) -> Any:
        return getattr(self._callback, name)

    def on_train_begin(self, *arguments: Any, **keywords: Any) -> Any:
        """Open the tracker."""
        self.has_begun = True
        return self._callback.on_train_begin(*arguments, **keywords)

    def on_train_end(self, *arguments: Any, **keywords: Any) -> None:
        """Keep the tracker open."""
        self._end = arguments, keywords

    def close(self) -> None:
        """Close the tracker, if the training has ended."""
        if self._end is not None:
            arguments, keywords = self._end
            self._callback.on_train_end(*arguments, **keywords)
            self._end = None
