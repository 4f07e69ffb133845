"""The inspect page: what will be taught, to be looked at before hours are spent on it.

One card a sample: the image with the true masks, the boxes and the chosen points; the phrase; the figures of its
targets; and the exact text of question and answer. This module chooses nothing and scores nothing: it shows what
`targets/` chose and what the method writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from sam4mllm.data.images import load_image
from sam4mllm.data.sample import Sample
from sam4mllm.methods.registry import Method
from sam4mllm.targets.store import ObjectTarget
from sam4mllm.utils.progress import Advance, ignore
from sam4mllm.viz.drawing import contact_sheet, overlay
from sam4mllm.viz.html import html_page

PAGE = "index.html"
SHEET = "sheet.png"
_LONG_SIDE = 384

_LEGEND = (
    "Green dots: points on the object. Red crosses: points off it. IoU: of SAM's mask with the true one. "
    "Spread: over all groups drawn for the object."
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
    """The page of `samples`, with its images beside it in `output`; one image more shows them all.

    Args:
        samples: what is shown, in this order.
        targets: by object id; where the method needs them, an object without one is shown as not taught.
        method: writes the text.
        output: a folder, made if need be.
        title: of the page.
        reasons: why an object has no target, by object id, where that is known.
        advance: told of each sample drawn.

    Returns:
        The page's file.

    Raises:
        DataError: an image that cannot be read.
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
        place = Path("images") / f"{index:04d}.png"
        image.save(output / place)
        drawn.append(image.copy())
        drawn[-1].thumbnail((_LONG_SIDE // 2, _LONG_SIDE // 2))
        cards.append(_card(sample, targets, reasons or {}, method, place.as_posix()))
        advance(1)
    if drawn:
        contact_sheet(drawn, columns=8).save(output / SHEET)
    objects = {item.id for sample in samples for item in sample.objects if item.rle is not None}
    summary = f"{len(samples)} phrases, {len(objects)} objects"
    if targets or method.needs_targets:
        without = len(objects - targets.keys())
        summary += f", {without} of them without a target (not taught)"
        alone = sum(not targets[name].prompts[0].points for name in objects & targets.keys())
        summary += f", {alone} taught by the box alone" if alone else ""
    summary += "."
    page = output / PAGE
    page.write_text(html_page(title, summary, _LEGEND, [("", cards)]), encoding="utf-8")
    return page


def _card(
    sample: Sample, targets: Mapping[str, ObjectTarget], reasons: Mapping[str, str], method: Method, image: str
) -> str:
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
        parts.append('<div class="why">Not taught: an object that it means has no target.</div>')
    parts += [f"<pre>{escape(turn.text)}</pre>" for talk in conversations for turn in talk.turns]
    return "\n".join([*parts, "</article>"])


def _figures(sample: Sample, targets: Mapping[str, ObjectTarget], reasons: Mapping[str, str]) -> str:
    rows = ["<tr><th>IoU: chosen</th><th>box alone</th><th>mean</th><th>spread</th></tr>"]
    for item in sample.objects:
        target = targets.get(item.id)
        if item.rle is None:
            rows.append(
                f'<tr><td colspan="4">{escape(item.id)} has a box and no mask: its box alone is taught</td></tr>'
            )
            continue
        if target is None:
            why = reasons.get(item.id, "none was computed")
            rows.append(f'<tr><td colspan="4">{escape(item.id)} has no target: {escape(why)}</td></tr>')
            continue
        figures = (target.ious[0], target.box_iou, target.mean_iou, target.std_iou)
        rows.append("<tr>" + "".join(f"<td>{figure:.3f}</td>" for figure in figures) + "</tr>")
        if not target.prompts[0].points:
            rows.append(f'<tr><td colspan="4">{escape(item.id)} is taught by its box alone</td></tr>')
    return "<table>" + "".join(rows) + "</table>"
