"""Tasks from Python with scripted answers: files, resuming, several processes, and scores of any program's lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sam4mllm.data.predictions import Query
from sam4mllm.errors import DataError, ModelError, PredictionsError
from sam4mllm.evaluation.tasks.answers import TaskQuery
from sam4mllm.evaluation.tasks.ask import TaskPredictor
from sam4mllm.evaluation.tasks.base import TaskName
from sam4mllm.evaluation.tasks.evaluate import TaskEvaluatedSplit, TaskEvaluation, evaluate_task, score_task
from sam4mllm.geometry import Box
from sam4mllm.methods.base import Method
from sam4mllm.methods.pix2emb import Pix2Emb
from sam4mllm.methods.ppg import Ppg
from sam4mllm.mllm.engine import Reply, Sampling
from sam4mllm.mllm.scripted_engine import ScriptedEngine
from sam4mllm.pipeline.batch import predict
from sam4mllm.pipeline.pipeline import Pipeline
from sam4mllm.prompts.conversation import Conversation
from sam4mllm.segmenters.fake import NoSegmenter
from sam4mllm.synthetic.writer import write_dataset
from tests.data.tiny_datasets import flickr30k_object, write_flickr30k, write_image
from tests.launch import in_threads
from tests.simulated import located

SHARES = Box(0.2, 0.2, 0.8, 0.8)
PPG, PIX2EMB = Ppg(0, 0, 10, 1), Pix2Emb(prompt="both", sam_tokens=1, phrases=1)


def answer(conversation: Conversation) -> Reply:
    """The same box for every phrase, and texts for the other questions; a location for pix2emb."""
    question = conversation.turns[0].text
    if "Describe" in question:
        return Reply("A thing [2,2,7,7].")
    if "What is at" in question:
        return Reply("red circle")
    if "Is there" in question:
        return Reply("No, there is none." if "dog" in question else "Yes.")
    assert "Where is" in question
    if "Mark" in question:
        return located("<location>", SHARES)
    return Reply("[2,2,7,7]")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    write_dataset(folder, scenes=1, held_out=2)
    return folder


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[ScriptedEngine]:
    """Replace the model by a script; the engines that were made."""
    made: list[ScriptedEngine] = []

    def pipeline(model: str, adapter: str | None, **options: Any) -> Pipeline:
        assert isinstance(options["segmenter"], NoSegmenter)
        made.append(ScriptedEngine(answer))
        method: Method = PIX2EMB if model == "pix2emb" else PPG
        return Pipeline(method, made[-1], options["segmenter"], constrained=False)

    monkeypatch.setattr(Pipeline, "from_pretrained", pipeline)
    return made


def run(task: str, output: Path, model: str = "ppg", **options: Any) -> TaskEvaluation:
    return evaluate_task(model, task=task, output=output, device="cpu", **options)


@pytest.mark.parametrize("model", ["ppg", "pix2emb"])
@pytest.mark.usefixtures("engines")
def test_boxes_of_text_and_of_locations_are_scored_alike(root: Path, tmp_path: Path, model: str) -> None:
    data = {"root": root, "splits": "val"}
    evaluation = run("rec", tmp_path, model, datasets="refcoco", **data)
    (split,) = evaluation.splits
    assert evaluation.errors == 0 and split.scores.n > 0
    again = score_task(tmp_path / "predictions.jsonl", task="rec", dataset="refcoco", root=root, split="val")
    assert evaluation.to_json() == again.to_json() == split.scores.to_json()
    first = json.loads((tmp_path / "predictions.jsonl").read_text().splitlines()[0])
    assert len(first["boxes_xyxy"]) == 1 and first["status"] == "ok"
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["task"] == "rec" and record["splits"][0]["scores"] == split.scores.to_json()
    assert record["pipeline"]["task"] == "rec" and "segmenter" not in record["pipeline"]
    # The data are generated, so no published row is printed.
    assert evaluation.report().startswith("rec, refcoco val, percent\n") and "Shikra" not in evaluation.report()


def test_regions_are_asked_for_once_an_object_and_a_second_call_asks_nothing(
    root: Path, tmp_path: Path, engines: list[ScriptedEngine]
) -> None:
    options = {"datasets": "refcoco", "root": root, "splits": "val"}
    done: list[TaskEvaluatedSplit] = []
    evaluation = run("region-caption", tmp_path, on_split=done.append, **options)
    scores = evaluation.splits[0].scores
    assert done == list(evaluation.splits)
    assert len(engines[0].asked) == scores.n
    assert all(turn.text.startswith("What is at [") for each in engines[0].asked for turn in each.turns)
    assert list(scores.figures) == ["cider_d", "exact_match"] and scores.missing == 0
    again = run("region-caption", tmp_path, **options)
    assert engines[1].asked == [] and again.to_json() == evaluation.to_json()
    with pytest.raises(DataError, match="contains another job's predictions"):
        run("rec", tmp_path, **options)


@pytest.mark.usefixtures("engines")
def test_yes_no_questions_are_those_of_a_file(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    rows = [("a cat", "yes"), ("a dog", "no"), ("a big dog", "yes"), ("a cow", "no")]
    lines = [
        {"question_id": number, "image": "a.png", "text": f"Is there {name} in the image?", "label": label}
        for number, (name, label) in enumerate(rows)
    ]
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    evaluation = run("pope", tmp_path / "out", datasets="pope", path=file)
    assert evaluation.splits[0].scores.figures == {
        **{"accuracy": 0.5, "precision": 0.5, "recall": 0.5, "f1": 0.5},
        "yes": 0.5,
    }
    assert "pope, pope mine, percent" in evaluation.report()


@pytest.mark.usefixtures("engines")
def test_phrases_and_boxes_of_captions_are_scored(tmp_path: Path) -> None:
    boxes = [flickr30k_object(1, box=(5, 3, 16, 8)), flickr30k_object(2, box=(1, 1, 2, 2))]
    captions = ["[/EN#1/other A thing] on [/EN#2/other a table] .", "[/EN#0/notvisual It] is ."]
    write_flickr30k(tmp_path, {"val": {7: (captions, boxes)}})
    evaluation = run("grounded-caption", tmp_path / "out", datasets="flickr30k", root=tmp_path, splits="val")
    figures = evaluation.splits[0].scores.figures
    assert figures == {"phrases": 2, "recall_any": 0.5, "recall_merged": 0.5, "recall_phrase": 0.5, "precision": 1.0}
    (line,) = (tmp_path / "out/predictions.jsonl").read_text().splitlines()
    assert json.loads(line)["answer"] == "A thing." and json.loads(line)["phrases"][0]["phrase"] == "A thing"


@pytest.mark.usefixtures("engines")
def test_several_splits_have_a_folder_each(root: Path, tmp_path: Path) -> None:
    evaluation = run("rec", tmp_path, datasets=["refcoco", "grefcoco"], root=root, splits=["val"])
    assert evaluation.to_json() == evaluation.record
    for split, name in zip(evaluation.splits, ("refcoco-val", "grefcoco-val"), strict=True):
        own = json.loads((tmp_path / name / "results.json").read_text())
        assert own["splits"][0]["scores"] == split.scores.to_json()
        assert own["splits"][0]["predictions"] == "predictions.jsonl"
    assert evaluation.splits[1].scores.figures["acc_50"] is None
    assert evaluation.report().count("rec, ") == 2


def test_several_processes_share_the_questions_and_the_main_one_scores(
    root: Path, tmp_path: Path, engines: list[ScriptedEngine]
) -> None:
    options: dict[str, Any] = {"datasets": "refcoco", "root": root, "splits": "val"}
    alone = run("rec", tmp_path / "alone", **options)
    first, second = in_threads(2, lambda processes: run("rec", tmp_path / "shared", processes=processes, **options))
    assert first.to_json() == alone.to_json()
    assert (second.splits, second.results) == ((), None)
    lines = [(tmp_path / name / "predictions.jsonl").read_bytes() for name in ("alone", "shared")]
    assert lines[0] == lines[1]
    assert sum(len(engine.asked) for engine in engines) == 2 * alone.splits[0].scores.n


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("res", {"datasets": "refcoco", "splits": "val"}, "task: is one of rec, region-caption"),
        ("pope", {"datasets": "refcoco", "splits": "val"}, "refcoco val: has no yes/no questions"),
        (
            "grounded-caption",
            {"datasets": "refcoco", "splits": "val"},
            "captions; those of jsonl, flickr30k can be read",
        ),
        ("rec", {"datasets": "refcoco", "splits": "val", "segmenter": "sam.pth"}, "segmenter: has no meaning"),
        ("rec", {"datasets": ["pope", "refcoco"], "path": "a.json"}, "pope is evaluated alone"),
    ],
)
def test_bad_arguments_are_refused_before_the_model_is_loaded(
    root: Path, tmp_path: Path, task: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        evaluate_task("nowhere/none", task=task, root=root, output=tmp_path, **options)


def test_missing_images_are_reported_before_the_model_is_loaded(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none of its .* images exists"):
        run("rec", tmp_path, datasets="refcoco", root=root, splits="val", images=tmp_path)


def test_lines_of_other_queries_are_refused(root: Path) -> None:
    with pytest.raises(PredictionsError, match="are not queries of refcoco val"):
        score_task([{"id": "x", "boxes_xyxy": []}], task="rec", dataset="refcoco", root=root, split="val")


def test_votes_are_refused() -> None:
    pipeline = Pipeline(PPG, ScriptedEngine(answer), NoSegmenter("cpu"), votes=Sampling(3))
    with pytest.raises(ModelError, match="votes are merged by their masks, which the task rec does not have"):
        TaskPredictor(pipeline, "rec")


@pytest.mark.parametrize("task", ["rec", "pope"])
def test_an_image_that_cannot_be_read_has_an_error_line(root: Path, tmp_path: Path, task: TaskName) -> None:
    predictor = TaskPredictor(Pipeline(PPG, ScriptedEngine(answer), NoSegmenter("cpu")), task)
    line = predictor.answer_queries([], [])
    assert line == []
    (tmp_path / "a.png").write_text("no image")
    queries: list[Query] = [TaskQuery("a", tmp_path / "a.png", "Is there a cat?")]
    summary = predict(predictor, queries, tmp_path / "out")
    assert summary.error == 1
    (found,) = map(json.loads, (tmp_path / "out/predictions.jsonl").read_text().splitlines())
    assert found["status"] == "error" and found["question"] == "Is there a cat?" and "a.png" in found["error"]


def test_a_pipeline_without_a_segmenter_makes_no_masks() -> None:
    segmenter = NoSegmenter("cpu")
    assert segmenter.fingerprint == "none" and segmenter.device == torch.device("cpu")
    for call in (lambda: segmenter.embed([]), lambda: segmenter.decode_points(), lambda: segmenter.upsampling((1, 1))):
        with pytest.raises(NotImplementedError, match="for boxes and text alone"):
            call()
