"""Options of pipelines: their one signature, and whether the adapter of a run is merged into the weights."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sam4mllm import Pipeline, load_recipe
from sam4mllm.cli.main import main
from sam4mllm.errors import ModelError
from sam4mllm.mllm.loading import Mllm, load_mllm
from sam4mllm.mllm.lora import attach_lora, has_adapter, merge_for_inference
from sam4mllm.mllm.transformers_engine import TransformersEngine
from sam4mllm.pipeline.plan import PipelineOptions, resolve
from sam4mllm.runs.run_folder import RunFolder
from sam4mllm.segmenters.fake import BoxSegmenter
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


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny base model, a tiny SAM, a run whose adapter changes the answers, and queries."""
    folder = tmp_path_factory.mktemp("home")
    save_tiny_mllm("fast_vlm", folder / "base", seed=1)
    save_tiny_sam(folder / "sam.pth")
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder))
    recipe = load_recipe(folder / "recipe.yaml")
    mllm = attach_lora(load_mllm(recipe.model.base), recipe.lora, seed=0)
    torch.manual_seed(1)
    for name, parameter in mllm.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    RunFolder.create(recipe).finish(mllm.model, mllm.processor)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(folder / "a.png")
    lines = [{"id": str(n), "image": str(folder / "a.png"), "phrase": f"thing {n}"} for n in range(4)]
    (folder / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def choices(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool | None, bool]]:
    """For each loaded model the given `merge_adapter`, and whether the adapter was merged."""
    seen: list[tuple[bool | None, bool]] = []

    def noting(mllm: Mllm, merge: bool | None = None) -> Mllm:
        merged = merge_for_inference(mllm, merge)
        seen.append((merge, merged.adapter_merged))
        return merged

    monkeypatch.setattr("sam4mllm.pipeline.loading.merge_for_inference", noting)
    return seen


def loaded(pipeline: Pipeline) -> Mllm:
    assert isinstance(pipeline.engine, TransformersEngine)
    return pipeline.engine.mllm


def test_the_options_of_a_pipeline_are_the_keyword_arguments_of_resolve() -> None:
    parameters = inspect.signature(resolve).parameters.values()
    keywords = {each.name: each.annotation for each in parameters if each.kind is each.KEYWORD_ONLY}
    assert keywords == {name: each.__forward_arg__ for name, each in PipelineOptions.__annotations__.items()}
    described = Pipeline.from_pretrained.__doc__ or ""
    assert all(f"\n            {name}: " in described for name in keywords)


def test_the_adapter_is_merged_by_default_and_answers_and_identity_are_the_same(home: Path) -> None:
    merged = Pipeline.from_pretrained(home / "run", device="cpu")
    plain = Pipeline.from_pretrained(home / "run", device="cpu", merge_adapter=False)
    assert loaded(merged).adapter_merged and not has_adapter(loaded(merged))
    assert has_adapter(loaded(plain)) and not loaded(plain).adapter_merged
    assert merged.identity == plain.identity
    pairs = [(home / "a.png", f"thing {n}") for n in range(4)]
    answers = [[result.answer for result in each(pairs)] for each in (merged, plain)]
    base = Pipeline.from_pretrained(
        str(home / "base"), device="cpu", segmenter=BoxSegmenter(), method=plain.method.settings(), merge_adapter=True
    )
    assert answers[0] == answers[1] != [result.answer for result in base(pairs)]
    assert not loaded(base).adapter_merged


def test_an_adapter_given_for_a_base_is_merged_too(home: Path) -> None:
    pipeline = Pipeline.from_pretrained(str(home / "base"), home / "run", device="cpu")
    assert loaded(pipeline).adapter_merged


def test_the_adapter_of_a_run_on_a_quantized_base_is_not_merged(home: Path) -> None:
    pytest.importorskip("bitsandbytes")
    recipe = home / "run" / "recipe.yaml"
    text = recipe.read_text()
    recipe.write_text(text.replace("quantization: null", "quantization: 4bit"))
    try:
        pipeline = Pipeline.from_pretrained(home / "run", device="cpu")
    finally:
        recipe.write_text(text)
    assert loaded(pipeline).quantization == "4bit" and has_adapter(loaded(pipeline))


@pytest.mark.parametrize("quantize_vision", [False, True])
def test_a_run_is_loaded_with_the_vision_tower_as_it_was_trained(
    home: Path, quantize_vision: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("bitsandbytes")
    seen: list[dict[str, Any]] = []

    def noting(*arguments: Any, **settings: Any) -> Mllm:
        seen.append(settings)
        return load_mllm(*arguments, **settings)

    monkeypatch.setattr("sam4mllm.pipeline.loading.load_mllm", noting)
    recipe = home / "run" / "recipe.yaml"
    text = recipe.read_text()
    changed = text.replace("quantization: null", "quantization: 8bit")
    recipe.write_text(changed.replace("quantize_vision: false", f"quantize_vision: {str(quantize_vision).lower()}"))
    try:
        pipeline = Pipeline.from_pretrained(home / "run", device="cpu")
    finally:
        recipe.write_text(text)
    assert [each["quantize_vision"] for each in seen] == [quantize_vision]
    assert pipeline.identity["engine"]["quantize_vision"] is quantize_vision


def test_a_job_started_without_merging_is_resumed_with_it(
    home: Path, tmp_path: Path, choices: list[tuple[bool | None, bool]]
) -> None:
    arguments = ["predict", str(home / "run"), str(home / "q.jsonl"), "--output", str(tmp_path), "--device", "cpu"]
    assert main([*arguments, "--no-merge-adapter"]) == 0
    first = (tmp_path / "predictions.jsonl").read_bytes()
    assert main(arguments) == 0
    assert choices == [(False, False), (None, True)]
    assert (tmp_path / "predictions.jsonl").read_bytes() == first
    # The answers of a shard that is computed again with the merged adapter are the same.
    (tmp_path / "shards/00000.jsonl").unlink()
    assert main(arguments) == 0
    again = map(json.loads, (tmp_path / "predictions.jsonl").read_text().splitlines())
    assert [line["answer"] for line in again] == [json.loads(line)["answer"] for line in first.splitlines()]


@pytest.mark.parametrize("subcommand", ["segment", "predict", "evaluate"])
def test_every_subcommand_that_answers_has_the_option(
    subcommand: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def stop(model: str, adapter: str | None, **options: Any) -> None:
        given.append(options["merge_adapter"])
        raise KeyboardInterrupt

    monkeypatch.setattr(Pipeline, "from_pretrained", stop)
    monkeypatch.setattr("sam4mllm.evaluation.evaluate.choose_suite", lambda *_, **__: None)
    monkeypatch.setattr("sam4mllm.evaluation.evaluate.read_suite", lambda *_: [])
    monkeypatch.setattr("sam4mllm.evaluation.evaluate.read_dialogues", lambda entry: [])
    chat = tmp_path / "chat.jsonl"
    chat.touch()
    arguments = {
        "segment": ["segment", "run", str(home / "a.png"), "the ring"],
        "predict": ["predict", "run", str(home / "q.jsonl"), "--output", str(tmp_path / "out")],
        "evaluate": ["evaluate", "run", "--dataset", "refcoco", "--root", str(home)],
    }[subcommand]
    variants = [arguments, [*arguments, "--no-merge-adapter"]]
    # The base is asked the questions of a chat file, too, which a merged adapter would prevent.
    variants += [[*arguments, "--chat", str(chat)]] if subcommand == "evaluate" else []
    for variant in variants:
        assert main(variant) == 130
    assert given == [None, False, False][: len(variants)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rnu",), "rnu: no such run folder, and not the id of a model on the Hub (OWNER/NAME); did you mean run?"),
        (("zzz",), "zzz: no such run folder, and not the id of a model on the Hub (OWNER/NAME)"),
        (("runs/dmeo",), "runs/dmeo: no such run folder; did you mean runs/demo?"),
        (("rnus/demo",), "base model 'rnus/demo' has no segmenter of its own; did you mean runs/demo?"),
        (("runs/zzzzzz",), "runs/zzzzzz: no such run folder; train one with `sam4mllm train RECIPE`"),
        (("{home}/runs/demos",), "{home}/runs/demos: no such run folder; did you mean {home}/runs/demo?"),
        (
            ("owner/model",),
            "base model 'owner/model' has no segmenter of its own; give a SAM checkpoint (--segmenter CHECKPOINT)",
        ),
        (("owner/model", "rnu"), "rnu: no such folder of an adapter; did you mean run?"),
    ],
)
def test_a_mistyped_run_folder_names_the_near_ones(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("run", "runs/demo", "recipes"):
        Path(name).mkdir(parents=True)
    for name in ("run", "runs/demo"):
        Path(name, "recipe.yaml").write_text("")
    with pytest.raises(ModelError) as raised:
        resolve(*(name.format(home=tmp_path) for name in arguments))
    assert str(raised.value) == message.format(home=tmp_path)
