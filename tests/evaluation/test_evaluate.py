"""Evaluation from Python: splits predicted and scored with the embedded models, files, report and JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sam4mllm.errors import DataError
from sam4mllm.evaluation.evaluate import Evaluation, evaluate
from sam4mllm.evaluation.score import score
from sam4mllm.evaluation.splits import EvalSettings, EvaluatedSplit
from sam4mllm.methods.ppg import Ppg
from sam4mllm.mllm.scripted_engine import ScriptedEngine
from sam4mllm.pipeline.pipeline import Pipeline
from sam4mllm.segmenters.fake import BoxSegmenter
from sam4mllm.synthetic.writer import write_dataset


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    write_dataset(folder, scenes=1, held_out=2)
    return folder


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the model by one that answers every question with the same box."""

    def pipeline(model: str, adapter: str | None, **options: object) -> Pipeline:
        assert (model, adapter, options) == ("a/model", None, {"device": "cpu", "batch_size": 2})
        return Pipeline(Ppg(0, 0, 10, 1), ScriptedEngine(lambda conversation: "[2,2,7,7]"), BoxSegmenter())

    monkeypatch.setattr(Pipeline, "from_pretrained", pipeline)


def run(root: Path, output: Path, **options: Any) -> Evaluation:
    return evaluate("a/model", root=root, output=output, device="cpu", batch_size=2, **options)


@pytest.mark.usefixtures("scripted")
def test_a_named_split_has_its_files_in_the_output_and_its_scores_as_json(root: Path, tmp_path: Path) -> None:
    reported: list[EvaluatedSplit] = []
    evaluation = run(root, tmp_path, datasets="refcoco", splits="val", on_split=reported.append)
    (split,) = evaluation.splits
    assert reported == [split] and evaluation.errors == 0
    assert evaluation.results == tmp_path / "results.json"
    assert json.loads(evaluation.results.read_text()) == json.loads(json.dumps(evaluation.record))
    scores = score(tmp_path / "predictions.jsonl", dataset="refcoco", root=root, split="val")
    assert evaluation.to_json() == split.scores.to_json() == scores.to_json()
    assert (tmp_path / "cases/index.html").is_file() and (tmp_path / "reliability.png").is_file()
    lines = evaluation.report().splitlines()
    assert lines[0] == "refcoco val, protocol refcoco, percent" and lines[1].startswith("a/model: ")
    assert any(line.startswith("reliability of confidence scores") for line in lines)
    # The data are generated, so no published row is printed.
    assert "GLaMM" not in evaluation.report() and not split.scores.comparable


@pytest.mark.usefixtures("scripted")
def test_several_splits_have_a_folder_each_and_the_record_as_json(root: Path, tmp_path: Path) -> None:
    evaluation = run(
        root, tmp_path, datasets=["refcoco", "reasonseg"], splits=["val"], baselines=["filled-box"], cases=0
    )
    assert evaluation.to_json() == evaluation.record
    assert [split.page for split in evaluation.splits] == [None, None]
    for split, name in zip(evaluation.splits, ("refcoco-val", "reasonseg-val"), strict=True):
        own = json.loads((tmp_path / name / "results.json").read_text())
        assert own["splits"][0]["scores"] == split.scores.to_json()
        assert list(split.baselines) == ["filled-box"]
        assert own["splits"][0]["predictions"] == "predictions.jsonl"
    assert "a/model, filled-box" in evaluation.report()


@pytest.mark.usefixtures("scripted")
def test_errors_are_counted(root: Path, tmp_path: Path) -> None:
    instances = json.loads((root / "refcoco/instances.json").read_text())
    one = root / "images/mscoco/images/train2014" / instances["images"][1]["file_name"]
    hidden = one.rename(one.with_suffix(".hidden"))
    try:
        evaluation = run(root, tmp_path, datasets="refcoco", splits="val", cases=1)
    finally:
        hidden.rename(one)
    assert evaluation.errors == evaluation.splits[0].scores.errors > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"datasets": "refcoco", "root": None}, "root: is missing; refcoco needs the folder"),
        ({"datasets": "refcoco", "splits": "vel"}, "vel"),
        ({"datasets": "refcoco", "path": "a.jsonl"}, "path: has no meaning for refcoco"),
        ({"datasets": ["jsonl", "refcoco"], "path": "a.jsonl"}, "jsonl is evaluated alone"),
        ({"datasets": "refcoco", "splits": "val", "chat_images": "images"}, "chat_images: has no meaning without chat"),
        (
            {"datasets": "grefcoco", "splits": "val", "protocol": "refcoco"},
            "is not defined for a phrase without target",
        ),
    ],
)
def test_bad_arguments_are_refused_before_the_model_is_loaded(
    root: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        evaluate("nowhere/none", **{"root": root, "output": tmp_path, **options})


def test_an_unknown_baseline_is_refused() -> None:
    with pytest.raises(ValueError, match="the baselines are box, filled-box; got boxes"):
        EvalSettings(baselines=("boxes",))
