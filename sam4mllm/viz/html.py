"""The frame of our pages: a title, a summary and cards in a grid, in one file that needs no network and runs no script.

What is given as a title, summary, legend or heading is text and is escaped here; cards are HTML that their maker has
escaped. This module knows nothing about what is shown.
"""

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
    """The page.

    Args:
        title: its heading, too.
        summary: one line of figures.
        legend: how to read the images.
        groups: headings, empty for none, each with its cards.
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
