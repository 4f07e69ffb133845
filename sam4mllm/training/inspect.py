"""The inspect stage: an HTML page of training targets, to check them before a long training run.

One card for each sample: the image with the true masks, the boxes and the chosen points; the phrase; the IoUs of its
targets; and the exact text of question and answer. Regions and grounded captions follow, with their boxes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from sam4mllm.data.grounded_caption import GroundedCaption
from sam4mllm.data.images import load_image
from sam4mllm.data.mixture import read_mixture
from sam4mllm.data.sample import Sample
from sam4mllm.geometry import SamPrompt
from sam4mllm.methods.base import Method
from sam4mllm.methods.registry import method_of_recipe
from sam4mllm.methods.text_training import caption_conversations, region_conversations
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

    At most `limit` phrases, regions and captions are shown, spread evenly over the training data, and only their
    targets are computed where the store lacks them. An object's targets depend on the object alone, so they equal those
    of `prepare_targets`.

    Args:
        recipe: A recipe, or the path or name that `load_recipe` takes.
        output: The page's folder; None for `inspect` in the run folder.
        limit: The maximum number of phrases, regions and captions shown.
        device: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        RecipeError, DataError, ModelError: A recipe, data or a model cannot be read.
        LaunchError: Another job writes to `output`.
    """
    name = recipe_name(recipe)
    recipe = resolve_recipe(recipe)
    method = method_of_recipe(recipe)
    mixture = read_mixture(recipe.data, recipe.seed)
    regions = mixture.regions[0] if mixture.regions else ()
    shown = spread(range(len(mixture.samples) + len(regions) + len(mixture.captions)), limit)
    samples, region_samples, captions = _chosen(shown, mixture.samples, regions, mixture.captions)
    output = recipe.output / "inspect" if output is None else Path(output)
    with folder_lock(output, "drawing", subfolders=("images",)):
        store = targets_of(recipe, samples if method.needs_targets else [], device)
        with bar("draw", len(shown), unit="phrases") as advance:
            return write_page(
                samples,
                store.read(),
                method,
                output,
                title=f"Training targets of {name}",
                reasons=store.skipped(),
                regions=region_samples,
                captions=captions,
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
    regions: Sequence[Sample] = (),
    captions: Sequence[GroundedCaption] = (),
    advance: Advance = ignore,
) -> Path:
    """Write the page of `samples`, regions and captions, their images and a contact sheet of all images to `output`.

    Args:
        samples: The samples, shown in this order.
        targets: Targets by object id; where the method needs them, an object without one is shown as left out.
        method: The method whose questions and answers are shown.
        output: The folder; created if it does not exist.
        title: The page's title.
        reasons: Why an object has no target, by object id, where that is known.
        regions: Samples of one object each, for region captioning.
        captions: Grounded captions.
        advance: Called with 1 for each item drawn.

    Returns:
        The page's file.

    Raises:
        DataError: An image cannot be read.
    """
    (output / "images").mkdir(parents=True, exist_ok=True)
    cards, drawn = [], []
    items: list[Sample | GroundedCaption] = [*samples, *regions, *captions]
    for index, item in enumerate(items):
        file = f"images/{index:04d}.png"
        if isinstance(item, Sample) and index < len(samples):
            prompts, card = method.preview_prompts(item, targets), _card(item, targets, reasons or {}, method, file)
        else:
            prompts, card = [SamPrompt(each.box) for each in item.objects], _text_card(item, method, file)
        cards.append(card)
        masks = [each.mask() for each in item.objects if each.rle is not None]
        image = overlay(load_image(item.image), masks, prompts, long_side=_LONG_SIDE)
        save_image(image, output / file)
        drawn.append(image.copy())
        drawn[-1].thumbnail((_LONG_SIDE // 2, _LONG_SIDE // 2))
        advance(1)
    if drawn:
        save_image(contact_sheet(drawn, columns=8), output / SHEET)
    page = output / PAGE
    summary = _summary(samples, targets, method) + _text_summary(regions, captions)
    atomic_write_text(page, html_page(title, f"{summary}.", _LEGEND, [("", cards)]))
    return page


def _chosen(
    positions: Sequence[int],
    samples: Sequence[Sample],
    regions: Sequence[Sample],
    captions: Sequence[GroundedCaption],
) -> tuple[list[Sample], list[Sample], list[GroundedCaption]]:
    """Return the samples, regions and captions at these positions of the three, one after the other."""
    after_samples, after_regions = len(samples), len(samples) + len(regions)
    return (
        [samples[index] for index in positions if index < after_samples],
        [regions[index - after_samples] for index in positions if after_samples <= index < after_regions],
        [captions[index - after_regions] for index in positions if after_regions <= index],
    )


def _summary(samples: Sequence[Sample], targets: Mapping[str, ObjectTarget], method: Method) -> str:
    """Return the numbers of phrases, objects and targets as text."""
    objects = {item.id for sample in samples for item in sample.objects if item.rle is not None}
    summary = f"{len(samples)} phrases, {len(objects)} objects"
    if targets or method.needs_targets:
        without = len(objects - targets.keys())
        summary += f", {without} of them without a target (left out)"
        box_only = sum(not targets[name].prompts[0].points for name in objects & targets.keys())
        summary += f", {box_only} with the box alone as the target" if box_only else ""
    return summary


def _text_summary(regions: Sequence[Sample], captions: Sequence[GroundedCaption]) -> str:
    counts = {"regions": len(regions), "grounded captions": len(captions)}
    return "".join(f"; {count} {name}" for name, count in counts.items() if count)


def _text_card(item: Sample | GroundedCaption, method: Method, image: str) -> str:
    """Return a region or a grounded caption as an <article>."""
    if isinstance(item, Sample):
        conversations, title = region_conversations(method, [item]), item.phrase
    else:
        conversations, title = caption_conversations(method, [item]), item.text
    texts = [f"<pre>{escape(turn.text)}</pre>" for conversation in conversations for turn in conversation.turns]
    return "\n".join([*_opening(item, title, image), *texts, "</article>"])


def _opening(item: Sample | GroundedCaption, title: str, image: str) -> list[str]:
    """Return the first lines of a card: its image, title, and the id and image file of the record."""
    return [
        "<article>",
        f'<img src="{escape(image)}" alt="">',
        f"<h2>{escape(title)}</h2>",
        f'<div class="id">{escape(item.id)} &middot; {escape(str(item.image))}</div>',
    ]


def _card(
    sample: Sample, targets: Mapping[str, ObjectTarget], reasons: Mapping[str, str], method: Method, image: str
) -> str:
    """Return one sample as an <article>."""
    parts = _opening(sample, sample.phrase, image)
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
