"""The inspect stage: an HTML page of training targets, to check them before a long training run.

One card for each sample: the image with the true masks, the boxes and the chosen points; the phrase; the IoUs of its
targets; and the exact text of question and answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from sam4mllm.data.images import load_image
from sam4mllm.data.mixture import read_mixture
from sam4mllm.data.sample import Sample
from sam4mllm.methods.base import Method
from sam4mllm.methods.registry import method_of_recipe, recipe_needs_targets
from sam4mllm.recipe.schema import Recipe
from sam4mllm.targets.store import ObjectTarget
from sam4mllm.training.dataset import spread
from sam4mllm.training.prepare import recipe_name, resolve_recipe, targets_of
from sam4mllm.utils.atomic_io import atomic_write_text
from sam4mllm.utils.folder_lock import folder_lock
from sam4mllm.utils.progress import Advance, bar, ignore
from sam4mllm.viz.drawing import contact_sheet, overlay, save_image
from sam4mllm.viz.html import html_page

PAGE = "index.html"
SHEET = "sheet.png"
_LONG_SIDE = 384

_LEGEND = (
    "Green dots: points on the object. Red crosses: points off it. IoU: of SAM's mask with the true mask. "
    "Spread: standard deviation over all groups drawn for the object."
)


def inspect_targets(
    recipe: Recipe | str | Path, output: str | Path | None = None, *, limit: int = 60, device: str = "auto"
) -> Path:
    """Write an HTML page of a recipe's training targets and return the page's file.

    At most `limit` samples are shown, spread evenly over the training data, and only their targets are computed where
    the store lacks them. An object's targets depend on the object alone, so they equal those of `prepare_targets`.

    Args:
        recipe: A recipe, or the path or name that `load_recipe` takes.
        output: The page's folder; None for `inspect` in the run folder.
        limit: The maximum number of samples shown.
        device: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        RecipeError, DataError, ModelError: A recipe, data or a model cannot be read.
        LaunchError: Another job writes to `output`.
    """
    name = recipe_name(recipe)
    recipe = resolve_recipe(recipe)
    method = method_of_recipe(recipe)
    samples = spread(read_mixture(recipe.data, recipe.seed).samples, limit)
    output = recipe.output / "inspect" if output is None else Path(output)
    with folder_lock(output, "drawing", subfolders=("images",)):
        store = targets_of(recipe, samples if recipe_needs_targets(recipe) else [], device)
        with bar("draw", len(samples), unit="phrases") as advance:
            return write_page(
                samples,
                store.read(),
                method,
                output,
                title=f"Training targets of {name}",
                reasons=store.skipped(),
                advance=advance,
            )


def write_page(
    samples: Sequence[Sample],
    targets: Mapping[str, ObjectTarget],
    method: Method,
    output: Path,
    *,
    title: str,
    reasons: Mapping[str, str] | None = None,
    advance: Advance = ignore,
) -> Path:
    """Write the page of `samples`, their images and a contact sheet of all images to `output`.

    Args:
        samples: The samples, shown in this order.
        targets: Targets by object id; where the method needs them, an object without one is shown as left out.
        method: The method whose questions and answers are shown.
        output: The folder; created if it does not exist.
        title: The page's title.
        reasons: Why an object has no target, by object id, where that is known.
        advance: Called with 1 for each sample drawn.

    Returns:
        The page's file.

    Raises:
        DataError: An image cannot be read.
    """
    (output / "images").mkdir(parents=True, exist_ok=True)
    cards, drawn = [], []
    for index, sample in enumerate(samples):
        image = overlay(
            load_image(sample.image),
            [item.mask() for item in sample.objects if item.rle is not None],
            method.preview_prompts(sample, targets),
            long_side=_LONG_SIDE,
        )
        file = Path("images") / f"{index:04d}.png"
        save_image(image, output / file)
        drawn.append(image.copy())
        drawn[-1].thumbnail((_LONG_SIDE // 2, _LONG_SIDE // 2))
        cards.append(_card(sample, targets, reasons or {}, method, file.as_posix()))
        advance(1)
    if drawn:
        save_image(contact_sheet(drawn, columns=8), output / SHEET)
    objects = {item.id for sample in samples for item in sample.objects if item.rle is not None}
    summary = f"{len(samples)} phrases, {len(objects)} objects"
    if targets or method.needs_targets:
        without = len(objects - targets.keys())
        summary += f", {without} of them without a target (left out)"
        box_only = sum(not targets[name].prompts[0].points for name in objects & targets.keys())
        summary += f", {box_only} with the box alone as the target" if box_only else ""
    summary += "."
    page = output / PAGE
    atomic_write_text(page, html_page(title, summary, _LEGEND, [("", cards)]))
    return page


def _card(
    sample: Sample, targets: Mapping[str, ObjectTarget], reasons: Mapping[str, str], method: Method, image: str
) -> str:
    """Return one sample as an <article>."""
    parts = [
        "<article>",
        f'<img src="{escape(image)}" alt="">',
        f"<h2>{escape(sample.phrase)}</h2>",
        f'<div class="id">{escape(sample.id)} &middot; {escape(str(sample.image))}</div>',
    ]
    if sample.objects and (targets or method.needs_targets):
        parts.append(_figures(sample, targets, reasons))
    conversations = method.training_conversations([sample], targets)
    if not conversations:
        parts.append('<div class="why">Left out: an object that the phrase refers to has no target.</div>')
    parts += [f"<pre>{escape(turn.text)}</pre>" for conversation in conversations for turn in conversation.turns]
    return "\n".join([*parts, "</article>"])


def _figures(sample: Sample, targets: Mapping[str, ObjectTarget], reasons: Mapping[str, str]) -> str:
    """Return the IoUs of the sample's targets as a <table>, one row for each object."""
    rows = ["<tr><th>IoU: chosen</th><th>box alone</th><th>mean</th><th>spread</th></tr>"]
    for item in sample.objects:
        target = targets.get(item.id)
        if item.rle is None:
            rows.append(_remark(f"{item.id} has a box and no mask: its target is the box alone"))
            continue
        if target is None:
            rows.append(_remark(f"{item.id} has no target: {reasons.get(item.id, 'none was computed')}"))
            continue
        figures = (target.ious[0], target.box_iou, target.mean_iou, target.std_iou)
        rows.append("<tr>" + "".join(f"<td>{figure:.3f}</td>" for figure in figures) + "</tr>")
        if not target.prompts[0].points:
            rows.append(_remark(f"{item.id}: its target is the box alone"))
    return "<table>" + "".join(rows) + "</table>"


def _remark(text: str) -> str:
    """Return a row of the table with one cell."""
    return f'<tr><td colspan="4">{escape(text)}</td></tr>'
