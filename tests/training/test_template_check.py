"""What a recipe asks of the base's chat template is checked before targets are computed and a run folder is made."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sam4mllm.data.mixture import read_mixture
from sam4mllm.data.readers.chat import Dialogue
from sam4mllm.errors import ModelError, RecipeError, Sam4mllmError
from sam4mllm.recipe.schema import Recipe
from sam4mllm.synthetic.writer import write_dataset
from sam4mllm.testing import save_tiny_mllm
from sam4mllm.training.prepare import prepare_targets
from sam4mllm.training.template_check import check_template
from sam4mllm.training.trainer import train
from tests.training.helpers import make_recipe


@pytest.fixture(scope="module")
def one_answer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A base whose template omits the text of every answer but the last."""
    base = save_tiny_mllm("qwen2_vl", tmp_path_factory.mktemp("one_answer"))
    file = base / "chat_template.jinja"
    kept = "{% set last = messages[-1] %}{% for part"
    changed = file.read_text().replace("{% for part", kept)
    changed = changed.replace("{{ part['text'] }}", "{{ part['text'] if message in (last, messages[-2]) }}")
    file.write_text(changed)
    return str(base)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "data", scenes=2, seed=0)
    return tmp_path / "data"


def recipe_of(data: Path, base: str, *overrides: str) -> Recipe:
    folder = data.parent
    return make_recipe(folder, base, f"data.train.0.root={data}", f"targets.store={folder}/targets", *overrides)


@pytest.mark.parametrize("stage", [prepare_targets, train])
def test_a_refused_recipe_leaves_no_run_folder_and_computes_no_target(data: Path, one_answer: str, stage) -> None:
    recipe = recipe_of(data, one_answer, "method.packing=turns")
    with pytest.raises(
        RecipeError, match=r"only conversations of one answer .* set method\.packing=isolated"
    ) as caught:
        stage(recipe, device="cpu")
    assert "\n" not in str(caught.value)
    assert not recipe.output.exists() and not recipe.targets.store.exists()
    # The advised settings are not refused: the next error is that of the segmenter, which does not exist.
    for index, advised in enumerate(("method.packing=isolated", "method.phrases=1")):
        with pytest.raises(Sam4mllmError, match=r"none\.pth"):
            stage(recipe_of(data, one_answer, advised, f"output={data.parent}/run{index}"), device="cpu")


@pytest.mark.parametrize("stage", [prepare_targets, train])
@pytest.mark.parametrize(
    ("family", "setting", "reason"),
    [
        (
            "fast_vlm",
            "model.attn_implementation=flash_attention_2",
            r"'flash_attention_2' does not take; set model\.attn",
        ),
        (
            "lfm2_vl",
            "model.dtype=auto",
            r"'lfm2_vl' has layers of the kind 'indexed_attention', .*; set method",
        ),
    ],
)
def test_a_model_that_cannot_isolate_phrases_is_refused_at_the_start(
    data: Path, tmp_path: Path, stage, family: str, setting: str, reason: str
) -> None:
    base = save_tiny_mllm(family, tmp_path / "base")
    if family == "lfm2_vl":
        file = base / "config.json"
        config = json.loads(file.read_text())
        config["text_config"]["layer_types"][0] = "indexed_attention"
        file.write_text(json.dumps(config))
    recipe = recipe_of(data, str(base), "method.packing=isolated", setting)
    with pytest.raises(ModelError, match=reason) as caught:
        stage(recipe, device="cpu")
    assert "\n" not in str(caught.value)
    assert not recipe.output.exists() and not recipe.targets.store.exists()


def test_the_two_rounds_of_pqpp_are_several_answers(data: Path, one_answer: str) -> None:
    recipe = recipe_of(data, one_answer, "method=pqpp", "method.phrases=1")
    with pytest.raises(RecipeError, match=r"set method\.name=ppg, or use another base"):
        train(recipe, device="cpu")
    assert not recipe.output.exists()


def test_chat_of_several_exchanges_has_several_answers(data: Path, one_answer: str) -> None:
    recipe = recipe_of(data, one_answer, "method.phrases=1")
    mixture = read_mixture(recipe.data, recipe.seed)
    chat = Dialogue("chat", mixture.samples[0].image, (("Is it red?", "yes"),))
    check_template(recipe, replace(mixture, dialogues=(chat,)))
    longer = replace(chat, exchanges=chat.exchanges * 2)
    with pytest.raises(RecipeError, match=r"but 1 of \d+ have more .*; leave chat of several exchanges out"):
        check_template(recipe, replace(mixture, dialogues=(chat, longer)))


def test_a_base_that_is_not_available_here_does_not_stop_prepare(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = recipe_of(data, "no-such-owner/no-such-model")
    with pytest.raises(Sam4mllmError, match=r"none\.pth"):
        prepare_targets(recipe, device="cpu")
    assert "without a check of its chat template" in caplog.text
    with pytest.raises(Sam4mllmError, match="no-such-model"):
        train(recipe, device="cpu")
    assert not recipe.output.exists()
