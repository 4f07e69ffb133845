"""The page of cases: a split's best, median and worst answers by IoU, with image, truth, prediction and words.

    OUTPUT/index.html, OUTPUT/images/best-00.png ...

Figures say how good answers are, this page says in what way. It scores nothing: the IoU is the one that the split's
protocol gave each sentence.
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
from sam4mllm.evaluate.metrics import SentenceScore
from sam4mllm.viz.drawing import overlay, panels
from sam4mllm.viz.html import html_page

PAGE = "index.html"
_LONG_SIDE = 384
_LONGEST_SIDE = 1024
"""What a drawing is brought down to: a photograph whole would make a page of half a gigabyte."""
_LEGEND = (
    "Left: the true objects. Right: the answer's masks with what SAM was given: boxes, green dots for points on the "
    "object, red crosses for points off it. IoU: as the protocol judges the sentence. Sentences that mean nothing and "
    "were answered so are not shown."
)


def choose_cases(judged: Mapping[str, SentenceScore], count: int) -> dict[str, list[str]]:
    """The ids of at most `count` cases each: "best" from the best on, "worst" from the worst on, "median" by IoU.

    A sentence that means nothing and was answered so is no case: there is nothing to see, and such would be all of the
    best. No case comes twice; with few sentences the best come first, then the worst. Among equals a hash of the id
    decides, so that they are not all of one image.
    """
    seen = [name for name, sentence in judged.items() if sentence.targeted or sentence.answered]
    ranking = sorted(seen, key=lambda name: (-judged[name].iou, sha256(name.encode()).digest()))
    best, rest = ranking[:count], ranking[count:]
    worst, middle = rest[::-1][:count], rest[: max(len(rest) - count, 0)]
    start = max(len(middle) - count, 0) // 2
    return {"best": best, "median": middle[start : start + count], "worst": worst}


def write_cases(
    samples: Sequence[Sample],
    predictions: Iterable[PredictionLine],
    judged: Mapping[str, SentenceScore],
    output: Path,
    *,
    title: str,
    summary: str = "",
    count: int = 8,
    figure: str | None = None,
) -> Path:
    """The page of at most `count` best, median and worst cases each, with its images beside it in `output`.

    Args:
        samples: the split.
        predictions: its lines, in any order; read once. A sentence without one is shown as not answered.
        judged: what each sentence came to, by id.
        output: a folder, made if need be.
        title: the page's heading.
        summary: a line of figures below it.
        count: of each kind.
        figure: an image to show above them, by its place as seen from `output`.

    Returns:
        The page's file.
    """
    chosen = choose_cases(judged, count)
    wanted = {name for names in chosen.values() for name in names}
    by_id = {sample.id: sample for sample in samples if sample.id in wanted}
    lines = {line.id: line for line in predictions if line.id in wanted}
    (output / "images").mkdir(parents=True, exist_ok=True)
    groups = []
    if figure is not None:
        groups.append(("Trust", [f'<article><img src="{escape(figure)}" alt=""></article>']))
    for kind, names in chosen.items():
        cards = []
        for number, name in enumerate(names):
            place = Path("images") / f"{kind}-{number:02d}.png"
            problem = _draw(by_id[name], lines.get(name), output / place)
            cards.append(_card(by_id[name], lines.get(name), judged[name], place.as_posix(), problem))
        groups.append((kind.capitalize(), cards))
    page = output / PAGE
    page.write_text(html_page(title, summary, _LEGEND, groups), encoding="utf-8")
    return page


def _draw(sample: Sample, line: PredictionLine | None, place: Path) -> str | None:
    """Truth and answer side by side, as a file; what is wrong with the image where it cannot be read, else None."""
    try:
        image = load_image(sample.image)
    except DataError as error:
        # Such a case is among the worst, and the page is where one looks for the reason.
        return str(error)
    truth = overlay(image, [item.mask() for item in sample.objects], long_side=_LONG_SIDE)
    objects = line.objects if line is not None else ()
    masks = [decode(item.segmentation) for item in objects]
    prompts = [item.prompt for item in objects if item.prompt is not None]
    answer = overlay(image, masks, prompts, long_side=_LONG_SIDE)
    for drawn in (truth, answer):
        drawn.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    panels([(truth, "truth"), (answer, _said(line))]).save(place)
    return None


def _card(sample: Sample, line: PredictionLine | None, judged: SentenceScore, image: str, problem: str | None) -> str:
    parts = [
        "<article>",
        f'<div class="why">{escape(problem)}</div>' if problem else f'<img src="{escape(image)}" alt="">',
        f"<h2>{escape(sample.phrase)}</h2>",
        f"<div>IoU {judged.iou:.3f}, {escape(_said(line))}</div>",
        f'<div class="id">{escape(sample.id)} &middot; {escape(str(sample.image))}</div>',
    ]
    if line is not None and line.error:
        parts.append(f'<div class="why">{escape(line.error)}</div>')
    if line is not None and line.answer:
        parts.append(f"<pre>{escape(line.answer)}</pre>")
    return "\n".join([*parts, "</article>"])


def _said(line: PredictionLine | None) -> str:
    if line is None:
        return "not answered"
    return {"ok": "answer", "no_object": "no object", "malformed": "malformed", "error": "error"}[line.status]
