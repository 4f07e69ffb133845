"""The shipped recipes: they load, and their comments show working commands and the published figures."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest

from sam4mllm.cli.main import parse
from sam4mllm.evaluation.published import published
from sam4mllm.recipe.loading import load_recipe, shipped_recipes

CHECKOUT = Path(__file__).parents[2] / "recipes"


def test_every_recipe_of_the_checkout_is_shipped_and_no_two_are_the_same() -> None:
    assert set(shipped_recipes()) == {path.stem for path in CHECKOUT.glob("*.yaml")}
    assert all(path.suffix == ".yaml" for path in CHECKOUT.iterdir())
    recipes = [load_recipe(name) for name in shipped_recipes()]
    assert len({recipe.output for recipe in recipes}) == len(recipes)
    assert len({recipe.model_copy(update={"output": Path()}).hash() for recipe in recipes}) == len(recipes)


def opening(name: str) -> list[str]:
    """The comment that a shipped recipe opens with."""
    lines = shipped_recipes()[name].read_text(encoding="utf-8").splitlines()
    return lines[: next(index for index, line in enumerate(lines) if not line.startswith("#"))]


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_every_shipped_recipe_loads_and_opens_with_its_commands(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.data.validation is not None
    comment = opening(name)
    commands = [parse(shlex.split(line[4:])[1:]) for line in comment if line.startswith("#   sam4mllm ")]
    prepared = {"prepare"} if recipe.method.name == "ppg" else set()
    assert {"inspect", "train", "evaluate"} | prepared <= {command.subcommand for command in commands}
    for command in commands:
        assert getattr(command, "recipe", name) == name
        assert command.subcommand != "evaluate" or command.run == str(recipe.output)
    assert any(command.subcommand == "train" and command.dry_run for command in commands)
    assert sum(line == f"# Output: {recipe.output}" for line in comment) == 1
    assert sum(line.startswith("# Source: ") for line in comment) == 1
    assert sum(line.startswith("# GPU memory: ") for line in comment) == 1 and "ESTIMATE" in " ".join(comment)
    assert any(line.startswith("# Published results") for line in comment)


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_the_readme_states_the_memory_in_a_recipes_comment(name: str) -> None:
    (memory,) = [line for line in opening(name) if line.startswith("# GPU memory: ")]
    found = re.match(r"# GPU memory: about (\d+ GiB), plus 10 % and 1 GiB for CUDA\.", memory)
    readme = (CHECKOUT.parent / "README.md").read_text(encoding="utf-8")
    (row,) = [line for line in readme.splitlines() if line.startswith(f"| [{name}](recipes/{name}.yaml) |")]
    assert row.endswith(f" | {found[1] if found else 'none'} |")
    assert found or "no GPU is needed" in memory


REFERRING = ("refcoco val", "refcoco testA", "refcoco testB", "refcoco+ val", "refcoco+ testA", "refcoco+ testB")
REFERRING += ("refcocog val", "refcocog test")


@pytest.mark.parametrize("name", sorted(name for name in shipped_recipes() if not name.startswith("shapes_")))
def test_the_published_figures_in_a_recipes_comment_are_those_of_the_table(name: str) -> None:
    comment = opening(name)
    kind, shown = "", 0
    for line, after in pairwise([*comment, ""]):
        kind = line if line.startswith("# Published results") else kind
        if not kind or not line.startswith("#   ") or line.startswith("#     "):
            continue
        system, _, figures = line[4:].rpartition(": ")
        system, _, split = system.partition(", ")
        if "RefCOCOg" in kind:
            rows = [row for place in REFERRING for row in published(*place.split()) if row.system == system]
            expected = [row.ciou for row in rows]
        elif "gRefCOCO" in kind:
            rows = [row for row in published("grefcoco", "val") if row.system == system]
            expected = [value for row in rows for value in (row.giou, row.ciou, row.n_acc)]
        else:
            rows = [row for row in published("reasonseg", split) if row.system == system]
            expected = [value for row in rows for value in (row.giou, row.ciou)]
        shown_figures = [None if word == "-" else float(word) for word in figures.replace("|", " ").split()]
        assert shown_figures == expected and rows, line
        assert after == f"#     {rows[0].source}"
        shown += 1
    assert shown


def test_the_papers_recipe_has_the_settings_of_its_code() -> None:
    recipe = load_recipe("sam4mllm_paper_llava_next_8b")
    arguments = recipe.training.arguments
    assert (recipe.lora["r"], recipe.lora["lora_alpha"], recipe.lora["lora_dropout"]) == (128, 128, 0.05)
    assert (arguments["optim"], arguments["learning_rate"], arguments["weight_decay"]) == ("adamw_bnb_8bit", 1e-4, 1e-3)
    assert (arguments["lr_scheduler_type"], arguments["warmup_steps"], arguments["num_train_epochs"]) == (
        "linear",
        0.01,
        3,
    )
    assert arguments["per_device_train_batch_size"] * arguments["gradient_accumulation_steps"] == 80
    assert (recipe.method.phrases, recipe.method.coordinates, recipe.method.grid) == (5, "grid", 1000)
    assert recipe.model.min_pixels == recipe.model.max_pixels == 672 * 672
    sets = [entry.dataset for entry in recipe.data.train]
    assert sets == ["refcoco", "refcoco+", "refcocog", "grefcoco", "chat"]


@pytest.mark.parametrize("name", sorted(name for name in shipped_recipes() if not name.startswith("shapes_")))
def test_recipes_of_benchmarks_have_the_papers_batch_and_limit_the_size_of_images(name: str) -> None:
    recipe = load_recipe(name)
    arguments = recipe.training.arguments
    batch = 64 if name.startswith("nextchat_") else 80
    assert arguments["per_device_train_batch_size"] * arguments["gradient_accumulation_steps"] == batch
    # Without a limit, Qwen's processors give an image of 12 megapixels more than 12,000 tokens.
    expected = {"Qwen/Qwen3": 1024 * 32**2, "Qwen/Qwen2.5": 1280 * 28**2}
    for base, max_pixels in expected.items():
        if recipe.model.base.startswith(base):
            assert recipe.model.max_pixels == max_pixels
    assert recipe.model.max_pixels is not None
    # The comment names the setting for less memory, and the number of conversations that the estimate is for.
    comment = " ".join(line.removeprefix("# ") for line in opening(name))
    if arguments["per_device_train_batch_size"] > 1:
        assert f"--dry-run` for {arguments['per_device_train_batch_size']} conversations of" in comment
        assert f"training.per_device_train_batch_size=1 training.gradient_accumulation_steps={batch}." in comment


def test_each_stage_of_nextchat_begins_with_the_merged_model_of_the_one_before() -> None:
    stages = [load_recipe(f"nextchat_stage{number}_qwen3_vl_8b") for number in (1, 2, 3)]
    for number, (before, after) in enumerate(pairwise(stages), start=1):
        assert after.model.base == f"{before.output}-merged"
        merge = f"#   sam4mllm merge {before.output} -o {after.model.base}"
        assert merge in opening(f"nextchat_stage{number}_qwen3_vl_8b")
        # Heads of another number of prompt tokens are refused.
        assert before.method.sam_tokens == after.method.sam_tokens
    first, second, third = stages
    tasks = [{entry.used_task for entry in stage.data.train} for stage in stages]
    assert tasks == [
        {"segment", "region-caption", "grounded-caption"},
        {"segment", "region-caption", "grounded-caption", "chat"},
        {"segment"},
    ]
    assert (first.method.mask_weight, second.method.mask_weight) == (0, 0)
    assert third.method.train_mask_decoder and third.method.mask_weight == 1
