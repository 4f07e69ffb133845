"""A merged checkpoint answers as the run does, on its own and loaded by transformers alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sam4mllm import Pipeline, load_recipe
from sam4mllm.cli.main import main
from sam4mllm.data.predictions import Confidence
from sam4mllm.errors import ModelError
from sam4mllm.mllm.loading import load_mllm
from sam4mllm.mllm.lora import attach_lora
from sam4mllm.mllm.transformers_engine import TransformersEngine
from sam4mllm.prompts.conversation import inference_conversation
from sam4mllm.runs.calibration import fit_calibration
from sam4mllm.runs.merge import merge
from sam4mllm.runs.run_folder import RunFolder
from sam4mllm.testing import save_tiny_mllm, save_tiny_sam

RECIPE = """
output: {folder}/run
model: {{base: {folder}/base}}
segmenter: {{checkpoint: {folder}/sam.pth}}
data: {{train: [{{dataset: shapes, root: {folder}, split: train}}]}}
method: {{positives: 1, negatives: 0, grid: 500}}
lora: {{r: 4, lora_alpha: 64}}
generation: {{batch_size: 3, max_new_tokens: 12}}
"""


def save_run(folder: Path, *overrides: str) -> RunFolder:
    """Save a run whose adapter changes the answers: lora_B, zero in a fresh one, is random."""
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder))
    recipe = load_recipe(folder / "recipe.yaml", overrides)
    mllm = attach_lora(load_mllm(recipe.model.base), recipe.lora, seed=0)
    torch.manual_seed(1)
    for name, parameter in mllm.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    run = RunFolder.create(recipe)
    run.finish(mllm.model, mllm.processor)
    return run


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    model = save_tiny_mllm("fast_vlm", folder / "base", seed=1)
    # Some chat models have settings that would change greedy answers.
    settings = json.loads((model / "generation_config.json").read_text())
    settings |= {"do_sample": True, "temperature": 0.7, "repetition_penalty": 1.3}
    (model / "generation_config.json").write_text(json.dumps(settings))
    save_tiny_sam(folder / "sam.pth")
    save_run(folder)
    for name in ("a", "b"):
        pixels = np.random.default_rng(ord(name)).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


def pairs(home: Path) -> list[tuple[Path, str]]:
    return [(home / f"{name}.png", f"the {phrase}") for name in "ab" for phrase in ("ring", "red star", "x")]


def answers(pipeline: Pipeline, home: Path) -> list[str]:
    return [result.answer for result in pipeline(pairs(home))]


def test_the_merged_model_answers_as_the_run(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "deep" / "merged"
    assert main(["merge", str(home / "run"), "-o", str(output), "--device", "cpu"]) == 0
    assert str(output) in capsys.readouterr().out
    run = Pipeline.from_pretrained(home / "run", device="cpu")
    base = Pipeline.from_pretrained(home / "base", device="cpu", segmenter=run.segmenter, method=run.method.settings())
    # Moved, and without its base.
    moved = output.rename(tmp_path / "moved")
    (home / "base").rename(home / "away")
    try:
        merged = Pipeline.from_pretrained(moved, device="cpu")
    finally:
        (home / "away").rename(home / "base")
    assert merged.method == run.method and merged.max_new_tokens == run.max_new_tokens
    expected = answers(run, home)
    assert answers(merged, home) == expected != answers(base, home)
    assert not list((tmp_path / "deep").iterdir())


def test_transformers_loads_it_and_its_generation_config_is_greedy(home: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    merged = merge(RunFolder.open(home / "run"), tmp_path / "merged")
    model = AutoModelForImageTextToText.from_pretrained(merged.path)
    processor = AutoProcessor.from_pretrained(merged.path)
    messages = [{"role": "user", "content": [{"type": "image", "path": str(home / "a.png")}]}]
    messages[0]["content"].append({"type": "text", "text": "Where?"})
    inputs = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    tokens = model.generate(**inputs, max_new_tokens=12)[0, inputs["input_ids"].shape[1] :]
    ours = TransformersEngine(load_mllm(str(home / "base"), home / "run"), 1)
    assert processor.tokenizer.decode(tokens, skip_special_tokens=True).strip() == (
        ours.generate([inference_conversation(home / "a.png", "Where?")], 12)[0].text
    )


def test_no_setting_of_the_bases_generation_config_remains(home: Path, tmp_path: Path) -> None:
    """Samplers other than top_p and top_k made transformers refuse to save; beams and penalties were kept."""
    base = tmp_path / "base"
    shutil.copytree(home / "base", base)
    file = base / "generation_config.json"
    tokens = {key: value for key, value in json.loads(file.read_text()).items() if key.endswith("_token_id")}
    settings = {
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.05,
        "typical_p": 0.9,
        "epsilon_cutoff": 1e-4,
        "eta_cutoff": 1e-4,
        "num_beams": 3,
        "length_penalty": 2.0,
        "early_stopping": True,
        "no_repeat_ngram_size": 2,
        "repetition_penalty": 1.3,
        "bad_words_ids": [[5]],
        "suppress_tokens": [6],
        "min_new_tokens": 4,
        "bos_token_id": 7,
    }
    file.write_text(json.dumps({**tokens, **settings}))
    run = save_run(tmp_path, f"segmenter.checkpoint={home}/sam.pth")
    merged = merge(run, tmp_path / "merged")
    saved = json.loads((merged.path / "generation_config.json").read_text())
    del saved["transformers_version"]
    mllm = load_mllm(str(merged.path))
    assert saved == {
        "do_sample": False,
        "bos_token_id": 7,
        "eos_token_id": load_mllm(str(base)).end_ids,
        "pad_token_id": mllm.processor.tokenizer.pad_token_id,
    }
    assert not list(tmp_path.glob(".*unfinished"))


def test_a_quantized_run_is_merged_into_the_base_without_quantization(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "quantized"
    folder.mkdir()
    run = save_run(folder, f"model.base={home}/base", f"segmenter.checkpoint={home}/sam.pth")
    text = (run.path / "recipe.yaml").read_text()
    (run.path / "recipe.yaml").write_text(text.replace("quantization: null", "quantization: 4bit"))
    assert run.recipe.model.quantization == "4bit"
    merged = merge(run, tmp_path / "merged")
    assert merged.recipe.model.quantization is None
    plain = Pipeline.from_pretrained(home / "run", device="cpu")
    assert answers(Pipeline.from_pretrained(merged.path, device="cpu"), home) == answers(plain, home)


def test_the_calibration_is_copied(home: Path, tmp_path: Path) -> None:
    run = RunFolder.open(home / "run")
    assert merge(run, tmp_path / "plain").calibration is None
    run.write_calibration(fit_calibration([(Confidence(-0.1, None, 0.9), True)], [], "val"))
    try:
        merged = merge(run, tmp_path / "merged")
        assert merged.calibration == run.calibration and run.calibration is not None
        assert Pipeline.from_pretrained(merged.path, device="cpu").calibration == run.calibration
    finally:
        run.write_calibration(None)


def test_weights_are_saved_in_the_requested_dtype(home: Path, tmp_path: Path) -> None:
    merged = merge(str(home / "run"), str(tmp_path / "half"), dtype="bfloat16")
    assert load_mllm(str(merged.path)).dtype == torch.bfloat16


def test_an_existing_folder_is_not_overwritten(home: Path, tmp_path: Path) -> None:
    merged = merge(RunFolder.open(home / "run"), tmp_path / "merged")
    with pytest.raises(ModelError, match="exists already; choose another folder"):
        merge(RunFolder.open(home / "run"), tmp_path / "merged")
    with pytest.raises(ModelError, match="is already merged"):
        merge(merged, tmp_path / "again")
    with pytest.raises(ModelError, match="is a merged checkpoint, not an adapter"):
        Pipeline.from_pretrained(str(home / "base"), merged.path, device="cpu")
