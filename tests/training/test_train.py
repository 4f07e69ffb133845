"""`train`: from files on disk to a run folder that a pipeline opens, on tiny random models."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from transformers import AutoProcessor

from sam4mllm.errors import DataError, Sam4mllmError
from sam4mllm.pipeline.pipeline import Pipeline
from sam4mllm.recipe.loading import Recipe, load_recipe
from sam4mllm.runs.run_folder import RunFolder
from sam4mllm.segmenters.architecture import SamArchitecture
from sam4mllm.segmenters.segment_anything import save_checkpoint
from sam4mllm.testing import save_tiny_mllm
from sam4mllm.training import trainer
from sam4mllm.training.arguments import training_arguments
from sam4mllm.training.dry_run import dry_run

RECIPE = """
output: {folder}/run
model: {{base: {base}}}
segmenter: {{checkpoint: {folder}/sam.pth}}
data:
  train: [{{dataset: reasonseg, root: {folder}, split: train}}]
  validation: {{dataset: reasonseg, root: {folder}, split: val}}
targets: {{groups: 4, store: {folder}/targets}}
lora: {{r: 4}}
training:
  max_steps: 2
  per_device_train_batch_size: 2
  logging_steps: 1
  validate: {{every_steps: 1, samples: 2, batch_size: 2}}
generation: {{max_new_tokens: 4}}
"""


def write_reasonseg(folder, split: str, count: int) -> None:
    directory = folder / "ReasonSeg" / split
    directory.mkdir(parents=True)
    rng = np.random.default_rng(count)
    for index in range(count):
        Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(directory / f"{split}{index}.jpg")
        outline = [[8, 8], [40, 8], [40, 30 + index], [8, 30]]
        record = {
            "text": [f"what is {index}?"],
            "is_sentence": True,
            "shapes": [{"label": "target", "points": outline}],
        }
        (directory / f"{split}{index}.json").write_text(json.dumps(record))


@pytest.fixture
def recipe(tmp_path, fast_vlm) -> Recipe:
    write_reasonseg(tmp_path, "train", 3)
    write_reasonseg(tmp_path, "val", 2)
    architecture = SamArchitecture(
        image_size=64, patch_size=16, embed_dim=16, depth=1, num_heads=2, prompt_embed_dim=32, decoder_mlp_dim=32
    )
    save_checkpoint(tmp_path / "sam.pth", architecture.build(), architecture)
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(folder=tmp_path, base=fast_vlm))
    return load_recipe(tmp_path / "recipe.yaml")


def test_a_start_that_ended_with_an_error_does_not_refuse_the_corrected_recipe(recipe, tmp_path):
    (tmp_path / "file").touch()
    for wrong in (f"segmenter.checkpoint={tmp_path}/file", f"targets.store={tmp_path}/file", "lora.target_modules=[x]"):
        with pytest.raises(Sam4mllmError):
            trainer.train(load_recipe(tmp_path / "recipe.yaml", [wrong]), device="cpu")
    assert not RunFolder(recipe.output).is_trained and trainer.train(recipe, device="cpu").is_finished


def test_chat_without_an_image_is_trained_on_beside_phrases_and_alone(recipe, tmp_path, caplog):
    entries = [{"question": f"Why {index}?", "answer": "So."} for index in range(3)]
    (tmp_path / "chat.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in entries))
    chat = f"{{dataset: chat, path: {tmp_path}/chat.jsonl}}"
    phrases = f"{{dataset: reasonseg, root: {tmp_path}, split: train}}"
    for name, sets in (("mixed", f"[{phrases}, {chat}]"), ("alone", f"[{chat}]")):
        overrides = [f"data.train={sets}", f"output={tmp_path}/{name}", "data.validation=null"]
        longer = ["training.max_steps=-1", "training.num_train_epochs=1", "training.gradient_checkpointing=true"]
        chosen = load_recipe(tmp_path / "recipe.yaml", [*overrides, *longer])
        shown = [each.text for each in dry_run(chosen).shown]
        assert len(shown) == sets.count("dataset") and "Why 0?" in shown[-1] and "<image>" not in shown[-1]
        losses = [each["loss"] for each in trainer.train(chosen, device="cpu").log.read() if "loss" in each]
        assert len(losses) == (3 if name == "mixed" else 2) and all(np.isfinite(losses))
    assert "3 of 3 chats have no image and are trained on as text" in caplog.text


def test_from_files_to_a_run_folder_and_a_pipeline(recipe, tmp_path, monkeypatch):
    load, loaded = AutoProcessor.from_pretrained, []
    with monkeypatch.context() as patched:
        patched.setattr(
            AutoProcessor, "from_pretrained", lambda *given, **more: loaded.append(given) or load(*given, **more)
        )
        run = trainer.train(recipe, device="cpu")
    # Once, for the check of the chat template and the training.
    assert loaded == [(recipe.model.base,)]
    assert RunFolder.open(run.path).recipe == recipe
    leakage = json.loads((run.path / "leakage.json").read_text())
    assert leakage["guarded"] == {"reasonseg val": 2}
    assert [(each["set"], each["phrases"]) for each in leakage["sets"]] == [("reasonseg train", 0)]
    validations = run.log.validations()
    assert list(validations) == [1, 2]
    assert all(each["n"] == 2 and 0 <= each["malformed"] <= 1 for each in validations.values())

    result = Pipeline.from_pretrained(run.path, device="cpu")(tmp_path / "ReasonSeg/val/val0.jpg", "what is 0?")
    assert result.status in ("ok", "no_object", "malformed") and result.masks.shape[1:] == (48, 64)

    # A finished run is returned unchanged: nothing is computed again.
    monkeypatch.setattr(trainer, "fit", None)
    assert trainer.train(recipe, device="cpu").path == run.path


def test_steps_validations_and_the_kept_adapter_are_logged(recipe, caplog):
    with caplog.at_level("INFO"):
        trainer.train(recipe, device="cpu")
    log = caplog.text
    assert "step 2 of 2: loss" in log and "validation of step 2: cIoU" in log and "kept the adapter of step 1" in log


def test_an_unreadable_image_is_an_error(recipe, tmp_path):
    for file in (tmp_path / "ReasonSeg/train").glob("*.jpg"):
        file.write_bytes(b"not an image")
    with pytest.raises(DataError, match="train0"):
        trainer.train(recipe, device="cpu")


def test_an_image_of_the_validation_split_is_left_out_of_training(recipe, tmp_path, caplog):
    for ending in ("jpg", "json"):
        shutil.copy(tmp_path / f"ReasonSeg/val/val0.{ending}", tmp_path / f"ReasonSeg/train/copy.{ending}")
    with caplog.at_level("INFO"):
        run = trainer.train(recipe, device="cpu")
    (removed,) = json.loads((run.path / "leakage.json").read_text())["sets"]
    assert removed == {
        "set": "reasonseg train",
        "phrases": 1,
        "images": 1,
        "by": {"file": 0, "coco id": 0, "content": 1},
    }
    assert "leakage filter: reasonseg train: removed 1 phrases about 1 images" in caplog.messages
    assert any(each.startswith("license of the data ReasonSeg: none stated") for each in caplog.messages)
    assert "3 phrases and 0 chats in 3 conversations" in caplog.messages


def test_chat_is_trained_on_beside_masks_and_validation_needs_masks(recipe, tmp_path, caplog):
    chat = [{"image": "train0.jpg", "question": "Is it noise?", "answer": "Yes."}]
    (tmp_path / "chat.json").write_text(json.dumps(chat))
    entry = f"{{dataset: chat, path: {tmp_path}/chat.json, images: {tmp_path}/ReasonSeg/train, weight: 2}}"
    read = f"dataset: reasonseg, root: {tmp_path}, split: train"
    train = f"data.train=[{{{read}, limit: 1}}, {{{read}, count: 1}}, {entry}]"
    with caplog.at_level("INFO"):
        trainer.train(load_recipe(tmp_path / "recipe.yaml", [train, "data.validation=null"]), device="cpu")
    assert "2 phrases and 2 chats in 4 conversations" in caplog.messages
    assert "left out: 1 duplicate phrases, 0 with an object that has no target" in caplog.messages

    box = {"image": "ReasonSeg/val/val0.jpg", "phrase": "it", "boxes": [[8, 8, 40, 30]]}
    (tmp_path / "boxes.jsonl").write_text(json.dumps(box))
    held = f"data.validation={{dataset: jsonl, path: {tmp_path}/boxes.jsonl}}"
    other = load_recipe(tmp_path / "recipe.yaml", [held, f"output={tmp_path}/other"])
    with pytest.raises(DataError, match=r"jsonl .*boxes.jsonl: jsonl/boxes/1 has boxes and no masks"):
        trainer.train(other, device="cpu")


@pytest.mark.parametrize("quantize_vision", [False, True])
def test_the_vision_tower_is_quantized_only_if_the_recipe_says_so(quantize_vision, tmp_path):
    pytest.importorskip("bitsandbytes")
    base = save_tiny_mllm("qwen2_vl", tmp_path / "base")
    settings = [
        f"model.base={base}",
        "model.quantization=4bit",
        f"model.quantize_vision={str(quantize_vision).lower()}",
    ]
    recipe = load_recipe("shapes_ppg", settings)
    mllm = trainer._load_model(recipe, training_arguments(recipe, "cpu"), "cpu", None)
    quantized = {name for name, module in mllm.model.named_modules() if type(module).__name__ == "Linear4bit"}
    assert any(".language_model." in name for name in quantized)
    assert any(".visual.blocks." in name for name in quantized) is quantize_vision
