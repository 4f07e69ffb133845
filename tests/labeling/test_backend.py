"""The ML backend of Label Studio over HTTP: predictions by phrase, data sets of corrected tasks, refused requests."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sam4mllm.data.brush_rle import from_brush, to_brush
from sam4mllm.data.masks import decode, encode
from sam4mllm.data.reading import read_dataset
from sam4mllm.errors import ServerError
from sam4mllm.labeling.server import LARGEST_REQUEST_BYTES, create_server
from tests.data.tiny_datasets import write_image
from tests.labeling.servers import CONFIG, ask, backend

LEFT = np.zeros((10, 20), dtype=bool)
LEFT[1:5, 2:8] = True


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_image(tmp_path / "photos/a.png", 20, 10)
    return tmp_path


def task(**data: Any) -> dict[str, Any]:
    return {"id": 5, "data": {"photo": "/data/local-files/?d=a.png", **data}}


def regions(prediction: dict[str, Any]) -> list[tuple[str, str]]:
    """The name of the control and its label or text, for each item of a prediction."""
    return [
        (item["from_name"], (item["value"].get("brushlabels") or item["value"]["text"])[0])
        for item in prediction["result"]
    ]


def test_health_setup_and_versions(folder: Path) -> None:
    with backend(folder) as port:
        assert ask(port, "GET", "/health") == (200, {"status": "UP", "model_class": "sam4mllm"})
        assert ask(port, "GET", "/versions") == (200, {"versions": ["run-1"]})
        body = {"project": "3.17", "schema": CONFIG, "hostname": "http://localhost:8080", "access_token": "secret"}
        assert ask(port, "POST", "/setup", body) == (200, {"model_version": "run-1"})
        status, answer = ask(port, "POST", "/setup", {**body, "schema": "<View></View>"})
        assert status == 400 and "has no image" in answer["error"]


def test_tasks_are_annotated_by_their_phrases(folder: Path) -> None:
    """A phrase that is a label gets it; any other gets the label `object`, with the phrase as text."""
    tasks = [task(phrase="the left one"), task(phrases=["right", "a dragon"]), task(), task(phrase="riddle")]
    with backend(folder) as port:
        status, answer = ask(port, "POST", "/predict", {"tasks": tasks, "label_config": CONFIG, "project": "3.17"})
    assert status == 200 and answer["model_version"] == "run-1"
    first, second, third, fourth = answer["results"]
    assert regions(first) == [("brush", "the left one")] and first["score"] == 1.0
    assert regions(second) == [("brush", "object"), ("words", "right")]
    assert second["result"][0]["id"] == second["result"][1]["id"]
    # Without phrases, the labels of the configuration are asked for.
    assert regions(third) == regions(first)
    assert fourth["result"] == []
    region = first["result"][0]
    assert (region["to_name"], region["original_width"], region["original_height"]) == ("photo", 20, 10)
    assert np.array_equal(decode(from_brush(region["value"]["rle"], (10, 20))), LEFT)


def test_a_task_that_cannot_be_answered_does_not_stop_the_others(folder: Path) -> None:
    tasks = [task(phrase="left"), task(phrase="left", photo="/data/local-files/?d=../secret.png"), {"id": 1}]
    with backend(folder) as port:
        status, answer = ask(port, "POST", "/predict", {"tasks": tasks, "label_config": CONFIG})
        assert status == 200 and [len(each["result"]) for each in answer["results"]] == [2, 0, 0]
        assert "leaves the folder of the images" in answer["results"][1]["error"]
        assert "the field 'data' is missing" in answer["results"][2]["error"]
        status, answer = ask(port, "POST", "/predict", {"tasks": tasks[1:], "label_config": CONFIG})
        assert status == 400 and "leaves the folder" in answer["error"]


def annotated(mask: np.ndarray[Any, Any], image: str = "/data/local-files/?d=a.png") -> dict[str, Any]:
    """A task whose prediction was corrected."""
    region = {"id": "r", "type": "brushlabels", "original_width": 20, "original_height": 10}
    region["value"] = {"rle": to_brush(encode(mask)), "brushlabels": ["object"]}
    data = {"image": image, "phrase": "the left one"}
    return {"id": 8, "data": data, "annotations": [{"result": [region], "was_cancelled": False}]}


def test_training_writes_a_data_set(folder: Path) -> None:
    corrected = LEFT.copy()
    corrected[1, 2] = False
    tasks = [annotated(corrected), {**annotated(LEFT), "annotations": []}, annotated(LEFT, "none.png")]
    with backend(folder) as port:
        status, answer = ask(port, "POST", "/train", {"annotations": tasks, "project": "3.17", "label_config": CONFIG})
        assert status == 201 and answer["phrases"] == 1 and len(answer["problems"]) == 1
        assert "task 3: " in answer["problems"][0]
        (sample,) = read_dataset("jsonl", path=folder / "out/project-3.jsonl")
        assert sample.phrase == "the left one" and np.array_equal(sample.mask(), corrected)
        assert sample.image == folder / "photos/a.png"
        status, answer = ask(port, "POST", "/train", {"annotations": tasks[1:2], "project": {"id": 3}})
        assert status == 400 and "no annotated task that can be read: none is annotated" in answer["error"]
        status, answer = ask(port, "POST", "/train", {"annotations": tasks, "project": {"id": "../x"}})
        assert status == 400 and "project is the id of a project" in answer["error"]
        for action, more in (("ANNOTATION_CREATED", {}), ("ANNOTATIONS_DELETED", {"annotations": [{"id": 5}]})):
            event = {"action": action, "project": {"id": 3}, **more}
            assert ask(port, "POST", "/webhook", event) == (201, {"status": "ignored", "action": action})


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "message"),
    [
        ("/none", {}, {}, 404, "no such address: POST /none"),
        ("/predict", b"{", {}, 400, "the body must be JSON"),
        ("/predict", [], {}, 400, "must be a JSON object"),
        ("/predict", {"tasks": []}, {}, 400, "label_config is the XML"),
        ("/predict", {"tasks": [], "label_config": CONFIG}, {}, 400, "tasks is a list of tasks"),
        ("/predict", {"label_config": "<!DOCTYPE a><View/>"}, {}, 400, "defines a document type"),
        ("/predict", {"label_config": "<View"}, {}, 400, "must be XML"),
        ("/predict", {"label_config": '<View><Image name="i" value="$i"/></View>'}, {}, 400, "has no masks"),
        # What a page of another site could send from a browser.
        ("/train", {}, {"Content-Type": "text/plain"}, 415, "must be application/json"),
        ("/train", {}, {"Content-Length": str(LARGEST_REQUEST_BYTES + 1)}, 413, "larger than 256 MiB"),
    ],
)
def test_requests_are_refused(
    path: str, body: Any, headers: dict[str, str], status: int, message: str, folder: Path
) -> None:
    with backend(folder) as port:
        found, answer = ask(port, "POST", path, body, **headers)
        assert found == status and message in answer["error"]
        assert ask(port, "GET", "/health")[0] == 200


def test_a_defect_is_answered(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sam4mllm.labeling.backend import LabelStudioBackend

    def broken(self: object, body: object) -> None:
        raise KeyError("x")

    monkeypatch.setattr(LabelStudioBackend, "train", broken)
    with backend(folder) as port:
        assert ask(port, "POST", "/train", {}) == (500, {"error": "KeyError: 'x'"})


def test_a_taken_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServerError, match=f"cannot listen at 127.0.0.1:{port}"):
            create_server(None, "127.0.0.1", port)  # type: ignore[arg-type]


def test_json_of_answers_is_strict(folder: Path) -> None:
    """Scores are numbers of JSON: no NaN."""
    with backend(folder) as port:
        _, answer = ask(port, "POST", "/predict", {"tasks": [task(phrase="left")], "label_config": CONFIG})
    json.dumps(answer, allow_nan=False)
