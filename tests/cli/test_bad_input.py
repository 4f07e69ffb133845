"""Bad input on the command line: one clear line on standard error, a status that is not 0, and never a traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sam4mllm.cli.main import main
from sam4mllm.pipeline.pipeline import Pipeline
from tests.cli.bad_files import QUERY, write_files
from tests.cli.scripted import scripted_pipeline


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("home"))


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
    "a subcommand with a typo": (["trian"], "unknown subcommand 'trian'; did you mean train?"),
    "an unknown recipe": (prepare(recipe="shapes_pgp"), "did you mean shapes_ppg?"),
    "a recipe's key with a typo": (
        prepare(recipe="{home}/typo.yaml"),
        "targets.grups: unknown key; did you mean groups",
    ),
    "an override's key with a typo": (prepare("targets.grups=3"), "targets.grups: unknown key; did you mean groups?"),
    "a library's key with a typo": (prepare("training.max_step=3"), "training.max_step: unknown key of"),
    "a learning rate below 0": (
        ["train", "{home}/recipe.yaml", "training.learning_rate=-1"],
        "training.learning_rate: must be at least 0.0; got -1",
    ),
    "training data that do not exist": (
        ["train", "{home}/recipe.yaml", "data.train=[{{dataset: jsonl, path: {home}/no.jsonl}}]", "--device", "cpu"],
        "no.jsonl: cannot be read",
    ),
    "a batch size of 0": (
        ["train", "{home}/recipe.yaml", "training.per_device_train_batch_size=0"],
        "training.per_device_train_batch_size: must be at least 1; got 0",
    ),
    "figures for a folder that does not exist": (
        [*score("good"), "--json", "{home}/nowhere/scores.json"],
        "nowhere does not exist; create it first",
    ),
    "a value of another type": (prepare("targets.groups=many"), "targets.groups: input should be a valid integer"),
    "no root": (
        ["score", "p.jsonl", "--dataset", "refcoco", "--split", "val"],
        "--root: is missing; refcoco needs root and split",
    ),
    "a root that does not exist": (score("good", "nowhere"), "nowhere: no such folder"),
    "a root without the data set": (score("good", "data/refcoco"), "data/refcoco/refcoco/refs(unc).p: no such file"),
    "an unknown split": ([*score("good"), "--split", "vel"], "the file has: val"),
    "a folder without any data set": (
        evaluate("--dataset", "all", "--root", "{home}/empty"),
        "holds no data set to ev",
    ),
    "one split-by for all data sets": (
        evaluate("--dataset", "all", "--split-by", "umd"),
        "--split-by: 'umd' is the split file of one data set",
    ),
    "a split that no data set has": (evaluate("--dataset", "all", "--split", "vel"), "no data set there has the split"),
    "a data set whose files are missing": (
        evaluate("--dataset", "refcoco", "--dataset", "grefcoco"),
        "grefs(unc).json: no",
    ),
    "an unknown baseline": (evaluate("--dataset", "all", "--baseline", "boxes"), "invalid choice: 'boxes'"),
    "refs whose pickle would run code": (score("good", "bomb"), "must be a pickle of plain data"),
    "truncated refs": (score("good", "cut"), "must be a pickle of plain data"),
    "an annotation of another size": (score("good", "resized"), "image 5: annotated at (21, 10), but"),
    "a mask of another size": (score("good", "other_mask"), "annotation 50: the mask is (20, 10) (H, W), its image"),
    "a training annotation of another size": (prepare("data.train.0.root={home}/resized"), "annotated at (21, 10)"),
    "an image that does not exist": (segment("nowhere.jpg"), "nowhere.jpg: no such file"),
    "an image that is text": (segment("text.jpg"), "text.jpg: not an image"),
    "an image that is empty": (segment("empty.jpg"), "empty.jpg: not an image"),
    "a truncated image": (segment("cut.jpg"), "cut.jpg: the image is damaged"),
    "an image that is a folder": (segment("empty"), "empty: no such file"),
    "a run folder that does not exist": (segment(run="{home}/nowhere"), "no such run folder"),
    "a folder that is not a run folder": (segment(run="{home}/empty"), "not a run folder"),
    "a run folder without adapter": (segment(run="{home}/unfinished"), "this run folder has no adapter"),
    "an unknown device": ([*with_checkpoint("sam"), "--device", "warp"], "device 'warp'"),
    "the meta device": ([*with_checkpoint("sam"), "--device", "meta"], "device 'meta'"),
    "an output folder that does not exist": (segment("a.png", "run", "-o", "{home}/no/o.png"), "no does not exist"),
    "an unknown image format": (segment("a.png", "run", "-o", "{home}/o.txt"), "is not an image format"),
    "a file of queries that does not exist": (predict("no"), "cannot be read"),
    "an empty file of queries": (predict("none"), "no query in it"),
    "a file of queries with blank lines only": (predict("blank"), "no query in it"),
    "queries that are not JSON": (predict("no_json"), "line 1: not JSON"),
    "two queries with one id": (predict("doubled_queries"), "the id '1' is also in line 1"),
    "a query with half a surrogate pair": (
        predict("half_a_character"),
        "line 1: the field 'phrase' holds a lone surrogate",
    ),
    "custom data without a path": (score_own(), "--path: is missing; jsonl needs path"),
    "custom data with a root": (
        score_own(path="p", root="r"),
        "--root: has no meaning for jsonl, which takes path, images",
    ),
    "custom data with an unknown field": (
        score_own(path="{home}/own_typo.jsonl"),
        "own_typo.jsonl: 1 bad line: line 1: u",
    ),
    "custom data without its image": (score_own(path="{home}/own_missing.jsonl"), "line 1: {home}/b.png: no such imag"),
    "custom data evaluated with another data set": (
        ["evaluate", "run", "--dataset", "jsonl", "--dataset", "refcoco", "--path", "{home}/own.jsonl"],
        "jsonl is evaluated alone; name one data set",
    ),
    "a benchmark evaluated without a root": (
        ["evaluate", "run", "--dataset", "refcoco"],
        "--root: is missing; refcoco",
    ),
    "a benchmark evaluated with options of custom data": (
        evaluate("--dataset", "refcoco", "--phrases", "{home}/phrases.jsonl"),
        "--phrases: has no meaning for refcoco; give root and split",
    ),
    "custom boxes without masks, scored": (
        score_own(path="{home}/own_boxes.jsonl"),
        "jsonl/own_boxes/1 has boxes and no masks",
    ),
    "coco without phrases": (score_own("coco", path="i.json"), "--phrases: is missing; coco needs path and phrases"),
    "a phrase of no annotation": (
        score_own("coco", path="{home}/data/refcoco/instances.json", phrases="{home}/phrases.jsonl"),
        "phrases.jsonl: 1 bad line: line 1: phrase: {home}/data/refcoco/instances.json has no annotation 9",
    ),
    "a folder that is not a saved data set": (
        score_own("hub", path="{home}/empty"),
        "empty: not a data set of `datasets`",
    ),
    "an unknown column": (score_own("hub", path="x", column="text=a"), "--column: "),
    "a chat file without answers": (
        ["evaluate", "run", *score_own(path="{home}/own.jsonl")[2:], "--chat", "{home}/chat.jsonl"],
        "chat.jsonl: 1 bad line: line 1: the field 'answer' is missing",
    ),
    "a converted file in a folder that does not exist": (
        ["convert", "--dataset", "jsonl", "--path", "{home}/own.jsonl", "-o", "{home}/no/o.jsonl"],
        "its folder {home}/no does not exist",
    ),
    "a mixture with an empty file": (mixture("none.jsonl"), "none.jsonl: no sample in it"),
    "a training set that is held out completely": (
        mixture(
            guard="[{{dataset: refcoco, root: {home}/data, split: val}}, {{dataset: jsonl, path: {home}/own.jsonl}}]"
        ),
        "data.guard.1: is trained on as well (data.train.0)",
    ),
    "a query of 10,000 characters": (
        predict("long"),
        "query 'q7': the phrase has 10000 characters, but at most 2000 are supported",
    ),
    "a phrase of 10,000 characters": (
        ["segment", "run", "{home}/a.png", "x" * 10_000],
        "PHRASE: the phrase has 10000 characters",
    ),
    "a sample of 10,000 characters": (
        score("good", "long"),
        "sample refcoco/val/1/10: the phrase has 10000 characters",
    ),
    "an unknown family": (["doctor", "--only", "qwen4"], "--only qwen4: no such family; did you mean qwen"),
    "a file of predictions that does not exist": (score("nowhere"), "nowhere.jsonl: cannot be read"),
    "predictions of unknown queries": (score("unknown"), "1 id(s) are not queries of refcoco val (refcoco/val/9/9)"),
    "two predictions with one id": (score("doubled"), f"1 id(s) occur twice ({QUERY})"),
    "a prediction without status": (score("no_status"), "line 1: the field 'status' is missing"),
    "a predicted mask of another size": (score("other_size"), "a mask is (20, 10) (H, W), its image is (10, 20)"),
    "a predicted mask with too few pixels": (
        score("cut_mask"),
        "must be 0 or more and fill 10 x 20 = 200 pixels; found",
    ),
    "a predicted mask that is too large": (
        score("huge_mask"),
        "line 1: COCO's RLE holds fewer than 2^32 pixels",
    ),
    "a predicted box that is too large": (
        score("huge_box"),
        "line 1: the field 'objects[0].box_xyxy[2]' must be a number",
    ),
    "a checkpoint that does not exist": (with_checkpoint("nowhere"), "no segmenter checkpoint at"),
    "a checkpoint that is text": (with_checkpoint("text"), "text.pth is not a checkpoint of weights"),
    "a checkpoint that is empty": (with_checkpoint("empty"), "empty.pth is not a checkpoint of weights: EOFError"),
    "a truncated checkpoint": (with_checkpoint("cut"), "cut.pth is not a checkpoint of weights"),
    "a checkpoint that would run code": (with_checkpoint("bomb"), "bomb.pth is not a checkpoint of weights"),
    "a checkpoint that is a module": (with_checkpoint("module"), "it holds other objects than weights"),
    "a checkpoint of another model": (with_checkpoint("linear"), "a segment_anything Sam has them"),
    "a checkpoint of other shapes": (with_checkpoint("flat"), "do not have the shapes of a segment_anything Sam"),
    "a checkpoint with a number for sizes": (with_checkpoint("number"), '"architecture" must be a mapping'),
    "a checkpoint of impossible sizes": (
        with_checkpoint("headless"),
        "segment_anything cannot build this architecture",
    ),
    "a segmenter's folder of another model": (
        segment("a.png", "some/model", "--segmenter", "{home}/vit"),
        "model type 'vit' is not a supported segmenter",
    ),
    "a segmenter's folder that lacks weights": (
        segment("a.png", "some/model", "--segmenter", "{home}/sam2"),
        "missing weights ['mask_decoder.iou_token.weight'] (1 in all); is it a complete Sam2Model?",
    ),
    "a recipe's checkpoint of another model": (
        prepare("segmenter.checkpoint={home}/linear.pth", "model.base=shapes"),
        "Sam has them",
    ),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_input_gets_one_line_and_status_2(name: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, message = BAD_INPUTS[name]
    message = message.replace("{home}", str(home))
    try:
        status = main([argument.format(home=home) for argument in arguments])
    except SystemExit as ended:
        status = ended.code
    out, error = capsys.readouterr()
    assert status == 2 and out == ""
    assert error.startswith("sam4mllm: error: ") and error.count("\n") == 1 and message in error
    assert not (home / "harm").exists()
    assert not (home / "made").exists(), "a refused setting leaves no run folder"


def test_the_program_ends_with_status_2_and_one_line(home: Path) -> None:
    """Only peft knows the keys of `lora`, so libraries are loaded before this key is refused."""
    command = [sys.executable, "-m", "sam4mllm", "train", str(home / "recipe.yaml"), "lora.ranks=3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("sam4mllm: error: ") and done.stderr.count("\n") == 1
    assert "lora.ranks: unknown key of LoraConfig; did you mean" in done.stderr


def test_queries_about_bad_images_get_status_error_and_all_others_are_answered(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pipeline, "from_pretrained", scripted_pipeline)
    images = ["text.jpg", "a.png", "cut.jpg", "nowhere.jpg", "a.png"]
    queries = [{"id": str(n), "image": str(home / name), "phrase": "the left thing"} for n, name in enumerate(images)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(query) + "\n" for query in queries))
    assert main(["predict", "run", str(tmp_path / "q.jsonl"), "--output", str(tmp_path / "out")]) == 1
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1 and "2 ok, 0 no object, 0 malformed, 3 errors" in error
    lines = map(json.loads, (tmp_path / "out/predictions.jsonl").read_text().splitlines())
    answers = {line["id"]: (line["status"], line["error"]) for line in lines}
    assert answers["1"] == answers["4"] == ("ok", None)
    for identity, reason in (("0", "text.jpg: not an image"), ("2", "cut.jpg: the image is dam"), ("3", "no such")):
        status, message = answers[identity]
        assert status == "error" and reason in message
