"""All stages by the command line on tiny random models: each subcommand reads the output of the one before it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from sam4mllm.cli.main import main
from sam4mllm.recipe.loading import load_recipe
from sam4mllm.testing.tiny_mllms import save_internvl
from sam4mllm.testing.tiny_qwen import save_qwen2_5_vl, save_qwen3_vl
from tests.data.tiny_datasets import IMAGES, image_record
from tests.tiny_home import TINY_RECIPE, write_tiny_home

RECIPE = (
    TINY_RECIPE
    + """targets: {{groups: 4, store: {home}/targets}}
lora: {{r: 2}}
training: {{max_steps: 2, per_device_train_batch_size: 2, validate: {{every_steps: 1, samples: 2}}}}
generation: {{max_new_tokens: 6}}
"""
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_home(tmp_path_factory.mktemp("end_to_end"), RECIPE)


def test_prepare_inspect_train_evaluate_and_score(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, cpu = str(home / "recipe.yaml"), ["--device", "cpu"]

    assert main(["prepare", recipe, *cpu, "--json", "-"]) == 0
    prepared = json.loads(capsys.readouterr().out)
    assert (prepared["objects"], prepared["skipped"]) == (3, 0)
    assert prepared["iou_chosen"] >= prepared["iou_random_group"]
    assert 0 <= prepared["points_beat_box"] <= 3 and prepared["boxes_alone"] == 0
    missed = prepared["below_half"]
    # The second time, nothing is computed again.
    assert main(["prepare", recipe, *cpu]) == 0
    printed = capsys.readouterr().out
    too_low = f"no prompt reaches IoU 0.5 for {missed} objects"
    assert too_low in printed if missed else "no prompt reaches" not in printed
    assert prepared["store"] in printed and f"points beat the box for {prepared['points_beat_box']} of them" in printed
    assert len(list((home / "targets").iterdir())) == 1

    assert main(["inspect", recipe, *cpu]) == 0
    page = Path(capsys.readouterr().out.strip())
    assert page == home / "run/inspect/index.html" and "thing 2" in page.read_text()

    assert main(["train", recipe, *cpu]) == 0
    assert (home / "run/adapter_model.safetensors").is_file()
    assert str(home / "run") in capsys.readouterr().out

    data = ["--dataset", "refcoco", "--root", str(home / "data"), "--split", "val"]
    assert main(["evaluate", str(home / "run"), *data, *cpu, "--json", str(home / "e.json")]) == 0
    predictions = home / "run/evaluate/refcoco-val/predictions.jsonl"
    assert len(predictions.read_text().splitlines()) == 2
    assert main(["score", str(predictions), *data, "--json", str(home / "s.json")]) == 0
    scores = json.loads((home / "e.json").read_text())
    assert scores == json.loads((home / "s.json").read_text())
    results = json.loads((home / "run/evaluate/refcoco-val/results.json").read_text())
    assert results["splits"][0]["scores"] == scores
    assert results["recipe"] == load_recipe(home / "run/recipe.yaml").hash() and results["seed"] == 0
    assert (home / "run/evaluate/refcoco-val/cases/index.html").is_file()

    everything = ["--dataset", "all", "--root", str(home / "data"), "--baseline", "box"]
    assert main(["evaluate", str(home / "run"), *everything, *cpu]) == 0
    (split,) = json.loads((home / "run/evaluate/results.json").read_text())["splits"]
    assert split["scores"] == scores and split["baselines"]["box"]["n"] == 2
    own = json.loads((home / "run/evaluate/refcoco-val/results.json").read_text())
    assert own["splits"][0]["baselines"] == split["baselines"]

    image = str(home / "data" / IMAGES / image_record(4)["file_name"])
    assert main(["segment", str(home / "run"), image, "thing 4", *cpu, "-o", str(home / "out.png")]) in (0, 1)
    assert Image.open(home / "out.png").size == (420, 280)


def test_a_setting_on_the_command_line_overrides_the_recipe(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(home / "recipe.yaml")
    assert main(["prepare", recipe, "targets.min_iou=1.0", "--device", "cpu", f"targets.store={home}/strict"]) == 0
    assert "0 objects with a target, 3 without" in capsys.readouterr().out


def test_an_unknown_setting_is_refused_with_the_nearest(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(home / "recipe.yaml"), "training.learning_rat=1", "targets.grups=3"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("sam4mllm: error: ") and "Traceback" not in error
    assert "learning_rate" in error and "groups" in error


def test_pqpp_runs_through_all_stages(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = home / "run-pqpp"
    recipe, cpu = [str(home / "recipe.yaml"), "method.name=pqpp", f"output={run}"], ["--device", "cpu"]
    assert main(["prepare", *recipe, *cpu]) == 2
    assert "pqpp is trained without SAM's targets; nothing to prepare, run train" in capsys.readouterr().err
    assert main(["inspect", *recipe, *cpu]) == 0
    assert "Which points are on the object in" in (run / "inspect/index.html").read_text()
    assert main(["train", *recipe, "--dry-run"]) == 0
    assert main(["train", *recipe, *cpu]) == 0
    data = ["--dataset", "refcoco", "--root", str(home / "data"), "--split", "val"]
    assert main(["evaluate", str(run), *data, *cpu]) == 0
    assert json.loads((run / "method.json").read_text())["name"] == "pqpp"


@pytest.mark.parametrize("base", [save_qwen3_vl, save_qwen2_5_vl, save_internvl])
def test_models_with_native_coordinates_run_through_all_stages(home: Path, base: Callable[[Path], Path]) -> None:
    name = base.__name__
    base(home / name)
    recipe = [str(home / "recipe.yaml"), f"model.base={home / name}", f"output={home}/run-{name}"]
    cpu = ["--device", "cpu"]
    assert main(["train", *recipe, *cpu]) == 0
    data = ["--dataset", "refcoco", "--root", str(home / "data"), "--split", "val"]
    for _ in ("first", "resumed"):
        assert main(["evaluate", f"{home}/run-{name}", *data, *cpu]) == 0
    assert main(["merge", f"{home}/run-{name}", "-o", f"{home}/merged-{name}"]) == 0
    assert main(["evaluate", f"{home}/merged-{name}", *data, *cpu]) == 0
