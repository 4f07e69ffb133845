"""The page of cases: a split's best, median and worst answers by IoU, with image, annotation, prediction and text.

OUTPUT/index.html, OUTPUT/images/best-00.png ...
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from html import escape
from pathlib import Path

from sam4mllm.data.images import load_image
from sam4mllm.data.masks import decode
from sam4mllm.data.predictions import PredictionLine
from sam4mllm.data.sample import Sample
from sam4mllm.errors import DataError
from sam4mllm.evaluation.metrics import SentenceScore
from sam4mllm.utils.atomic_io import atomic_write_text, remove_temporary_files
from sam4mllm.viz.drawing import overlay, panels, save_image
from sam4mllm.viz.html import html_page

PAGE = "index.html"
_MIN_LONG_SIDE = 384
_MAX_LONG_SIDE = 1024
"""Larger drawings are scaled down to this; with photographs at full size a page would take half a gigabyte."""
_LEGEND = (
    "Left: the annotated objects. Right: the predicted masks with the prompts that SAM was given: boxes, green dots "
    "for positive points, red crosses for negative ones. IoU: of the sentence, under the protocol. Sentences without a "
    'target that were answered by "no object" are not shown.'
)
_STATUS_TEXTS = {"ok": "answer", "no_object": "no object", "malformed": "malformed", "error": "error"}


def choose_cases(sentences: Mapping[str, SentenceScore], count: int) -> dict[str, list[str]]:
    """Choose the ids of at most `count` cases of each kind: "best" and "worst" (most extreme first), and "median".

    Sentences without a target that were answered so are left out, because their images show nothing and they would
    fill "best". No case occurs twice; if there are few sentences, "best" is filled first, then "worst". Ties are broken
    by a hash of the id, so that the cases are not all of one image.
    """
    visible = [name for name, sentence in sentences.items() if sentence.targeted or sentence.answered]
    ranking = sorted(visible, key=lambda name: (-sentences[name].iou, sha256(name.encode()).digest()))
    best, rest = ranking[:count], ranking[count:]
    worst, middle = rest[::-1][:count], rest[: max(len(rest) - count, 0)]
    start = max(len(middle) - count, 0) // 2
    return {"best": best, "median": middle[start : start + count], "worst": worst}


def write_cases(
    samples: Sequence[Sample],
    predictions: Iterable[PredictionLine],
    sentences: Mapping[str, SentenceScore],
    output: Path,
    *,
    title: str,
    summary: str = "",
    count: int = 8,
    plot: str | None = None,
) -> Path:
    """Write the page of at most `count` best, median and worst cases each, and return its file.

    Args:
        samples: The split.
        predictions: Its predictions in any order, read once; a sentence without one is shown as not answered.
        sentences: The score of each sentence, by id.
        output: The folder of the page and its images; created if it does not exist.
        title: The page's heading.
        summary: A line of metrics below it.
        count: The number of cases of each kind.
        plot: The path, relative to `output`, of a plot about reliability to show above them.
    """
    chosen = choose_cases(sentences, count)
    wanted = {name for names in chosen.values() for name in names}
    by_id = {sample.id: sample for sample in samples if sample.id in wanted}
    lines = {line.id: line for line in predictions if line.id in wanted}
    (output / "images").mkdir(parents=True, exist_ok=True)
    for folder in (output, output / "images"):
        remove_temporary_files(folder)
    groups = []
    if plot is not None:
        groups.append(("Reliability", [f'<article><img src="{escape(plot)}" alt=""></article>']))
    for kind, names in chosen.items():
        cards = []
        for number, name in enumerate(names):
            image = Path("images") / f"{kind}-{number:02d}.png"
            problem = _draw(by_id[name], lines.get(name), output / image)
            cards.append(_card(by_id[name], lines.get(name), sentences[name], image.as_posix(), problem))
        groups.append((kind.capitalize(), cards))
    page = output / PAGE
    atomic_write_text(page, html_page(title, summary, _LEGEND, groups))
    return page


def _draw(sample: Sample, line: PredictionLine | None, file: Path) -> str | None:
    """Draw annotation and answer side by side into `file`; return the error if the image cannot be read, else None."""
    try:
        image = load_image(sample.image)
    except DataError as error:
        # The case is among the worst, so the page shows the reason in place of the drawing.
        return str(error)
    truth = overlay(image, [item.mask() for item in sample.objects], long_side=_MIN_LONG_SIDE)
    objects = line.objects if line is not None else ()
    masks = [decode(item.segmentation) for item in objects]
    prompts = [item.prompt for item in objects if item.prompt is not None]
    answer = overlay(image, masks, prompts, long_side=_MIN_LONG_SIDE)
    for drawing in (truth, answer):
        drawing.thumbnail((_MAX_LONG_SIDE, _MAX_LONG_SIDE))
    save_image(panels([(truth, "truth"), (answer, _status_text(line))]), file)
    return None


def _card(sample: Sample, line: PredictionLine | None, sentence: SentenceScore, image: str, problem: str | None) -> str:
    parts = [
        "<article>",
        f'<div class="why">{escape(problem)}</div>' if problem else f'<img src="{escape(image)}" alt="">',
        f"<h2>{escape(sample.phrase)}</h2>",
        f"<div>IoU {sentence.iou:.3f}, {escape(_status_text(line))}</div>",
        f'<div class="id">{escape(sample.id)} &middot; {escape(str(sample.image))}</div>',
    ]
    if line is not None and line.error:
        parts.append(f'<div class="why">{escape(line.error)}</div>')
    if line is not None and line.answer:
        parts.append(f"<pre>{escape(line.answer)}</pre>")
    return "\n".join([*parts, "</article>"])


def _status_text(line: PredictionLine | None) -> str:
    return "not answered" if line is None else _STATUS_TEXTS[line.status]
