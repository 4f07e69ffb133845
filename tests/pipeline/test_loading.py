"""Loading of pipelines: a run folder, a base model, a base with an adapter; tiny random models of the real classes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sam4mllm import Pipeline, load_recipe
from sam4mllm.cli.main import main
from sam4mllm.data.predictions import Confidence
from sam4mllm.errors import ModelError
from sam4mllm.geometry import ResizedGrid
from sam4mllm.methods.registry import method_from_settings, method_of_recipe
from sam4mllm.mllm.loading import load_mllm
from sam4mllm.mllm.lora import attach_lora
from sam4mllm.recipe.schema import MethodSection
from sam4mllm.runs.calibration import fit_calibration
from sam4mllm.runs.merge import merge
from sam4mllm.runs.run_folder import RunFolder
from sam4mllm.segmenters.fake import BoxSegmenter
from sam4mllm.testing import save_tiny_mllm, save_tiny_sam
from sam4mllm.utils.device import resolve_device
from tests.mllm.fake_server import Server

RECIPE = """
output: {folder}/run
model: {{base: {folder}/base}}
segmenter: {{checkpoint: {folder}/sam.pth}}
data: {{train: [{{dataset: shapes, root: {folder}, split: train}}]}}
method: {{positives: 1, negatives: 0, grid: 500}}
lora: {{r: 2}}
generation: {{batch_size: 3, max_new_tokens: 6}}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny base model, a tiny SAM and a run whose adapter is as `attach_lora` made it."""
    folder = tmp_path_factory.mktemp("home")
    save_tiny_mllm("fast_vlm", folder / "base", seed=1)
    save_tiny_sam(folder / "sam.pth")
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder))
    recipe = load_recipe(folder / "recipe.yaml")
    mllm = attach_lora(load_mllm(recipe.model.base), recipe.lora, seed=0)
    RunFolder.create(recipe).finish(mllm.model, mllm.processor)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(folder / "a.png")
    return folder


def test_a_run_folder_names_all_parts(home: Path) -> None:
    pipe = Pipeline.from_pretrained(home / "run", device="cpu")
    assert pipe.method.settings()["grid"] == 500 and pipe.method.settings()["positives"] == 1
    assert pipe.max_new_tokens == 6 and pipe.device.type == "cpu"
    result = pipe(home / "a.png", "the ring")
    assert result.status in ("ok", "no_object", "malformed") and result.masks.shape[1:] == (40, 60)


def test_another_base_may_be_given_for_a_run(home: Path, tmp_path: Path) -> None:
    (home / "base").rename(tmp_path / "base")
    try:
        pipe = Pipeline.from_pretrained(str(tmp_path / "base"), home / "run", device="cpu")
        assert pipe.method.settings()["grid"] == 500
    finally:
        (tmp_path / "base").rename(home / "base")


def test_a_base_model_is_asked_for_boxes_alone(home: Path) -> None:
    pipe = Pipeline.from_pretrained(str(home / "base"), device="cpu", segmenter=str(home / "sam.pth"))
    assert (pipe.method.settings()["positives"], pipe.method.settings()["negatives"]) == (0, 0)
    assert pipe.method.settings()["grid"] == MethodSection().grid


def test_the_runs_calibration_is_for_its_own_segmenter_and_method(home: Path) -> None:
    run = RunFolder(home / "run")
    run.write_calibration(fit_calibration([(Confidence(-0.1, None, 0.9), True)], [], "val"))
    try:
        for given, calibrated in (
            ({}, True),
            ({"segmenter": BoxSegmenter()}, False),
            ({"method": MethodSection().model_dump()}, False),
        ):
            pipe = Pipeline.from_pretrained(run.path, device="cpu", **given)
            assert (pipe.calibration == run.calibration) == ("calibration" in pipe.identity) == calibrated
    finally:
        run.write_calibration(None)


def test_a_method_and_a_segmenter_may_be_given(home: Path) -> None:
    method = MethodSection(positives=3, grid=100).model_dump()
    segmenter = BoxSegmenter()
    pipe = Pipeline.from_pretrained(str(home / "base"), device="cpu", segmenter=segmenter, method=method)
    assert pipe.method == method_from_settings(method) and pipe.segmenter is segmenter


def test_identity_holds_the_adapter_and_not_the_batch_size(home: Path, tmp_path: Path) -> None:
    one = Pipeline.from_pretrained(home / "run", device="cpu")
    two = Pipeline.from_pretrained(home / "run", device="cpu", batch_size=1)
    bare = Pipeline.from_pretrained(str(home / "base"), device="cpu", segmenter=str(home / "sam.pth"))
    assert one.identity == two.identity == json.loads(json.dumps(one.identity))
    assert len(one.identity["engine"]["adapter"]) == 64 and bare.identity["engine"]["adapter"] is None


@pytest.mark.parametrize("kept", [0, 1])
def test_a_run_whose_adapter_does_not_fit_is_refused(home: Path, tmp_path: Path, kept: int) -> None:
    run = Path(shutil.copytree(home / "run", tmp_path / "run"))
    weights = load_file(run / "adapter_model.safetensors")
    others = {
        name if index % 2 < kept else name.replace("layers", "blocks"): weights[name]
        for index, name in enumerate(sorted(weights))
    }
    save_file(others, run / "adapter_model.safetensors")
    with pytest.raises(
        ModelError, match=r"adapter_model\.safetensors: does not fit the model 'fast_vlm': \d+ of its \d+"
    ):
        Pipeline.from_pretrained(run, device="cpu", segmenter=BoxSegmenter())


def test_identity_holds_the_weights_of_an_adapter_in_the_format_of_torch(home: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(home / "run", tmp_path / "run"))
    weights = load_file(run / "adapter_model.safetensors")
    (run / "adapter_model.safetensors").unlink()
    digests = []
    for factor in (1, 2):
        torch.save({name: factor * tensor for name, tensor in weights.items()}, run / "adapter_model.bin")
        pipe = Pipeline.from_pretrained(run, device="cpu", segmenter=BoxSegmenter())
        digests.append(pipe.identity["engine"]["adapter"])
    assert len(set(digests)) == 2 and {len(digest) for digest in digests} == {64}


def test_weights_are_digested_only_when_the_identity_is_accessed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> str:
        raise AssertionError(f"{path} was read completely")

    monkeypatch.setattr("sam4mllm.pipeline.loading.file_sha256", refuse)
    pipe = Pipeline.from_pretrained(home / "run", device="cpu")
    assert pipe(home / "a.png", "the ring").status in ("ok", "no_object", "malformed")
    with pytest.raises(AssertionError, match="was read completely"):
        _ = pipe.identity


def test_another_model_of_the_same_size_at_the_same_path_has_another_identity(home: Path, tmp_path: Path) -> None:
    def identity() -> dict[str, object]:
        pipe = Pipeline.from_pretrained(str(tmp_path / "base"), device="cpu", segmenter=BoxSegmenter())
        return pipe.identity

    weights = save_tiny_mllm("fast_vlm", tmp_path / "base", seed=1) / "model.safetensors"
    first, size = identity(), weights.stat().st_size
    assert identity() == first
    save_tiny_mllm("fast_vlm", tmp_path / "base", seed=2)
    assert weights.stat().st_size == size and identity() != first


@pytest.mark.parametrize(
    ("model", "adapter", "message"),
    [
        ("{home}/nowhere", None, "no such run folder"),
        ("{home}/empty", None, "not a run folder"),
        ("{home}/unfinished", None, "no adapter"),
        ("{home}/adapter", None, "--adapter"),
        ("{home}/base", None, "has no segmenter of its own"),
        ("{home}/base", "{home}/empty", "no LoRA adapter"),
    ],
)
def test_what_is_missing_is_named(home: Path, model: str, adapter: str | None, message: str) -> None:
    for name in ("empty", "unfinished", "adapter"):
        (home / name).mkdir(exist_ok=True)
    (home / "unfinished" / "recipe.yaml").write_text("seed: 0\n")
    (home / "adapter" / "adapter_config.json").write_text("{}")
    segmenter = None if message == "has no segmenter of its own" else BoxSegmenter()
    with pytest.raises(ModelError, match=message):
        Pipeline.from_pretrained(
            model.format(home=home),
            adapter and adapter.format(home=home),
            device="cpu",
            segmenter=segmenter,
        )


@pytest.mark.parametrize("name", ["warp", "cuda:x"])
def test_an_unknown_device_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match=name):
        resolve_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_without_a_device_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(ModelError, match="no CUDA device"):
        resolve_device("cuda")
    assert resolve_device("auto") == "cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_the_masks_stay_there_and_the_answer_is_that_of_the_cpu(home: Path) -> None:
    pipe = Pipeline.from_pretrained(home / "run", device="cuda")
    result = pipe(home / "a.png", "the ring")
    assert result.masks.device.type == "cuda" and result.scores.device.type == "cuda"
    assert result.answer == Pipeline.from_pretrained(home / "run", device="cpu")(home / "a.png", "the ring").answer


def test_predict_runs_from_end_to_end_and_resumes(home: Path, tmp_path: Path) -> None:
    queries = tmp_path / "q.jsonl"
    lines = [{"id": str(n), "image": str(home / "a.png"), "phrase": f"thing {n}"} for n in range(4)]
    lines.append({"id": "bad", "image": str(home / "none.png"), "phrase": "x"})
    queries.write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = ["predict", str(home / "run"), str(queries), "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert main(arguments) == 1
    first = (tmp_path / "out/predictions.jsonl").read_bytes()
    read = [json.loads(line) for line in first.splitlines()]
    assert [line["id"] for line in read] == ["0", "1", "2", "3", "bad"]
    assert [line["status"] == "error" for line in read] == [False] * 4 + [True]
    assert main([*arguments, "--batch-size", "2"]) == 1
    assert (tmp_path / "out/predictions.jsonl").read_bytes() == first


def test_with_a_server_the_run_gives_method_and_segmenter_and_no_model_is_loaded(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sam4mllm.pipeline.loading.load_mllm", None)
    monkeypatch.setenv("OPENAI_API_KEY", "the-key")
    queries = tmp_path / "q.jsonl"
    lines = [{"id": str(n), "image": str(home / "a.png"), "phrase": f"thing {n}"} for n in range(5)]
    queries.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with Server(answer=lambda question: "[100,100,400,400] +(200,200)" if "3" in question else "nonsense") as server:
        arguments = ["predict", str(home / "run"), str(queries), "--output", str(tmp_path / "out"), "--device", "cpu"]
        assert main([*arguments, "--server", server.url]) == 0
    read = [json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines()]
    assert [line["status"] for line in read] == ["malformed"] * 3 + ["ok", "malformed"]
    assert read[3]["objects"][0]["box_xyxy"] == pytest.approx([12.06, 8.04, 48.06, 32.04])
    assert {body["max_tokens"] for body in server.asked} == {6} and set(server.keys) == {"Bearer the-key"}


@pytest.mark.parametrize("merged", [False, True])
def test_with_a_server_the_familys_coordinates_are_those_of_the_runs_own_processor(
    home: Path, tmp_path: Path, merged: bool
) -> None:
    save_tiny_mllm("qwen2_5_vl", tmp_path / "base")
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE.format(folder=tmp_path).replace(f"{tmp_path}/sam.pth", f"{home}/sam.pth"))
    recipe = load_recipe(file, ["model.max_pixels=4704"])
    mllm = attach_lora(load_mllm(recipe.model.base, image_size=recipe.model.image_size), recipe.lora, seed=0)
    run = RunFolder.create(recipe, method_of_recipe(recipe))
    run.finish(mllm.model, mllm.processor)
    run = merge(run, tmp_path / "merged") if merged else run
    asked = MethodSection(positives=0, negatives=0).model_dump()
    assert asked["coordinates"] == "family"
    local = Pipeline.from_pretrained(run.path, device="cpu", method=asked)
    with Server() as server:
        served = Pipeline.from_pretrained(run.path, device="cpu", method=asked, server=server.url)
    assert served.method == local.method
    assert served.method.coordinates.frame == ResizedGrid(28, 784, 4704)


def test_a_server_needs_a_run_folder_and_a_server_model_needs_a_server(home: Path) -> None:
    with pytest.raises(ModelError, match="--server needs a run folder"):
        Pipeline.from_pretrained(str(home / "base"), device="cpu", server="http://127.0.0.1:1")
    with pytest.raises(ModelError, match="--server-model 'm' needs the address of its server"):
        Pipeline.from_pretrained(home / "run", device="cpu", server_model="m")


def test_a_server_that_does_not_answer_ends_the_run_without_error_lines(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    queries = tmp_path / "q.jsonl"
    queries.write_text(json.dumps({"id": "1", "image": str(home / "a.png"), "phrase": "x"}) + "\n")
    with Server(failure=lambda n: (503, {}, "full")) as server:
        arguments = ["predict", str(home / "run"), str(queries), "--output", str(tmp_path / "out"), "--device", "cpu"]
        assert main([*arguments, "--server", server.url]) == 2
    assert "does not answer after 12 attempts (503: full)" in capsys.readouterr().err
    assert not list((tmp_path / "out/shards").iterdir())
