"""`evaluate` and `score` with scripted answers: figures, reports, results.json, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from sam4mllm.cli.main import main
from sam4mllm.data.registry import mark_generated
from sam4mllm.evaluation.published import _SIZES
from sam4mllm.segmenters.fake import BoxSegmenter
from tests.data.tiny_datasets import rectangle, ref, write_image, write_reasonseg, write_refs


@pytest.mark.usefixtures("scripted")
def test_evaluate_predicts_and_scores_and_score_agrees(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(_SIZES, ("refcoco", "val"), (3, 1))
    data = ["--dataset", "refcoco", "--root", str(root), "--split", "val"]
    out = tmp_path / "out"
    assert main(["evaluate", "run", *data, "--output", str(out), "--json", str(tmp_path / "e.json")]) == 0
    printed = capsys.readouterr().out
    assert "protocol refcoco" in printed and "LISA-7B" in printed
    assert main(["score", str(out / "predictions.jsonl"), *data, "--json", "-"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores == json.loads((tmp_path / "e.json").read_text())
    assert (scores["n"], scores["missing"], scores["malformed"], scores["acc_50"]) == (3, 0, 0, 1.0)
    assert scores["ciou"] > 0.7 and scores["n_acc"] is None
    # Each of the three answers has two points on its object, which fills its box, and one off it.
    points = {name: scores[name] for name in ("points_on", "points_off", "positive_points", "points_kept")}
    assert points == {"points_on": 1.0, "points_off": 1.0, "positive_points": 6, "points_kept": 3.0}
    assert json.loads((out / "results.json").read_text())["splits"][0]["scores"] == scores
    assert "points, percent: positive points on the object" in printed


@pytest.mark.usefixtures("scripted")
def test_missing_images_are_reported_before_a_model_is_loaded(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(root / "images/mscoco/images/train2014")
    (root / "images/mscoco/images/train2014").mkdir()
    arguments = ["--dataset", "refcoco", "--root", str(root), "--split", "val", "--output", str(tmp_path / "out")]
    assert main(["evaluate", "run", *arguments]) == 2
    assert "refcoco val: none of its 1 images exists" in (error := capsys.readouterr().err) and "--images" in error


@pytest.mark.usefixtures("scripted")
def test_evaluate_asks_a_chat_file_and_keeps_the_figures(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = write_image(tmp_path / "elsewhere" / "a.png")
    lines = [
        {"image": image.name, "question": "Is there a dragon?", "answer": "No."},
        {"image": image.name, "question": "Who knows the riddle?", "answer": "nobody"},
    ]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = ["--dataset", "refcoco", "--root", str(root), "--split", "val", "--output", str(tmp_path / "out")]
    chat = ["--chat", str(tmp_path / "chat.jsonl"), "--json", str(tmp_path / "s.json")]
    chat += ["--chat-images", str(image.parent)]
    assert main(["evaluate", "run", *data, *chat]) == 0
    assert "1 yes/no questions, 1 with a short answer, 0 not scored" in capsys.readouterr().out
    found = json.loads((tmp_path / "s.json").read_text())["chat"]["model"]
    assert found == {"yes_no": 1, "yes_no_accuracy": 1.0, "short": 1, "exact_match": 0.0, "unjudged": 0}


@pytest.mark.usefixtures("scripted")
def test_a_limited_evaluation_is_printed_without_published_figures(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--dataset", "refcoco", "--root", str(root), "--split", "val", "--limit", "2"]
    assert main(["evaluate", "run", *data, "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "2 queries" in printed and "LISA" not in printed


@pytest.mark.usefixtures("scripted")
def test_one_command_evaluates_all_that_a_root_holds(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for split, size in {("refcoco", "val"): (2, 1), ("refcoco", "testA"): (1, 1), ("reasonseg", "val"): (1, 1)}.items():
        monkeypatch.setitem(_SIZES, split, size)
    write_refs(
        root / "refcoco",
        [ref(1, 50, 5, "val", "the left one", "left"), ref(2, 51, 5, "testA", "right"), ref(3, 51, 5, "train", "x")],
    )
    write_reasonseg(root, "val", "a", ["left"], [rectangle("target", 2, 1, 7, 4)])
    out = tmp_path / "out"
    arguments = ["--dataset", "all", "--root", str(root), "--output", str(out), "--baseline", "filled-box"]
    arguments += ["--baseline", "box", "--json", str(tmp_path / "e.json")]
    assert main(["evaluate", "run", *arguments]) == 0
    printed, logged = capsys.readouterr()
    results = json.loads((out / "results.json").read_text())
    assert results == json.loads((tmp_path / "e.json").read_text()) and str(out / "results.json") in logged
    assert results["command"] == ["sam4mllm", "evaluate", "run", *arguments]
    assert {"date", "seconds", "versions", "commit", "machine", "pipeline", "min_pixels"} <= results.keys()
    assert results["recipe"] is None and results["seed"] is None and results["model"] == "run"
    assert results["pipeline"]["segmenter"] == BoxSegmenter().fingerprint
    splits = {(split["data"]["dataset"], split["data"]["split"]): split for split in results["splits"]}
    assert list(splits) == [("refcoco", "val"), ("refcoco", "testA"), ("reasonseg", "val")]
    for (dataset, split), found in splits.items():
        assert found["predictions"] == f"{dataset}-{split}/predictions.jsonl" and (out / found["predictions"]).is_file()
        assert found["reliability"]["objects"]["n"] > 0 and len(found["reliability"]["coverage"]) == 10
        assert Image.open(out / f"{dataset}-{split}/reliability.png").size[0] > 600
        assert (out / found["page"]).is_file() and list(found["baselines"]) == ["filled-box", "box"]
        # The segmenter's mask is the box, whatever the points, so a baseline differs only in having no points.
        for scores in found["baselines"].values():
            differing = {name for name in scores if scores[name] != found["scores"][name]}
            assert {name for name in differing if "points" not in name} == set() and scores["points_kept"] == 0.0
        assert found["scores"]["protocol"] == ("reasonseg" if dataset == "reasonseg" else "refcoco")
    described = (Path(__file__).parents[2] / "docs/evaluation.md").read_text(encoding="utf-8")
    assert not [key for key in (*results, *results["splits"][0]) if f"`{key}`" not in described]
    assert "cIoU of the most confident answers" in printed and "refcoco testA" in printed
    assert "val cIoU  testA cIoU" in printed and "run, filled-box" in printed and "LISA-7B" in printed
    again = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != "results.json"}
    assert main(["evaluate", "run", *arguments]) == 0
    assert again == {path: path.read_bytes() for path in again}


@pytest.mark.usefixtures("scripted")
def test_other_data_in_the_format_of_a_benchmark_are_printed_without_published_figures(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--dataset", "refcoco", "--root", str(root), "--split", "val"]
    assert main(["evaluate", "run", *data, "--output", str(tmp_path / "out"), "--cases", "0"]) == 0
    assert main(["score", str(tmp_path / "out/predictions.jsonl"), *data]) == 0
    printed = capsys.readouterr().out
    assert printed.count("cIoU") >= 2 and "LISA" not in printed


@pytest.mark.parametrize(("answered", "missing", "status"), [((), 3, 1), (("1/10",), 2, 0)])
def test_score_reports_queries_without_a_prediction(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], answered: tuple[str, ...], missing: int, status: int
) -> None:
    file = tmp_path / "predictions.jsonl"
    ids = [f"refcoco/val/{each}" for each in answered]
    file.write_text("".join(json.dumps({"id": each, "status": "no_object", "objects": []}) + "\n" for each in ids))
    data = ["--dataset", "refcoco", "--root", str(root), "--split", "val"]
    assert main(["score", str(file), *data, "--json", "-"]) == status
    printed = capsys.readouterr()
    assert json.loads(printed.out)["missing"] == missing
    assert printed.err == f"{file}: no prediction for {missing} of 3 queries, which count as empty masks\n"


@pytest.mark.usefixtures("scripted")
def test_generated_data_are_printed_without_published_figures(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--dataset", "refcoco", "--root", str(root), "--split", "val"]
    mark_generated(root, scenes=1, held_out=2, seed=0)
    assert main(["evaluate", "run", *data, "--output", str(tmp_path / "out"), "--cases", "0"]) == 0
    assert main(["evaluate", "run", "--dataset", "all", "--root", str(root), "--output", str(tmp_path / "all")]) == 0
    assert main(["score", str(tmp_path / "out/predictions.jsonl"), *data]) == 0
    printed = capsys.readouterr().out
    assert printed.count("cIoU") >= 3 and "LISA" not in printed
    assert not (tmp_path / "out/cases").exists() and (tmp_path / "all/refcoco-val/cases/index.html").is_file()


@pytest.mark.usefixtures("scripted")
def test_a_protocol_that_does_not_fit_is_reported_before_a_model_is_loaded(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_reasonseg(root, "val", "a", ["left"], [])
    data = ["--dataset", "reasonseg", "--root", str(root), "--split", "val", "--protocol", "refcoco"]
    assert main(["evaluate", "run", *data, "--output", str(tmp_path / "out")]) == 2
    assert "the protocol refcoco is not defined for a phrase without target" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
