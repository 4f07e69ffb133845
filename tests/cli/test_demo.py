"""The demo on tiny random models and a few scenes: the files that it writes, and that it resumes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from sam4mllm import demo, models
from sam4mllm.demo import DATASETS, demo_recipe, run_demo, table
from sam4mllm.evaluation.score import Scores
from sam4mllm.testing import save_tiny_mllm, save_tiny_sam

MODELS = ("base", "tuned", "oracle")
RECIPE = """
output: elsewhere
model: {base: shapes}
segmenter: {checkpoint: shapes}
data:
  train:
    - {dataset: refcoco, root: elsewhere, split: train, limit: 3}
    - {dataset: reasonseg, root: elsewhere, split: train, limit: 3}
  validation: {dataset: refcoco, root: elsewhere, split: val}
targets: {groups: 2, store: elsewhere}
lora: {r: 2}
training: {max_steps: 1, per_device_train_batch_size: 2, report_to: none, validate: {every_steps: 1, samples: 1}}
generation: {max_new_tokens: 3}
"""


def _scores(dataset: str, *, n: int = 50, malformed: int = 0, **figures: float) -> Scores:
    empty = dict.fromkeys(("ciou", "giou", "n_acc", "t_acc", "pr_70", "pr_80", "pr_90", "acc_50"))
    fields: dict[str, float | None] = {**empty, **figures}
    return Scores(dataset, "val", dataset, n=n, missing=0, malformed=malformed, **fields)


@pytest.mark.parametrize("folder", ["demo", "out/2024-01-01", "123", "null", "my runs: a #1", 'it\'s "here"'])
def test_all_paths_of_the_recipe_are_in_the_output_folder(folder: str) -> None:
    output = Path(folder)
    recipe = demo_recipe(output)
    assert Path(recipe.output) == output
    paths = [Path(entry.root) for entry in recipe.data.train]
    assert recipe.data.validation is not None
    paths += [Path(recipe.data.validation.root), Path(recipe.targets.store)]
    assert len(paths) == 5 and all(path.parent == output for path in paths)


def test_the_table_has_one_row_per_model_in_percent_and_a_dash_where_nothing_was_measured() -> None:
    base = {
        "refcoco": _scores("refcoco", ciou=0.5, acc_50=0.25),
        "grefcoco": _scores("grefcoco", n=30, malformed=4, ciou=0.125, giou=0.2, n_acc=1.0),
        "reasonseg": _scores("reasonseg", n=20, malformed=1, ciou=0.01, giou=0.02),
    }
    tuned = {**base, "refcoco": _scores("refcoco", ciou=0.876, acc_50=0.9), "grefcoco": _scores("grefcoco", ciou=0.6)}
    header, rule, *rows = table({"base": base, "tuned": tuned})
    titles = ["RES cIoU", "RES Acc@0.5", "gRES cIoU", "gRES gIoU", "gRES N-acc", "Reason cIoU", "Reason gIoU"]
    assert [title for title in titles if title in header] == titles and header.endswith("malformed")
    assert set(rule) == {"-", " "}
    assert rows[0].split() == ["base", "50.0", "25.0", "12.5", "20.0", "100.0", "1.0", "2.0", "5.0"]
    assert rows[1].split() == ["tuned", "87.6", "90.0", "60.0", "-", "-", "1.0", "2.0", "0.8"]


def test_the_demo_writes_its_files_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = {"mllm": tmp_path / "base", "segmenter": tmp_path / "sam.pth"}
    save_tiny_mllm("fast_vlm", weights["mllm"], seed=1)
    save_tiny_sam(weights["segmenter"])
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    monkeypatch.setattr(models, "path", weights.__getitem__)
    monkeypatch.setattr(demo, "RECIPE", str(tmp_path / "recipe.yaml"))
    monkeypatch.setattr(demo, "TRAINING_SCENES", 3)
    monkeypatch.setattr(demo, "HELD_OUT_SCENES", 2)
    output = tmp_path / "out"

    scores = run_demo(output)

    printed = capsys.readouterr().out
    assert "[1/7]" in printed and "[7/7]" in printed and all(f"\n{model} " in printed for model in MODELS)
    assert list(scores) == list(MODELS) and all(set(scores[model]) == set(DATASETS) for model in MODELS)
    written = json.loads((output / "scores.json").read_text())
    assert written["tuned"]["refcoco"] == scores["tuned"]["refcoco"].to_json()
    assert len(written["seconds"]) == 7
    assert (output / "adapter_model.safetensors").is_file()
    drawings = {path.name for path in (output / "drawings").glob("*.png")}
    assert "sheet.png" in drawings and all(f"{name}-0.png" in drawings for name in DATASETS)
    assert Image.open(output / "drawings" / "sheet.png").width > 256

    # The full demo resumes from there and adds one training.
    full = run_demo(output, full=True)
    printed = capsys.readouterr().out
    assert "[9/9]" in printed and list(full) == ["base", "tuned", "pqpp", "oracle"]
    assert {model: full[model] for model in MODELS} == scores
    written = json.loads((output / "scores.json").read_text())
    assert written["pqpp"]["refcoco"] == full["pqpp"]["refcoco"].to_json()
    assert json.loads((output / "pqpp" / "method.json").read_text())["name"] == "pqpp"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "out", "recipe.yaml", "sam.pth"]

    adapter = (output / "adapter_model.safetensors").stat().st_mtime_ns
    assert run_demo(output) == scores
    assert (output / "adapter_model.safetensors").stat().st_mtime_ns == adapter
