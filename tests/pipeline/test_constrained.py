"""The setting of constrained decoding: its default, where it is refused, and that it belongs to a job's identity."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sam4mllm import Pipeline, load_recipe
from sam4mllm.cli.main import main
from sam4mllm.data.predictions import Query
from sam4mllm.data.sample import Sample
from sam4mllm.errors import DataError, ModelError
from sam4mllm.methods.registry import method_from_settings
from sam4mllm.mllm.constrained_engine import ConstrainedServerEngine
from sam4mllm.mllm.loading import load_mllm
from sam4mllm.mllm.lora import attach_lora
from sam4mllm.pipeline.batch import predict
from sam4mllm.recipe.schema import MethodSection
from sam4mllm.runs.run_folder import RunFolder
from sam4mllm.segmenters.fake import BoxSegmenter
from sam4mllm.testing import ScriptedEngine, save_tiny_mllm
from sam4mllm.training.validation import make_validator
from tests.mllm.fake_server import Server

BEGINNINGS = ("[", "No object found.")
RECIPE = """
output: {folder}/{name}
model: {{base: {folder}/base}}
segmenter: {{checkpoint: shapes}}
data: {{train: [{{dataset: shapes, root: {folder}, split: train}}]}}
method: {{positives: 1, negatives: 0}}
lora: {{r: 2}}
generation: {{max_new_tokens: 30, constrained: {constrained}}}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an image and the runs `on` and `off` of a random model, whose setting is true and false."""
    folder = tmp_path_factory.mktemp("home")
    save_tiny_mllm("fast_vlm", folder / "base", seed=1)
    for name, constrained in (("on", "true"), ("off", "false")):
        (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder, name=name, constrained=constrained))
        recipe = load_recipe(folder / "recipe.yaml")
        mllm = attach_lora(load_mllm(recipe.model.base), recipe.lora, seed=0)
        RunFolder.create(recipe).finish(mllm.model, mllm.processor)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(folder / "a.png")
    return folder


@pytest.mark.parametrize(
    ("run", "given", "expected"),
    [("on", None, True), ("off", None, False), ("on", False, False), ("off", True, True)],
)
def test_the_runs_setting_is_the_default(home: Path, run: str, given: bool | None, expected: bool) -> None:
    pipeline = Pipeline.from_pretrained(home / run, device="cpu", segmenter=BoxSegmenter(), constrained=given)
    assert pipeline.constrained is expected
    result = pipeline(home / "a.png", "the ring")
    # A random model writes no answer on its own.
    assert result.answer.startswith(BEGINNINGS) is expected
    assert result.status == "malformed" or expected
    assert result.status != "malformed" or not expected or result.reason == "cut off at max_new_tokens=30"


def test_a_base_model_is_constrained_by_default(home: Path) -> None:
    pipeline = Pipeline.from_pretrained(str(home / "base"), device="cpu", segmenter=BoxSegmenter())
    assert pipeline.constrained and pipeline.uncalibrated().constrained


def test_predictions_with_and_without_the_constraint_are_not_mixed(home: Path, tmp_path: Path) -> None:
    on, off = (
        Pipeline.from_pretrained(home / "on", device="cpu", segmenter=BoxSegmenter(), constrained=constrained)
        for constrained in (True, False)
    )
    assert on.identity == {**off.identity, "constrained": True}
    queries = [Query("1", home / "a.png", "the ring")]
    predict(on, queries, tmp_path / "out")
    with pytest.raises(DataError, match=r"another job's predictions \(different: constrained\)"):
        predict(off, queries, tmp_path / "out")


def test_the_options_of_the_command_line(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begins = []
    for option in ("--constrained", "--no-constrained"):
        main(["segment", str(home / "on"), str(home / "a.png"), "x", "--device", "cpu", "--json", "-", option])
        begins.append(json.loads(capsys.readouterr().out)["answer"].startswith(BEGINNINGS))
    assert begins == [True, False]


@pytest.mark.parametrize("constrained", [True, False])
def test_validation_has_the_runs_setting(home: Path, monkeypatch: pytest.MonkeyPatch, constrained: bool) -> None:
    given = []
    monkeypatch.setattr("sam4mllm.training.validation.Pipeline", lambda *parts, **settings: given.append(settings))
    split = "data.validation={dataset: shapes, root: x, split: val}"
    recipe = load_recipe(home / "recipe.yaml", [f"generation.constrained={str(constrained).lower()}", split])
    method = method_from_settings(MethodSection().model_dump())
    sample = Sample("1", home / "a.png", (60, 40), "x", ())
    make_validator(recipe, method, load_mllm("shapes"), BoxSegmenter(), [sample])
    assert [settings["constrained"] for settings in given] == [constrained]


def test_an_engine_that_cannot_be_constrained_is_refused() -> None:
    method = method_from_settings(MethodSection().model_dump())
    with pytest.raises(ModelError, match=r"ScriptedEngine has no means for it; generate without \(--no-constrained\)"):
        Pipeline(method, ScriptedEngine([]), BoxSegmenter(), constrained=True)


def test_a_server_of_another_kind_is_refused_only_if_the_constraint_is_required(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Server() as server:
        pipeline = Pipeline.from_pretrained(home / "on", segmenter=BoxSegmenter(), server=server.url)
        assert not pipeline.constrained and "constrained" not in pipeline.identity
        assert len(caplog.messages) == 1 and "neither vLLM nor SGLang" in caplog.messages[0]
        assert not Pipeline.from_pretrained(
            home / "on", segmenter=BoxSegmenter(), server=server.url, constrained=False
        ).constrained
        assert len(caplog.messages) == 1
        with pytest.raises(ModelError, match=r"--constrained is not possible: the server .* is neither vLLM"):
            Pipeline.from_pretrained(home / "on", segmenter=BoxSegmenter(), server=server.url, constrained=True)


def test_a_server_of_vllm_gets_the_form_of_the_methods_answers(home: Path) -> None:
    with Server(answer=lambda question: "[100,100,400,400] +(200,200)", owner="vllm") as server:
        pipeline = Pipeline.from_pretrained(home / "on", segmenter=BoxSegmenter(), server=server.url)
        result = pipeline(home / "a.png", "the ring")
    assert result.status == "ok" and isinstance(pipeline._answering, ConstrainedServerEngine)
    regex = pipeline.method.answer_form.regex((60, 40))
    assert server.asked[0]["structured_outputs"] == {"regex": rf"[ \n]?({regex})"}


@pytest.mark.parametrize("method", ["ppg", "pqpp"])
def test_the_form_of_a_methods_answers_has_the_points_that_it_asks_for(method: str) -> None:
    form = method_from_settings(MethodSection(name=method, positives=3, negatives=2).model_dump()).answer_form
    assert (form.positives, form.negatives) == ((3, 2) if method == "ppg" else (0, 0))
