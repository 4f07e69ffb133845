"""The check of a data set: all problems of its records and images in one pass, and a page of its samples.

Every image is decoded, because a damaged one has an intact header. Of each record the first problem is reported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from sam4mllm.data.contradictions import contradiction_note, contradictions
from sam4mllm.data.entry import data_entry
from sam4mllm.data.grounded_caption import GroundedCaption
from sam4mllm.data.images import load_image
from sam4mllm.data.problems import kind_of, listing_problems
from sam4mllm.data.readers.chat import Dialogue
from sam4mllm.data.reading import AnyItem, read_items, split_names
from sam4mllm.data.registry import dataset_row
from sam4mllm.data.sample import Sample
from sam4mllm.errors import ArgumentError, DataError
from sam4mllm.geometry import SamPrompt
from sam4mllm.training.data_check import image_problems
from sam4mllm.training.dataset import spread
from sam4mllm.utils.atomic_io import atomic_write_text
from sam4mllm.utils.messages import first_and_more
from sam4mllm.viz.drawing import contact_sheet, overlay, panels, save_image
from sam4mllm.viz.html import html_page

PAGE = "index.html"
SHEET = "sheet.png"
_LONG_SIDE = 384
_LEGEND = "Each object in a color of its own: its mask, if it has one, and its box. A phrase without object has none."


class Problem(NamedTuple):
    """A problem of a record, an image or a file: its kind, and the error's text, which names the record."""

    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class DatasetCheck:
    """What a check found.

    name: the data set and its split or file.
    items: the samples, captions or dialogues that can be read.
    images: the number of their images.
    problems: all problems, those of the records before those of the images.
    notes: what may be intended, such as one phrase with different objects in two records.
    """

    name: str
    items: Sequence[AnyItem]
    images: int
    problems: tuple[Problem, ...]
    notes: tuple[str, ...] = ()

    def counts(self) -> dict[str, int]:
        """Return the number of problems of each kind, the most frequent kind first."""
        return dict(Counter(problem.kind for problem in self.problems).most_common())

    def headline(self) -> str:
        """Return one line: what can be read, and the number of problems."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.counts().items())
        problems = "no problem" if not self.problems else f"{len(self.problems)} problem(s): {kinds}"
        return f"{self.name}: {len(self.items)} {self._unit} about {self.images} images can be read; {problems}"

    @property
    def _unit(self) -> str:
        are_captions = bool(self.items) and isinstance(self.items[0], GroundedCaption)
        return "captions" if are_captions else "phrases or chats"

    def summary(self, examples: int) -> str:
        """Return the headline, and the first `examples` problems of each kind, one per line."""
        lines = [self.headline()]
        for kind, count in self.counts().items():
            texts = [problem.text for problem in self.problems if problem.kind == kind]
            lines += [f"{kind}: {count}", *(f"  {text}" for text in texts[:examples])]
            lines += [f"  and {count - examples} more"] if count > examples else []
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)]) + "\n"

    def to_json(self) -> dict[str, Any]:
        """Return the figures and all problems as JSON values."""
        return {
            "dataset": self.name,
            "items": len(self.items),
            "images": self.images,
            "problems": len(self.problems),
            "notes": list(self.notes),
            "kinds": [
                {"kind": kind, "count": count, "records": [text for each, text in self.problems if each == kind]}
                for kind, count in self.counts().items()
            ],
        }


def check_dataset(dataset: str, **location: Any) -> DatasetCheck:
    """Read a data set to its end, decode all of its images, and return everything that is wrong.

    Args:
        dataset: A data set of the table (`sam4mllm.data.registry.DATASETS`), chat included.
        location: As in `sam4mllm.data.reading.read_dataset`, and `task`, for which it is read; without a split, a
            published data set is checked in all its splits.

    Raises:
        ArgumentError: An argument that is missing, or that the data set does not take.
    """
    items: Sequence[AnyItem] = ()
    contradicting: list[tuple[Sample, ...]] = []
    names: list[str] = []
    with listing_problems() as problems:
        for split in _splits(dataset, location, problems):
            entry = data_entry(dataset, **location | {"split": split})
            names.append(entry.name)
            try:
                found_items = read_items(entry)
            except ArgumentError:
                raise
            except DataError as error:
                problems.append(error)
                continue
            items = [*items, *found_items] if items else found_items
    if (location.get("task") or dataset_row(dataset).usual_task) == "segment":
        contradicting = contradictions(item for item in items if isinstance(item, Sample))
    images = {item.image for item in items} - {None}
    found = [Problem(kind_of(error), str(error)) for error in problems]
    found += [Problem("image", text) for text in image_problems(items)]
    notes = [contradiction_note(contradicting)] if contradicting else []
    without_image = [item.where for item in items if item.image is None]
    if without_image:
        notes.append(f"{len(without_image)} chat(s) have no image: {first_and_more(without_image, 5)}")
    # Two splits name a bad annotation of the file that they share.
    return DatasetCheck(", ".join(names) or dataset, items, len(images), tuple(dict.fromkeys(found)), tuple(notes))


def _splits(dataset: str, location: dict[str, Any], problems: list[DataError]) -> Sequence[str | None]:
    """Return the splits to check: the given one, or all that a data set under a root has."""
    row = dataset_row(dataset)
    if location.get("split") is not None or location.get("root") is None or row.splits is None:
        return [location.get("split")]
    try:
        return split_names(dataset, Path(location["root"]), location.get("split_by"))
    except ArgumentError:
        raise
    except DataError as error:
        problems.append(error)
        return []


def write_page(check: DatasetCheck, output: Path, *, limit: int, examples: int) -> Path:
    """Write a page of at most `limit` samples, evenly spread, with their masks and boxes, and return its file.

    The first `examples` problems of each kind are listed above them. Each drawing is a file in `images`, and
    sheet.png shows all of them.
    """
    (output / "images").mkdir(parents=True, exist_ok=True)
    cards, drawn = [], []
    for number, item in enumerate(spread(check.items, limit)):
        file = Path("images") / f"{number:04d}.png"
        if item.image is None:
            cards.append(_card(item, ""))
            continue
        try:
            pixels = load_image(item.image)
        except DataError as error:
            cards.append(_card(item, f'<div class="why">{escape(str(error))}</div>'))
            continue
        objects = () if isinstance(item, Dialogue) else item.objects
        masks = [each.mask() for each in objects if each.rle is not None]
        image = overlay(pixels, masks, [SamPrompt(each.box) for each in objects], long_side=_LONG_SIDE)
        image.thumbnail((3 * _LONG_SIDE, 3 * _LONG_SIDE))
        save_image(image, output / file)
        image.thumbnail((_LONG_SIDE, _LONG_SIDE))
        drawn.append(panels([(image, _title(item))]))
        cards.append(_card(item, f'<img src="{escape(file.as_posix())}" alt="">'))
    if drawn:
        save_image(contact_sheet(drawn), output / SHEET)
    groups = [
        (f"{kind}: {count}", [_problem_card(text) for each, text in check.problems if each == kind][:examples])
        for kind, count in check.counts().items()
    ]
    summary = " ".join([check.headline(), *check.notes])
    html = html_page(f"Check of {check.name}", summary, _LEGEND, [*groups, ("Samples", cards)])
    atomic_write_text(output / PAGE, html)
    return output / PAGE


def _card(item: AnyItem, body: str) -> str:
    parts = [f"<article>\n{body}", f"<h2>{escape(_title(item))}</h2>"]
    if isinstance(item, Dialogue):
        parts += [f"<pre>{escape(text)}</pre>" for exchange in item.exchanges for text in exchange]
    else:
        parts.append(f"<div>{len(item.objects)} object(s)</div>")
    parts.append(
        f'<div class="id">{escape(item.id)} &middot; {escape(str(item.image or "no image"))}</div>\n</article>'
    )
    return "\n".join(parts)


def _title(item: AnyItem) -> str:
    if isinstance(item, GroundedCaption):
        return item.text
    return item.phrase if isinstance(item, Sample) else item.exchanges[0][0]


def _problem_card(text: str) -> str:
    return f'<article><div class="why">{escape(text)}</div></article>'
