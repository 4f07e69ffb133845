"""The ML backend of Label Studio: pre-annotates tasks by their phrases, and writes corrected tasks as a data set.

The phrases of a task are its data `phrase` and `phrases`; without either, the labels of the project's configuration.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sam4mllm.data.images import load_image
from sam4mllm.data.masks import encode, tight_box
from sam4mllm.data.readers.custom_record import CustomRecordParser
from sam4mllm.data.readers.jsonl import write_jsonl
from sam4mllm.data.readers.label_studio import GENERIC_LABEL, LabeledTask, samples_of_task
from sam4mllm.data.records import parse_record, shorten
from sam4mllm.data.sample import Sample
from sam4mllm.errors import DataError, Sam4mllmError
from sam4mllm.export.instances import Instance, PhraseInstances
from sam4mllm.export.label_studio import prediction
from sam4mllm.labeling.config import LabelingConfig
from sam4mllm.labeling.task_images import TaskImages
from sam4mllm.pipeline.pipeline import Pipeline
from sam4mllm.pipeline.result import Result
from sam4mllm.utils.messages import first_and_more

logger = logging.getLogger(__name__)

_PROJECT = re.compile(r"[\w-]{1,64}", re.ASCII)
_LISTED = 5


class LabelStudioBackend:
    """Answers the requests of a labeling server.

    Args:
        pipeline: The pipeline that segments.
        images: Finds the images of tasks.
        output: The folder that data sets are written to, as `project-{id}.jsonl`.
        model_version: The name of the model at the labeling server.
    """

    def __init__(self, pipeline: Pipeline, images: TaskImages, output: Path, model_version: str) -> None:
        self.pipeline = pipeline
        self.images = images
        self.output = output
        self.model_version = model_version
        # A pipeline answers one request at a time; several may arrive at once.
        self._lock = threading.Lock()

    def setup(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Check the configuration of a project that is connected, and keep the server's token.

        Raises:
            DataError: The configuration lacks an image or masks.
        """
        LabelingConfig.parse(_text(body, "schema"))
        self.images.use_token(body.get("access_token"))
        return {"model_version": self.model_version}

    def predict(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return a prediction for each task; that of a task that cannot be answered is empty, with its `error`.

        Raises:
            DataError: A malformed request, or no task could be answered.
            ServerError: No image could be downloaded.
        """
        config = LabelingConfig.parse(_text(body, "label_config"))
        tasks = body.get("tasks")
        if not isinstance(tasks, list) or not tasks:
            raise DataError(f"tasks is a list of tasks; found {shorten(tasks)}")
        results: list[dict[str, Any]] = []
        errors: list[Exception] = []
        for number, value in enumerate(tasks, start=1):
            try:
                results.append(self._predict_task(parse_record(LabeledTask, value, f"task {number}"), config))
            # An error about one task; the others are answered.
            except Exception as error:
                _log(error, f"task {number} of the request")
                results.append({"model_version": self.model_version, "result": [], "error": str(error)})
                errors.append(error)
        if len(errors) == len(tasks):
            raise errors[0]
        return {"results": results, "model_version": self.model_version}

    def webhook(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Write the data set when training is asked for; other events are ignored.

        Raises:
            DataError: As `train`.
            ServerError: The labeling server does not give the tasks.
        """
        action = body.get("action")
        # The event ANNOTATIONS_DELETED has annotations, too: the ids of those that were deleted.
        if action == "START_TRAINING" or (action is None and "annotations" in body):
            return self.train(body)
        return {"status": "ignored", "action": action}

    def train(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Write the annotated tasks of a project as a data set; tasks that cannot be read are left out and reported.

        The tasks are those of the request (`annotations`), or are asked for at the labeling server.

        Raises:
            DataError: No project; no annotated task that can be read.
            ServerError: The labeling server does not give the tasks.
        """
        project = _project(body)
        tasks = body["annotations"] if "annotations" in body else self.images.tasks_of(project)
        if not isinstance(tasks, list):
            raise DataError(f"the annotated tasks are a list; found {shorten(tasks)}")
        samples: list[Sample] = []
        problems: list[str] = []
        name = f"labelstudio/project-{project}"
        parser = CustomRecordParser(name, Path(), Path(), f"project {project}, task")
        for number, value in enumerate(tasks, start=1):
            try:
                task = parse_record(LabeledTask, value)
                if task.annotation() is not None:
                    samples += samples_of_task(task, number, self.images.path(task.image_url), parser, name)
            except Exception as error:
                _log(error, f"task {number} of project {project}")
                problems.append(f"task {number}: {error}")
        if not samples:
            found = first_and_more(problems, _LISTED) or "none is annotated"
            raise DataError(f"project {project}: no annotated task that can be read: {found}")
        self.output.mkdir(parents=True, exist_ok=True)
        file = self.output / f"project-{project}.jsonl"
        write_jsonl(samples, file)
        logger.warning("%s: %d phrases; %d tasks left out", file, len(samples), len(problems))
        return {"status": "ok", "file": str(file), "phrases": len(samples), "problems": problems}

    def _predict_task(self, task: LabeledTask, config: LabelingConfig) -> dict[str, Any]:
        phrases = task.phrases or sorted((config.names.labels or frozenset()) - {GENERIC_LABEL})
        if not phrases:
            raise DataError("the task has no phrase: no 'phrase' or 'phrases' in its data, and no label but 'object'")
        url = task.data.get(config.image_key)
        if not isinstance(url, str):
            raise DataError(f"the task's data have no {config.image_key!r}, the image of the configuration")
        image = load_image(self.images.path(url))
        with self._lock:
            answers = self.pipeline([(image, phrase) for phrase in phrases])
        found = [_instances(f"{task.id}", phrase, answer) for phrase, answer in zip(phrases, answers, strict=True)]
        return prediction(found, (image.shape[1], image.shape[0]), config.names, self.model_version)


def _instances(task_id: str, phrase: str, result: Result) -> PhraseInstances:
    instances = []
    for mask, score in zip(result.masks.cpu().numpy(), result.scores.tolist(), strict=True):
        rle = encode(mask)
        box = tight_box(rle)
        if box is not None:
            instances.append(Instance(rle, box, round(score, 4)))
    return PhraseInstances(task_id, phrase, tuple(instances), result.status == "no_object")


def _log(error: Exception, where: str) -> None:
    """Log an error about one task; a defect with its traceback."""
    logger.warning("%s: %s", where, error, exc_info=None if isinstance(error, Sam4mllmError) else error)


def _text(body: Mapping[str, Any], key: str) -> str:
    value = body.get(key)
    if not isinstance(value, str):
        raise DataError(f"{key} is the XML of the labeling configuration; found {shorten(value)}")
    return value


def _project(body: Mapping[str, Any]) -> str:
    """Return the id of the request's project: a number, an object with it, or "number.time"."""
    project = body.get("project")
    value = str(project.get("id") if isinstance(project, dict) else project).partition(".")[0]
    if not _PROJECT.fullmatch(value) or project is None:
        raise DataError(f"project is the id of a project; found {shorten(project)}")
    return value
