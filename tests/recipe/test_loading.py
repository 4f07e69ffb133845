"""Recipes: what loads, what overrides do, and what is said about one that cannot be used."""

from __future__ import annotations

import shlex
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from sam4mllm.cli.main import parse
from sam4mllm.data.entry import CHAT_SETS, DatasetName
from sam4mllm.data.registry import DATASETS
from sam4mllm.errors import RecipeError
from sam4mllm.evaluate.published import published
from sam4mllm.recipe.loading import Recipe, load_recipe, shipped_recipes
from sam4mllm.recipe.schema import TrainingSection

SMALL = """
output: runs/small
model: {base: shapes}
segmenter: {checkpoint: shapes}
data:
  train:
    - {dataset: refcoco, root: data, split: train}
    - {dataset: grefcoco, root: data, split: train}
"""
CHECKOUT = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL, encoding="utf-8")
    return path


def problems(path: Path | str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return [line.removeprefix(f"{path}: ") for line in str(caught.value).splitlines()]


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
    prepared = {"prepare"} if recipe.method.name != "pqpp" else set()
    assert {"inspect", "train", "evaluate"} | prepared <= {command.subcommand for command in commands}
    for command in commands:
        assert getattr(command, "recipe", name) == name
        assert command.subcommand != "evaluate" or command.run == str(recipe.output)
    assert any(command.subcommand == "train" and command.dry_run for command in commands)
    assert sum(line == f"# Output: {recipe.output}" for line in comment) == 1
    assert sum(line.startswith("# Source: ") for line in comment) == 1
    assert sum(line.startswith("# GPU memory: ") for line in comment) == 1 and "ESTIMATE" in " ".join(comment)
    assert any(line.startswith("# Published results") for line in comment)


REFERRING = ("refcoco val", "refcoco testA", "refcoco testB", "refcoco+ val", "refcoco+ testA", "refcoco+ testB")
REFERRING += ("refcocog val", "refcocog test")


@pytest.mark.parametrize("name", sorted(name for name in shipped_recipes() if not name.startswith("shapes_")))
def test_the_figures_that_a_recipe_is_up_against_are_those_of_the_table(name: str) -> None:
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
        told = [None if word == "-" else float(word) for word in figures.replace("|", " ").split()]
        assert told == expected and rows, line
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


def test_an_installed_package_finds_its_recipes_inside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    inside = tmp_path / "site" / "sam4mllm" / "recipes"
    inside.mkdir(parents=True)
    (inside / "small.yaml").write_text(SMALL, encoding="utf-8")
    monkeypatch.setattr(resources, "files", lambda package: inside.parent)
    assert list(shipped_recipes()) == ["small"]
    assert load_recipe("small").output == Path("runs/small")


def test_defaults_are_the_papers(small: Path) -> None:
    recipe = load_recipe(small)
    assert (recipe.method.positives, recipe.method.negatives, recipe.method.grid) == (2, 1, 1000)
    assert (recipe.targets.groups, recipe.targets.keep, recipe.targets.choose) == (64, 1, "top")
    assert recipe.lora == {}
    assert recipe.training.arguments == {}


def test_overrides_replace_in_order_and_are_yaml(small: Path) -> None:
    recipe = load_recipe(
        small,
        [
            "training.learning_rate=1e-4",
            "training.save_strategy=no",
            "training.validate.every_steps=5",
            "seed=1",
            "seed=2",
            "data.train.1.limit=7",
            "data.validation={dataset: refcoco, root: data, split: val}",
            "model.quantization=4bit",
            "lora.target_modules=[q_proj, v_proj]",
        ],
    )
    assert recipe.training.arguments == {"learning_rate": 1e-4, "save_strategy": "no"}
    assert recipe.training.validation.every_steps == 5
    assert recipe.seed == 2
    assert [entry.limit for entry in recipe.data.train] == [None, 7]
    assert recipe.data.validation is not None
    assert recipe.data.validation.split == "val"
    assert recipe.model.quantization == "4bit"
    assert recipe.lora == {"target_modules": ["q_proj", "v_proj"]}


def test_a_value_may_hold_an_equals_sign(small: Path) -> None:
    assert load_recipe(small, ["output=runs/a=b"]).output == Path("runs/a=b")


def test_home_is_expanded(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert load_recipe(small, ["output=~/run"]).output == Path("/home/someone/run")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("sed=1", "sed: unknown key; did you mean seed?"),
        ("model.bas=x", "model.bas: unknown key; did you mean base?"),
        ("targets.zzz=1", "targets.zzz: unknown key; the valid keys are batch_size, choose, groups"),
        ("data.train.0.splt=x", "data.train.0.splt: unknown key; did you mean split?"),
        ("training.validate.sample=5", "training.validate.sample: unknown key; did you mean samples?"),
        ("groups=5", "groups: unknown key; did you mean targets.groups?"),
        ("learning_rate=1", "learning_rate: unknown key; did you mean training.learning_rate?"),
        ("model.r=1", "model.r: unknown key; did you mean lora.r?"),
        ("training.learnin_rate=1", "training.learnin_rate: unknown key of TrainingArguments; did you mean learning_r"),
        ("training.validation=1", "training.validation: unknown key of TrainingArguments; did you mean validate?"),
        ("training.learning_rate=fast", "training.learning_rate: input should be a valid number; got 'fast'"),
        ("training.seed=1", "training.seed: is decided by the recipe's seed; set that instead"),
        ("training.output_dir=x", "training.output_dir: is decided by the recipe's output; set that instead"),
        ("lora.lora_alph=1", "lora.lora_alph: unknown key of LoraConfig; did you mean lora_alpha?"),
        ("lora.rank=8", "lora.rank: unknown key of LoraConfig; did you mean r?"),
        ("training.lr=1", "training.lr: unknown key of TrainingArguments; did you mean learning_rate?"),
        ("lora.r=many", "lora.r: input should be a valid integer; got 'many'"),
        ("lora=5", "lora: input should be "),
        ("lora.base_model_name_or_path=x", "lora.base_model_name_or_path: is decided by the recipe's model.base"),
        ("targets.groups=0", "targets.groups: input should be greater than 0; got 0"),
        ("targets.groups='8'", "targets.groups: input should be a valid integer; got '8'"),
        ("targets.min_iou=1.5", "targets.min_iou: input should be less than or equal to 1; got 1.5"),
        ("targets.judge=loose", "targets.judge: input should be 'exact', 'jittered' or 'none'; got 'loose'"),
        ("targets.keep=65", "targets.keep: cannot keep 65 of 64 groups"),
        ("targets={judge: jittered, jitter: 0.0}", "targets.jitter: is 0, so judge: jittered"),
        (
            "targets={judge: none, only_winning: true}",
            "targets.only_winning: compares points beside a box with the box",
        ),
        (
            "segmenter.fallback_margin=1.5",
            "segmenter.fallback_margin: input should be less than or equal to 1; got 1.5",
        ),
        ("segmenter.fallback_outside=-1", "segmenter.fallback_outside: input should be greater than or equal to 0; g"),
        ("data.train=[]", "data.train: list should have at least 1 item"),
        ("data.train.0.dataset=coca", "data.train.0.dataset: input should be 'refcoco', 'refcoco+'"),
        ("data.train.0.dataset=jsonl", "data.train.0.path: is missing; jsonl needs path"),
        ("data.train.0={dataset: coco, path: i.json}", "data.train.0.phrases: is missing; coco needs path and phrases"),
        ("data.train.0.split=null", "data.train.0.split: is missing; "),
        ("data.train.0.path=a.jsonl", "data.train.0.path: has no meaning for "),
        (
            "data.train.0={dataset: jsonl, path: a, split: b}",
            "data.train.0.split: has no meaning for jsonl, which take",
        ),
        (
            "data.train.0={dataset: hub, path: a, columns: {text: b}}",
            "data.train.0.columns.text.[key]: input should be",
        ),
        ("data.train.0.weight=0.0", "data.train.0.weight: input should be greater than 0; got 0.0"),
        ("data.train.0.count=0", "data.train.0.count: input should be greater than 0; got 0"),
        (
            "data.train.0={dataset: jsonl, path: a, weight: 2, count: 3}",
            "data.train.0.count: is given beside weight; keep one of them",
        ),
        ("data.guard=on", "data.guard: input should be a valid array; got 'on'"),
        ("data.guard=[{dataset: chat}]", "data.guard.0.path: is missing; chat needs path"),
        (
            "data.guard=[{dataset: grefcoco, root: data, split: train}]",
            "data.guard.0: is trained on as well (data.train.1); choose a held-out split",
        ),
        (
            "data.validation={dataset: chat, path: c.json}",
            "data.validation: chat has no masks to validate on; choose another set",
        ),
        (
            "data.validation={dataset: jsonl, path: v.jsonl, count: 3}",
            "data.validation: weight and count are for data.train",
        ),
        (
            "data.validation={dataset: grefcoco, root: data, split: train}",
            "data.validation: is trained on as well (data.train.1); choose a held-out split",
        ),
        ("output=null", "output: input should be a valid string; got None"),
        ("training.max_steps", "override 'training.max_steps': write key=value"),
        ("=5", "override '=5': write key=value"),
        ("training..max_steps=5", "override 'training..max_steps=5': write key=value"),
        ("seed=[1", "override 'seed=[1': the value is no YAML: line 1"),
        ("data.train.2.limit=5", "override 'data.train.2.limit=5': there is nothing at '2'"),
        ("data.train.2=5", "override 'data.train.2=5': there is nothing at '2' to set"),
        ("output.folder=5", "override 'output.folder=5': there is nothing at 'folder' to set"),
        ("output.folder.name=5", "override 'output.folder.name=5': there is nothing at 'folder' to set 'name' in"),
    ],
)
def test_one_problem_is_one_line_that_says_what_to_do(small: Path, override: str, says: str) -> None:
    (line,) = problems(small, override)
    assert line.startswith(says)


def test_all_problems_are_told_at_once(small: Path) -> None:
    lines = problems(
        small, "sed=1", "training.max_step=5", "training.validate.batch_size=0", "lora.rr=8", "oops", "targets.keep=-1"
    )
    assert [line.split(":")[0] for line in lines] == [
        "override 'oops'",
        "targets.keep",
        "training.validate.batch_size",
        "sed",
        "lora.rr",
        "training.max_step",
    ]


def test_a_missing_setting_is_named(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("seed: 1\n", encoding="utf-8")
    assert problems(path) == [f"{key}: is missing" for key in ("output", "model", "segmenter", "data")]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"- a\n", "a recipe is a mapping of sections; got list"),
        (b"", "a recipe is a mapping of sections; got NoneType"),
        (b"seed: 1\nseed: 2\n", "is no YAML: line 2, column 1: key 'seed' is given twice"),
        (b"seed: [1\n", "is no YAML: line 2"),
        (b"\xff\xfe", "cannot be read as UTF-8 text"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path: Path, text: bytes, says: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(text)
    (line,) = problems(path)
    assert line.startswith(says)


@pytest.mark.parametrize("name", ["shape_ppg", "nowhere/shapes_pgp.yaml"])
def test_an_unknown_recipe_gives_the_nearest_shipped_one(name: str) -> None:
    (line,) = problems(name)
    assert line == "no such recipe file, and no shipped recipe of that name; did you mean shapes_ppg?"


def test_what_is_written_loads_to_an_equal_recipe(tmp_path: Path) -> None:
    recipe = load_recipe("shapes_ppg", ["training.save_strategy=no", "training.learning_rate=1e-5"])
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    again = load_recipe(path)
    assert again == recipe
    assert again.hash() == recipe.hash()
    assert again.to_yaml() == recipe.to_yaml()


def test_the_hash_knows_settings_and_not_their_order_or_spelling(small: Path) -> None:
    plain = load_recipe(small, ["training.learning_rate=1e-4", "training.max_steps=5"]).hash()
    assert load_recipe(small, ["training.max_steps=5", "training.learning_rate=0.0001"]).hash() == plain
    assert load_recipe(small, ["training.max_steps=5", "training.learning_rate=0.0001", "seed=0"]).hash() == plain
    assert load_recipe(small, ["training.max_steps=6", "training.learning_rate=0.0001"]).hash() != plain
    assert len(plain) == 64


def test_every_setting_is_described() -> None:
    def sections(model: type[BaseModel]) -> set[type[BaseModel]]:
        found = {model}
        for field in model.model_fields.values():
            for kind in (field.annotation, *get_args(field.annotation)):
                if isinstance(kind, type) and issubclass(kind, BaseModel):
                    found |= sections(kind)
        return found

    everything = sections(Recipe)
    assert TrainingSection in everything
    bare = [
        f"{section.__name__}.{name}"
        for section in everything
        for name, field in section.model_fields.items()
        if not field.description
    ]
    assert bare == []


def test_the_data_set_names_are_those_of_the_readers() -> None:
    assert set(get_args(DatasetName)) == {*DATASETS, *CHAT_SETS}


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["method=pqpp"], "pqpp"),
        (["method.name=both"], "both"),
        (["methods=[ppg]"], "ppg"),
        (["methods=[ppg, pqpp]"], "both"),
        (["methods=[pqpp, ppg]", "method.phrases=2"], "both"),
    ],
)
def test_a_method_is_chosen_by_its_name_alone(small: Path, tmp_path: Path, overrides: list[str], name: str) -> None:
    recipe = load_recipe(small, overrides)
    assert recipe.method.name == name
    (tmp_path / "again.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_recipe(tmp_path / "again.yaml") == recipe
    assert load_recipe(small, [f"method.name={name}", f"method.phrases={recipe.method.phrases}"]) == recipe


def test_a_method_named_alone_leaves_the_sections_other_settings_as_they_are(small: Path) -> None:
    assert load_recipe("shapes_ppg", ["method=pqpp"]) == load_recipe("shapes_ppg", ["method.name=pqpp"])
    recipe = load_recipe(small, ["method=pqpp", "method.form=single"])
    assert (recipe.method.name, recipe.method.form) == ("pqpp", "single")


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["methods=[ppg, ppg]"], "methods: is [ppg], [pqpp] or [ppg, pqpp]; got ['ppg', 'ppg']"),
        (["methods=pqpp"], "methods: is [ppg], [pqpp] or [ppg, pqpp]; got 'pqpp'"),
        (["methods=[pqpp]", "method.name=ppg"], "methods: is given beside method.name; keep one of them"),
        (["method=ppg", "methods=[pqpp]"], "methods: is given beside method.name; keep one of them"),
        (["method=pgp"], "method.name: input should be 'ppg', 'pqpp' or 'both'; got 'pgp'"),
        (["method.box_jitter=0.5"], "method.box_jitter: input should be less than 0.5; got 0.5"),
    ],
)
def test_methods_that_cannot_be(small: Path, overrides: list[str], problem: str) -> None:
    assert problems(small, *overrides) == [problem]
