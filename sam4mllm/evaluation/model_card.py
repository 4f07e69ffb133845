"""The model card of a run: what it is, its use, its data and their licenses, and its figures with their protocol."""

from __future__ import annotations

import json
from typing import Any

from sam4mllm.errors import ModelError
from sam4mllm.mllm.loading import is_hub_id
from sam4mllm.recipe.licenses import BASES, license_lines
from sam4mllm.recipe.schema import Recipe
from sam4mllm.runs.file_names import RESULTS, VERSIONS
from sam4mllm.runs.run_folder import RunFolder

_HUB_LICENSES = {"Apache-2.0": "apache-2.0", "MIT": "mit"}
"""The Hub's identifiers of licenses, by their names in the table; "other" for those not listed."""

_METRICS = {"cIoU": "ciou", "gIoU": "giou", "N-acc": "n_acc", "Acc@0.5": "acc_50"}
_LIBRARIES = ("sam4mllm", "torch", "transformers", "peft")


def model_card(run: RunFolder, repo_id: str) -> str:
    """Return the model card of a run, in Markdown with the Hub's metadata; every figure is of a file of the run.

    Raises:
        ModelError: A results.json that cannot be read.
    """
    recipe = run.recipe
    base = recipe.model.base
    on_hub = is_hub_id(base)
    linked = f"[{base}](https://huggingface.co/{base})" if on_hub else f"`{base}`"
    row = next((each for each in BASES if each.matches(base)), None)
    metadata = {
        "license": _HUB_LICENSES.get(row.license, "other") if row is not None else "other",
        **({"base_model": base} if on_hub else {}),
        "library_name": "sam4mllm" if run.is_merged else "peft",
        "pipeline_tag": "image-segmentation",
        "tags": ["sam4mllm", "referring-expression-segmentation", recipe.method.name],
    }
    # JSON is YAML.
    head = "".join(f"{key}: {json.dumps(value)}\n" for key, value in metadata.items())
    kind = "The merged model" if run.is_merged else "A LoRA adapter"
    return (
        f"---\n{head}---\n\n# {repo_id}\n\n"
        f"{kind} of {linked} for referring expression segmentation, trained with sam4mllm by the method "
        f"`{recipe.method.name}`: given an image and a phrase, the model answers with prompts, and a segmenter turns "
        "them into masks.\n\n"
        f"{_usage(recipe, repo_id)}\n{_data(recipe)}\n{_licenses(recipe)}\n{_figures(run)}\n{_versions(run)}"
    )


def _usage(recipe: Recipe, repo_id: str) -> str:
    return (
        "## Use\n\n```python\nfrom sam4mllm import Pipeline\n\n"
        f'pipe = Pipeline.from_pretrained("{repo_id}", segmenter="{recipe.segmenter.checkpoint}")\n'
        'result = pipe("image.jpg", "the red car on the left")\n```\n\n'
        f"The segmenter of training was `{recipe.segmenter.checkpoint}`. `recipe.yaml` has all settings of the run, "
        "`method.json` the form of questions and answers.\n"
    )


def _data(recipe: Recipe) -> str:
    lines = [f"- {entry.name}" for entry in recipe.data.train]
    lines += [f"- validation: {recipe.data.validation.name}"] if recipe.data.validation is not None else []
    return "## Data\n\n" + "\n".join(lines) + "\n"


def _licenses(recipe: Recipe) -> str:
    lines = "\n".join(f"- {line}" for line in license_lines(recipe))
    return f"## Licenses\n\nA tuned adapter is bound to the license of its base.\n\n{lines}\n"


def _figures(run: RunFolder) -> str:
    """Return the figures of the run's own evaluations, in percent."""
    rows = []
    for file in sorted(run.path.glob(f"evaluate/*/{RESULTS}")):
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            scores: list[dict[str, Any]] = [split["scores"] for split in record["splits"]]
            rows += [_row(each, record["commit"]) for each in scores]
        except (OSError, ValueError, KeyError, TypeError) as error:
            problem = f"{file}: not the results of an evaluation: {error!r}"
            raise ModelError(f"{problem}; evaluate again, or remove it") from error
    if not rows:
        return "## Figures\n\nThis run was not evaluated.\n"
    head = f"| data set | split | protocol | phrases | {' | '.join(_METRICS)} | malformed | commit |\n"
    table = head + "|---" * (len(_METRICS) + 6) + "|\n" + "\n".join(rows)
    return f"## Figures\n\nIn percent, by `sam4mllm evaluate`, whose docs describe the protocols.\n\n{table}\n"


def _row(scores: dict[str, Any], commit: str | None) -> str:
    values = [scores[key] for key in _METRICS.values()]
    cells = ["" if value is None else f"{100 * value:.1f}" for value in values]
    names = [str(scores[key]) for key in ("dataset", "split", "protocol", "n")]
    return f"| {' | '.join([*names, *cells, str(scores['malformed']), (commit or 'not known')[:12]])} |"


def _versions(run: RunFolder) -> str:
    file = run.path / VERSIONS
    if not file.is_file():
        return ""
    found = json.loads(file.read_text(encoding="utf-8"))
    listed = ", ".join(f"{name} {found[name]}" for name in _LIBRARIES if found.get(name))
    return f"## Versions\n\n{listed}\n"
