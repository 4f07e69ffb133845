"""pix2emb through all stages by the command line, on tiny random models: each subcommand reads the output before it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sam4mllm.cli.main import main
from sam4mllm.errors import ModelError
from sam4mllm.pipeline.pipeline import Pipeline
from sam4mllm.runs.run_folder import RunFolder
from tests.tiny_home import TINY_RECIPE, write_tiny_home

RECIPE = (
    TINY_RECIPE
    + """method: pix2emb
lora: {{r: 2}}
training:
  max_steps: 12
  learning_rate: 1e-2
  lr_scheduler_type: constant
  per_device_train_batch_size: 2
  validate: {{every_steps: 6, samples: 2}}
generation: {{max_new_tokens: 6}}
"""
)
CPU = ["--device", "cpu"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_home(tmp_path_factory.mktemp("locations"), RECIPE)


@pytest.fixture(scope="module")
def run(home: Path) -> Path:
    assert main(["train", str(home / "recipe.yaml"), *CPU]) == 0
    return home / "run"


@pytest.fixture(scope="module")
def merged(home: Path, run: Path) -> Path:
    assert main(["merge", str(run), "--output", str(home / "merged"), "--dtype", "float32"]) == 0
    return home / "merged"


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def test_inspect_and_dry_run_need_no_targets(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(home / "recipe.yaml")
    assert main(["prepare", recipe, *CPU]) == 2
    assert "pix2emb is trained without SAM's targets; nothing to prepare, run train" in capsys.readouterr().err
    assert main(["inspect", recipe, *CPU]) == 0
    page = Path(capsys.readouterr().out.strip()).read_text()
    assert "&lt;location&gt;" in page and "thing 2" in page
    assert main(["train", recipe, "--dry-run", "--json", "-"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["method"]["name"] == "pix2emb" and report["phrases"] == 6


def test_train_evaluate_calibrate_merge_and_predict(
    home: Path, run: Path, merged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert json.loads((run / "method.json").read_text()) == {
        "name": "pix2emb",
        "prompt": "both",
        "sam_tokens": 1,
        "phrases": 5,
        "packing": "isolated",
    }
    assert RunFolder.open(run).log.validations().keys() == {6, 12}
    data = ["--dataset", "refcoco", "--root", str(home / "data"), "--split", "val"]
    assert main(["evaluate", str(run), *data, *CPU, "--baseline", "box", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 2
    answered = lines_of(run / "evaluate/refcoco-val")
    assert [(line["status"], line["answer"]) for line in answered] == [("ok", "<location>")] * 2
    boxes = [line["objects"][0]["box_xyxy"] for line in answered]
    assert all(0 <= x1 <= x2 <= 60 and 0 <= y1 <= y2 <= 40 for x1, y1, x2, y2 in boxes)
    assert main(["calibrate", str(run), *data, *CPU]) == 0

    assert main(["predict", str(run), *data, *CPU, "--batch-size", "1", "--output", str(home / "one_by_one")]) == 0
    one_by_one = lines_of(home / "one_by_one")
    assert [line["answer"] for line in one_by_one] == [line["answer"] for line in answered]
    for line, box in zip(one_by_one, boxes, strict=True):
        assert line["objects"][0]["box_xyxy"] == pytest.approx(box, abs=1e-3)

    assert main(["evaluate", str(merged), *data, *CPU]) == 0
    of_merged = lines_of(merged / "evaluate/refcoco-val")
    assert [line["answer"] for line in of_merged] == [line["answer"] for line in answered]
    for line, box in zip(of_merged, boxes, strict=True):
        assert line["objects"][0]["box_xyxy"] == pytest.approx(box, abs=1e-3)


def test_a_merged_run_is_trained_further_with_its_heads_and_sams_mask_decoder(home: Path, merged: Path) -> None:
    further = [
        f"model.base={merged}",
        f"output={home}/stage_3",
        "method.train_mask_decoder=true",
        "training.max_steps=1",
    ]
    assert main(["train", str(home / "recipe.yaml"), *CPU, *further, "training.validate.every_steps=0"]) == 0
    stage_3 = Pipeline.from_pretrained(home / "stage_3", device="cpu")
    before = Pipeline.from_pretrained(merged, device="cpu")
    assert stage_3.segmenter.fingerprint != before.segmenter.fingerprint
    assert stage_3.identity["segmenter"] == stage_3.segmenter.fingerprint
    # The heads of the merged run were trained further from their values, not from new ones.
    heads = [pipeline.engine.mllm.location_heads.state_dict() for pipeline in (before, stage_3)]  # type: ignore[attr-defined]
    differences = [float((a - b).abs().max()) for a, b in zip(*(each.values() for each in heads), strict=True)]
    assert 0 < max(differences) < 0.05

    assert main(["merge", str(home / "stage_3"), "--output", str(home / "merged_3"), "--dtype", "float32"]) == 0
    again = Pipeline.from_pretrained(home / "merged_3", device="cpu")
    assert again.segmenter.fingerprint == stage_3.segmenter.fingerprint


def test_a_region_can_be_asked_about(home: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = str(next((home / "data").rglob("*.jpg")))
    asked = ["ask", str(run), image, "What is at <region>?", "--box", "5,5,30,30", *CPU, "--json", "-"]
    assert main(asked) in (0, 1)
    answer = json.loads(capsys.readouterr().out)
    assert answer["boxes_xyxy"] == [[5, 5, 30, 30]]
    assert all(mark["segmentation"]["size"] == [40, 60] for mark in answer["marks"])


@pytest.mark.parametrize("subcommand", ["ask", "segment"])
def test_the_text_of_the_location_token_is_no_location(
    subcommand: str, home: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = str(next((home / "data").rglob("*.jpg")))
    assert main([subcommand, str(run), image, "what is at <location>", *CPU]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("sam4mllm: error: ") and "'<location>'" in line


def test_a_model_without_location_heads_is_refused_before_it_is_asked(home: Path) -> None:
    method = {"name": "pix2emb", "prompt": "both", "sam_tokens": 1, "phrases": 1}
    with pytest.raises(ModelError, match="pix2emb needs location heads, which the model does not have; use a run"):
        Pipeline.from_pretrained(str(home / "base"), segmenter=str(home / "sam.pth"), method=method, device="cpu")


def test_another_width_of_prompt_tokens_is_refused_unless_sam_gets_the_box(run: Path) -> None:
    with pytest.raises(ModelError, match="projects prompt tokens of width 16, but those of the segmenter Segment"):
        Pipeline.from_pretrained(run, segmenter="shapes", device="cpu")
    method = RunFolder.open(run).method.settings() | {"prompt": "box"}
    Pipeline.from_pretrained(run, segmenter="shapes", method=method, device="cpu")


def test_a_server_and_votes_are_refused_in_one_line(home: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = str(next((home / "data").rglob("*.jpg")))
    for option, reason in (
        (["--server", "http://127.0.0.1:9/v1"], "which a server does not return; run the model in this process"),
        (["--votes", "3"], "votes are for methods whose answers are plain text"),
    ):
        assert main(["segment", str(run), image, "thing", *CPU, *option]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert reason in line
