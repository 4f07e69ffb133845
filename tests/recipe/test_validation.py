"""Problems of a recipe: one line each, with the key and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.recipe.conftest import problems


@pytest.mark.parametrize(
    ("override", "message"),
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
        ("seed=-1", "seed: input should be greater than or equal to 0; got -1"),
        (f"seed={2**32}", "seed: input should be less than 4294967296; got 4294967296"),
        ("training.seed=1", "training.seed: is set by the recipe's seed; set that instead"),
        ("training.output_dir=x", "training.output_dir: is set by the recipe's output; set that instead"),
        ("lora.lora_alph=1", "lora.lora_alph: unknown key of LoraConfig; did you mean lora_alpha?"),
        ("lora.rank=8", "lora.rank: unknown key of LoraConfig; did you mean r?"),
        ("training.lr=1", "training.lr: unknown key of TrainingArguments; did you mean learning_rate?"),
        ("lora.r=many", "lora.r: input should be a valid integer; got 'many'"),
        ("lora=5", "lora: input should be "),
        ("lora.base_model_name_or_path=x", "lora.base_model_name_or_path: is set by the recipe's model.base"),
        ("targets.groups=0", "targets.groups: input should be greater than 0; got 0"),
        ("targets.groups='8'", "targets.groups: input should be a valid integer; got '8'"),
        ("targets.min_iou=1.5", "targets.min_iou: input should be less than or equal to 1; got 1.5"),
        ("targets.judge=loose", "targets.judge: input should be 'exact', 'jittered' or 'none'; got 'loose'"),
        ("targets.keep=65", "targets.keep: cannot keep 65 of 64 groups"),
        ("targets={judge: jittered, jitter: 0.0}", "targets.jitter: is 0, so judge: jittered"),
        ("segmenter.fallback_margin=0.05", "segmenter.fallback_margin: was removed, so 0.05 has no effect; remove "),
        ("segmenter.fallback_outside=0", "segmenter.fallback_outside: was removed, so 0 has no effect; remove the k"),
        ("segmenter.kind=sam2", "segmenter.kind: was removed, so 'sam2' has no effect; remove the key: the kind is "),
        ("targets.only_winning=true", "targets.only_winning: was removed, so True has no effect; remove the key: p"),
        ("targets.only_winning=0", "targets.only_winning: was removed, so 0 has no effect; remove the key: points"),
        (
            "targets.only_wining=false",
            "targets.only_wining: unknown key; the valid keys are batch_size, choose, groups",
        ),
        ("method.only_winning=false", "method.only_winning: unknown key; the valid keys are asked, box_jitter"),
        ("data.train=[]", "data.train: list should have at least 1 item"),
        ("data.train.0.dataset=coca", "data.train.0.dataset: unknown data set; did you mean coco?; got 'coca'"),
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
        ("data.train.0.task=caption", "data.train.0.task: input should be 'segment', 'region-caption',"),
        (
            "data.train.0.task=grounded-caption",
            "data.train.0.task: refcoco has no data for grounded-caption; its tasks are segment, region-caption",
        ),
        (
            "data.validation={dataset: refcoco, root: data, split: val, task: segment}",
            "data.validation: task is for data.train; remove it",
        ),
        (
            "data.validation={dataset: flickr30k, root: data, split: val}",
            "data.validation: flickr30k has no masks to validate on; choose another set",
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
        ("seed=[1", "override 'seed=[1': the value is not valid YAML: line 1"),
        ("data.train.2.limit=5", "override 'data.train.2.limit=5': there is nothing at '2'"),
        ("data.train.2=5", "override 'data.train.2=5': there is nothing at '2' to set"),
        ("output.folder=5", "override 'output.folder=5': there is nothing at 'folder' to set"),
        (
            "output.folder.name=5",
            "override 'output.folder.name=5': there is nothing at 'folder' in which 'name' could be set",
        ),
    ],
)
def test_a_problem_is_reported_in_one_line_with_what_to_do(small: Path, override: str, message: str) -> None:
    (line,) = problems(small, override)
    assert line.startswith(message)


def test_all_problems_are_reported_at_once(small: Path) -> None:
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
