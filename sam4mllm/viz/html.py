"""HTML pages of cards in a grid, as `sam4mllm inspect` and `evaluate` write them: one file, no scripts, no network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem; color: #191919; background: #fff; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(25rem, 1fr)); gap: 1.5rem; }
article { border: 1px solid #ccc; border-radius: 6px; padding: 1rem; overflow-wrap: anywhere; }
img { max-width: 100%; }
h2 { font-size: 1rem; margin: .6rem 0 .2rem; }
pre { white-space: pre-wrap; background: #f4f4f4; padding: .5rem; margin: .4rem 0; }
table { border-collapse: collapse; } td, th { text-align: right; padding: .1rem .6rem .1rem 0; }
.group { font-size: 1.2rem; margin: 2rem 0 .8rem; }
.id, .why { color: #666; font-size: .85rem; }
"""


def html_page(title: str, summary: str, legend: str, groups: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Return a page with a title, a summary, a legend and groups of cards.

    Args:
        title: Title and first heading. It is escaped here, as the summary, the legend and the headings are.
        summary: One line of figures.
        legend: How to read the images.
        groups: Pairs of a heading (empty for none) and the group's cards, as HTML that the caller has escaped.
    """
    parts = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        f"<title>{escape(title)}</title>",
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(summary)}</p>",
        f'<p class="why">{escape(legend)}</p>',
    ]
    for heading, cards in groups:
        if heading:
            parts.append(f'<h2 class="group">{escape(heading)}</h2>')
        parts += ["<main>", *cards, "</main>"]
    return "\n".join([*parts, "</body></html>\n"])
