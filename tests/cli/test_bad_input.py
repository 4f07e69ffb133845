"""Bad input as a user meets it: one clear line on standard error, a status that is not 0, and never a traceback."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sam4mllm.cli import answer_commands
from sam4mllm.cli.main import main
from sam4mllm.methods.registry import method_from_settings
from sam4mllm.mllm.scripted_engine import ScriptedEngine
from sam4mllm.pipeline.pipeline import Pipeline
from sam4mllm.recipe.schema import MethodSection
from sam4mllm.segmenters.fake import BoxSegmenter
from sam4mllm.testing.tiny_segmenters import save_tiny
from tests.data.tiny_datasets import IMAGES, annotation, image_record, ref, write_image, write_instances, write_refs
from tests.tiny_sam import save_sam

RECIPE = """
output: {home}/made
model: {{base: some/model}}
segmenter: {{checkpoint: {home}/sam.pth}}
data: {{train: [{{dataset: refcoco, root: {home}/data, split: val}}]}}
targets: {{groups: 2, store: {home}/targets}}
"""
QUERY = "refcoco/val/1/10"
MASK = {"size": [10, 20], "counts": [200]}


class Harmful:
    """Makes a file when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return Path.touch, (self.place,)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one good thing of each kind, and the bad ones of the table below."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "recipe.yaml").write_text(RECIPE.format(home=folder))
    (folder / "typo.yaml").write_text(RECIPE.format(home=folder).replace("groups", "grups"))
    make_images(folder)
    make_checkpoints(folder)
    for name in ("data", "bomb", "cut", "resized", "other_mask"):
        make_root(folder / name)
    (folder / "bomb/refcoco/refs(unc).p").write_bytes(pickle.dumps([Harmful(folder / "harm")]))
    refs = folder / "cut/refcoco/refs(unc).p"
    refs.write_bytes(refs.read_bytes()[:40])
    write_instances(folder / "resized/refcoco", [image_record(5, width=21)], [annotation(50, 5)])
    mask = {"segmentation": {"size": [20, 10], "counts": [200]}}
    write_instances(folder / "other_mask/refcoco", [image_record(5)], [annotation(50, 5) | mask])
    make_root(folder / "long")
    write_refs(folder / "long/refcoco", [ref(1, 50, 5, "val", "x" * 10_000)])
    for name in ("empty", "unfinished"):
        (folder / name).mkdir()
    (folder / "unfinished/recipe.yaml").write_text(RECIPE.format(home=folder))
    lines = {
        "none": [],
        "blank": ["", " "],
        "no_json": ["{"],
        "doubled_queries": [{"id": "1", "image": "a.png", "phrase": "x"}] * 2,
        "long": [{"id": "q7", "image": "a.png", "phrase": "x" * 10_000}],
        "half_a_character": [{"id": "1", "image": "a.png", "phrase": "\ud800"}],
        "good": [prediction()],
        "unknown": [prediction(), prediction(id="refcoco/val/9/9")],
        "doubled": [prediction(), prediction()],
        "no_status": [{"id": QUERY}],
        "other_size": [prediction(objects=[{"segmentation": {"size": [20, 10], "counts": [200]}}])],
        "cut_mask": [prediction(objects=[{"segmentation": {"size": [10, 20], "counts": [7]}}])],
        "huge_box": [prediction(objects=[{"segmentation": MASK, "box_xyxy": [0, 0, 10**400, 1]}])],
        "huge_mask": [prediction(objects=[{"segmentation": {"size": [2**20, 2**20], "counts": [2**40]}}])],
    }
    square = [2, 1, 8, 1, 8, 5]
    lines |= {
        "own": [{"image": "a.png", "phrase": "it", "masks": [square]}],
        "own_typo": [{"image": "a.png", "phrase": "it", "mask": [square]}],
        "own_missing": [{"image": "b.png", "phrase": "it"}],
        "own_boxes": [{"image": "a.png", "phrase": "it", "boxes": [[2, 1, 8, 5]]}],
        "phrases": [{"phrase": "it", "annotation_id": 9}],
        "chat": [{"image": "a.png", "question": "Red?"}],
    }
    for name, content in lines.items():
        texts = [line if isinstance(line, str) else json.dumps(line) for line in content]
        (folder / f"{name}.jsonl").write_text("".join(f"{text}\n" for text in texts))
    return folder


def make_root(folder: Path) -> None:
    write_instances(folder / "refcoco", [image_record(5)], [annotation(50, 5)])
    write_refs(folder / "refcoco", [ref(1, 50, 5, "val", "the thing")])
    write_image(folder / IMAGES / image_record(5)["file_name"])


def make_images(folder: Path) -> None:
    write_image(folder / "a.png")
    (folder / "text.jpg").write_text("no image\n")
    (folder / "empty.jpg").write_bytes(b"")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "cut.jpg")
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:1500])


def make_checkpoints(folder: Path) -> None:
    content = torch.load(save_sam(folder / "sam.pth"), weights_only=True)
    flat = {"image_encoder.patch_embed.proj.weight": torch.zeros(3)}
    (folder / "text.pth").write_text("no weights\n")
    (folder / "empty.pth").write_bytes(b"")
    (folder / "cut.pth").write_bytes((folder / "sam.pth").read_bytes()[:5000])
    (folder / "bomb.pth").write_bytes(pickle.dumps(Harmful(folder / "harm")))
    torch.save(torch.nn.Linear(2, 2), folder / "module.pth")
    torch.save(torch.nn.Linear(2, 2).state_dict(), folder / "linear.pth")
    torch.save(content["model"] | flat, folder / "flat.pth")
    torch.save(content | {"architecture": 3}, folder / "number.pth")
    torch.save(content | {"architecture": {"num_heads": 0}}, folder / "headless.pth")
    (folder / "vit").mkdir()
    (folder / "vit/config.json").write_text('{"model_type": "vit"}')
    weights = load_file(save_tiny("sam2", folder / "sam2") / "model.safetensors")
    del weights["mask_decoder.iou_token.weight"]
    save_file(weights, folder / "sam2/model.safetensors", metadata={"format": "pt"})


def prediction(**changes: Any) -> dict[str, Any]:
    return {"id": QUERY, "status": "ok", "objects": [{"segmentation": MASK}]} | changes


def score(predictions: str, root: str = "data") -> list[str]:
    data = ["--dataset", "refcoco", "--root", f"{{home}}/{root}", "--split", "val"]
    return ["score", f"{{home}}/{predictions}.jsonl", *data]


def evaluate(*options: str) -> list[str]:
    return ["evaluate", "{home}/nowhere", "--root", "{home}/data", *options]


def score_own(dataset: str = "jsonl", **places: str) -> list[str]:
    named = [part for key, place in places.items() for part in (f"--{key}", place)]
    return ["score", "{home}/good.jsonl", "--dataset", dataset, *named]


def mixture(*more: str, guard: str = "off") -> list[str]:
    """A mixture of the recipe's set and another one."""
    first = "{{dataset: jsonl, path: {home}/own.jsonl}}"
    entries = ", ".join([first, *("{{dataset: jsonl, path: {home}/" + each + "}}" for each in more)])
    return prepare(f"data.train=[{entries}]", f"data.guard={guard}")


def segment(image: str = "a.png", run: str = "{home}/unfinished", *more: str) -> list[str]:
    return ["segment", run, f"{{home}}/{image}", "the thing", "--device", "cpu", *more]


def predict(queries: str) -> list[str]:
    return ["predict", "run", f"{{home}}/{queries}.jsonl", "--output", "{home}/o"]


def with_checkpoint(name: str) -> list[str]:
    return segment("a.png", "some/model", "--segmenter", f"{{home}}/{name}.pth")


def prepare(*overrides: str, recipe: str = "{home}/recipe.yaml") -> list[str]:
    return ["prepare", recipe, *overrides, "--device", "cpu"]


BAD_INPUTS: dict[str, tuple[list[str], str]] = {
    "a verb with a typo": (["trian"], "unknown verb 'trian'; did you mean train?"),
    "a recipe that is none": (prepare(recipe="shapes_pgp"), "did you mean shapes_ppg?"),
    "a recipe's key with a typo": (
        prepare(recipe="{home}/typo.yaml"),
        "targets.grups: unknown key; did you mean groups",
    ),
    "an override's key with a typo": (prepare("targets.grups=3"), "targets.grups: unknown key; did you mean groups?"),
    "a library's key with a typo": (prepare("training.max_step=3"), "training.max_step: unknown key of"),
    "a learning rate below 0": (
        ["train", "{home}/recipe.yaml", "training.learning_rate=-1"],
        "training.learning_rate: got -1; raise it",
    ),
    "a batch of nothing": (
        ["train", "{home}/recipe.yaml", "training.per_device_train_batch_size=0"],
        "training.per_device_train_batch_size: got 0; raise it",
    ),
    "figures for a folder that is not there": (
        [*score("good"), "--json", "{home}/nowhere/scores.json"],
        "nowhere does not exist; make it first",
    ),
    "a value of another type": (prepare("targets.groups=many"), "targets.groups: input should be a valid integer"),
    "no root": (
        ["score", "p.jsonl", "--dataset", "refcoco", "--split", "val"],
        "--root: is missing; refcoco needs root and split",
    ),
    "a root that is not there": (score("good", "nowhere"), "nowhere: no such folder"),
    "a root without the data set": (score("good", "data/refcoco"), "data/refcoco/refcoco/refs(unc).p: no such file"),
    "a split that is not there": ([*score("good"), "--split", "vel"], "the file has: val"),
    "a folder without any data set": (
        evaluate("--dataset", "all", "--root", "{home}/empty"),
        "holds no data set to ev",
    ),
    "all data sets by one splitter": (evaluate("--dataset", "all", "--split-by", "umd"), "says who split one data set"),
    "a split that no data set has": (evaluate("--dataset", "all", "--split", "vel"), "no data set there has the split"),
    "a data set that is not there": (evaluate("--dataset", "refcoco", "--dataset", "grefcoco"), "grefs(unc).json: no"),
    "a baseline that is none": (evaluate("--dataset", "all", "--baseline", "boxes"), "invalid choice: 'boxes'"),
    "refs that would run something": (score("good", "bomb"), "must be a pickle of plain data"),
    "refs that are cut short": (score("good", "cut"), "must be a pickle of plain data"),
    "an annotation of another size": (score("good", "resized"), "image 5: annotated at (21, 10) (width, height), but"),
    "a mask of another size": (score("good", "other_mask"), "annotation 50: the mask is (20, 10) (H, W), its image"),
    "an annotation of another size to learn": (prepare("data.train.0.root={home}/resized"), "annotated at (21, 10)"),
    "an image that is not there": (segment("nowhere.jpg"), "nowhere.jpg: no such file"),
    "an image that is text": (segment("text.jpg"), "text.jpg: not an image"),
    "an image that is empty": (segment("empty.jpg"), "empty.jpg: not an image"),
    "an image that is cut short": (segment("cut.jpg"), "cut.jpg: the image is damaged"),
    "an image that is a folder": (segment("empty"), "empty: no such file"),
    "a run folder that is not there": (segment(run="{home}/nowhere"), "no such run folder"),
    "a run folder that is none": (segment(run="{home}/empty"), "is no run folder"),
    "a run folder without adapter": (segment(run="{home}/unfinished"), "this run folder has no adapter"),
    "a device that is none": ([*with_checkpoint("sam"), "--device", "warp"], "device 'warp'"),
    "a device without values": ([*with_checkpoint("sam"), "--device", "meta"], "device 'meta'"),
    "a folder to write to that is not there": (segment("a.png", "run", "-o", "{home}/no/o.png"), "no does not exist"),
    "an image format that is none": (segment("a.png", "run", "-o", "{home}/o.txt"), "names no image format"),
    "queries that are not there": (predict("no"), "cannot be read"),
    "queries without a query": (predict("none"), "no query in it"),
    "queries of blank lines": (predict("blank"), "no query in it"),
    "queries that are no JSON": (predict("no_json"), "line 1: no JSON"),
    "a query twice": (predict("doubled_queries"), "is line 1's too"),
    "a query of half a character": (
        predict("half_a_character"),
        "line 1: query: the field 'phrase' holds half a character",
    ),
    "own data without a path": (score_own(), "--path: is missing; jsonl needs path"),
    "own data with a root": (
        score_own(path="p", root="r"),
        "--root: has no meaning for jsonl, which takes path, images",
    ),
    "own data of an unknown field": (
        score_own(path="{home}/own_typo.jsonl"),
        "own_typo.jsonl: 1 bad line(s): line 1: u",
    ),
    "own data without its image": (score_own(path="{home}/own_missing.jsonl"), "line 1: {home}/b.png: no such pict"),
    "own data beside another set to evaluate": (
        ["evaluate", "run", "--dataset", "jsonl", "--dataset", "refcoco", "--path", "{home}/own.jsonl"],
        "jsonl is evaluated alone; give one --dataset",
    ),
    "a benchmark to evaluate without root": (
        ["evaluate", "run", "--dataset", "refcoco"],
        "--root: is missing; refcoco",
    ),
    "a benchmark to evaluate with own data's options": (
        evaluate("--dataset", "refcoco", "--phrases", "{home}/phrases.jsonl"),
        "--phrases: has no meaning for refcoco; give --root and --split",
    ),
    "own boxes to score": (score_own(path="{home}/own_boxes.jsonl"), "jsonl/own_boxes/1 has boxes and no masks"),
    "coco without phrases": (score_own("coco", path="i.json"), "--phrases: is missing; coco needs path and phrases"),
    "a phrase of no annotation": (
        score_own("coco", path="{home}/data/refcoco/instances.json", phrases="{home}/phrases.jsonl"),
        "phrases.jsonl: 1 bad line(s): line 1: phrase: {home}/data/refcoco/instances.json has no annotation 9",
    ),
    "a folder that is no saved data set": (score_own("hub", path="{home}/empty"), "empty: no data set of `datasets`"),
    "a column of no meaning": (score_own("hub", path="x", column="text=a"), "--column: "),
    "a chat file without answers": (
        ["evaluate", "run", *score_own(path="{home}/own.jsonl")[2:], "--chat", "{home}/chat.jsonl"],
        "chat.jsonl: 1 bad line(s): line 1: chat: the field 'answer' is missing",
    ),
    "a converted file in no folder": (
        ["convert", "--dataset", "jsonl", "--path", "{home}/own.jsonl", "-o", "{home}/no/o.jsonl"],
        "its folder {home}/no does not exist",
    ),
    "a mixture with a file of nothing": (mixture("none.jsonl"), "none.jsonl: no sample in it"),
    "a mixture with a set that is all held out": (
        mixture(
            guard="[{{dataset: refcoco, root: {home}/data, split: val}}, {{dataset: jsonl, path: {home}/own.jsonl}}]"
        ),
        "data.guard.1: is trained on as well (data.train.0)",
    ),
    "a query of 10,000 characters": (predict("long"), "query 'q7': the phrase has 10000 characters, 2000 are the most"),
    "a phrase of 10,000 characters": (
        ["segment", "run", "{home}/a.png", "x" * 10_000],
        "PHRASE: the phrase has 10000 characters",
    ),
    "a sample of 10,000 characters": (
        score("good", "long"),
        "sample refcoco/val/1/10: the phrase has 10000 characters",
    ),
    "a family that is none": (["doctor", "--only", "qwen4"], "--only qwen4: no such family; did you mean qwen"),
    "predictions that are not there": (score("nowhere"), "nowhere.jsonl: cannot be read"),
    "predictions of unknown queries": (score("unknown"), "1 id(s) name no query of refcoco val (refcoco/val/9/9)"),
    "predictions that come twice": (score("doubled"), f"1 id(s) come twice ({QUERY})"),
    "a prediction without status": (score("no_status"), "line 1: prediction: the field 'status' is missing"),
    "a predicted mask of another size": (score("other_size"), "a mask is (20, 10) (H, W), its image is (10, 20)"),
    "a predicted mask that is cut short": (score("cut_mask"), "line 1: counts must fill 10 x 20 pixels"),
    "a predicted mask beyond measure": (score("huge_mask"), "line 1: COCO's run lengths hold fewer than 2^32 pixels"),
    "a predicted box beyond measure": (score("huge_box"), "line 1: int too large"),
    "a checkpoint that is not there": (with_checkpoint("nowhere"), "no segmenter checkpoint at"),
    "a checkpoint that is text": (with_checkpoint("text"), "text.pth is no checkpoint of plain weights"),
    "a checkpoint that is empty": (with_checkpoint("empty"), "empty.pth is no checkpoint of plain weights: EOFError"),
    "a checkpoint that is cut short": (with_checkpoint("cut"), "cut.pth is no checkpoint of plain weights"),
    "a checkpoint that would run something": (with_checkpoint("bomb"), "bomb.pth is no checkpoint of plain weights"),
    "a checkpoint that is a module": (with_checkpoint("module"), "it holds more than weights"),
    "a checkpoint of another model": (with_checkpoint("linear"), "a segment_anything Sam has them"),
    "a checkpoint of other shapes": (with_checkpoint("flat"), "shapes that no segment_anything Sam has"),
    "a checkpoint with a number for sizes": (with_checkpoint("number"), "architecture beside the weights is a mapping"),
    "a checkpoint of impossible sizes": (with_checkpoint("headless"), "has no Sam of this architecture"),
    "a segmenter's folder of another model": (
        segment("a.png", "some/model", "--segmenter", "{home}/vit"),
        "model type 'vit' is no segmenter that is known here",
    ),
    "a segmenter's folder that lacks weights": (
        segment("a.png", "some/model", "--segmenter", "{home}/sam2"),
        "no weights ['mask_decoder.iou_token.weight'] (1 in all); is it a whole Sam2Model?",
    ),
    "a recipe's checkpoint of another model": (prepare("segmenter.checkpoint={home}/linear.pth"), "Sam has them"),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_one_line_says_what_is_wrong(name: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, says = BAD_INPUTS[name]
    says = says.replace("{home}", str(home))
    try:
        status = main([argument.format(home=home) for argument in arguments])
    except SystemExit as ended:
        status = ended.code
    out, error = capsys.readouterr()
    assert status == 2 and out == ""
    assert error.startswith("sam4mllm: error: ") and error.count("\n") == 1 and says in error
    assert not (home / "harm").exists()
    assert not (home / "made").exists(), "a refused setting leaves no run folder"


def test_another_process_ends_with_the_status_and_one_line(home: Path) -> None:
    """As a user starts it. The recipe's key is one that only peft knows, so much is loaded before it is refused."""
    command = [sys.executable, "-m", "sam4mllm", "train", str(home / "recipe.yaml"), "lora.ranks=3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("sam4mllm: error: ") and done.stderr.count("\n") == 1
    assert "lora.ranks: unknown key of LoraConfig; did you mean" in done.stderr


def test_bad_images_spoil_their_own_lines(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def pipeline(options: Namespace) -> Pipeline:
        method = method_from_settings(MethodSection().model_dump())
        return Pipeline(method, ScriptedEngine({"the thing": "[100,100,399,499]"}), BoxSegmenter())

    monkeypatch.setattr(answer_commands, "pipeline_of", pipeline)
    images = ["text.jpg", "a.png", "cut.jpg", "nowhere.jpg", "a.png"]
    queries = [{"id": str(n), "image": str(home / name), "phrase": "the thing"} for n, name in enumerate(images)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(query) + "\n" for query in queries))
    assert main(["predict", "run", str(tmp_path / "q.jsonl"), "--output", str(tmp_path / "out")]) == 1
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1 and "2 ok, 0 no object, 0 malformed, 3 errors" in error
    lines = map(json.loads, (tmp_path / "out/predictions.jsonl").read_text().splitlines())
    said = {line["id"]: (line["status"], line["error"]) for line in lines}
    assert said["1"] == said["4"] == ("ok", None)
    for identity, reason in (("0", "text.jpg: not an image"), ("2", "cut.jpg: the image is dam"), ("3", "no such")):
        status, message = said[identity]
        assert status == "error" and reason in message
