"""Tokens of captions as COCO's caption evaluation makes them: Penn Treebank tokens in lower case, without punctuation.

COCO's evaluation runs Stanford's PTBTokenizer 3.4.1 (options `-preserveLines -lowerCase`), which needs Java. These are
rules of our own that give the same tokens for captions; they differ from it in rare text such as names of files.
"""

from __future__ import annotations

import re

_PUNCTUATION = frozenset(["''", "'", "``", "`", '"', ".", "?", "!", ",", ":", "-", "--", "...", ";"])
"""The tokens that COCO's evaluation removes. Brackets stay, because it looks for their names in upper case."""

_SPLIT = {
    "cannot": "can not",
    "gonna": "gon na",
    "gotta": "got ta",
    "wanna": "wan na",
    "lemme": "lem me",
    "gimme": "gim me",
    "'tis": "'t is",
    "'twas": "'t was",
    "y'all": "y' all",
}
"""Words that are several tokens."""

_RENAMED = {
    "(": "-lrb-",
    ")": "-rrb-",
    "[": "-lsb-",
    "]": "-rsb-",
    "{": "-lcb-",
    "}": "-rcb-",
    "\u00a3": "#",
    "\u20ac": "$",
    "\u00a2": "cents",
    "\u00bc": "1/4",
    "\u00bd": "1/2",
    "\u00be": "3/4",
}

_TYPOGRAPHIC = str.maketrans(
    {"\u2018": "`", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2026": "...", "\u2013": "--", "\u2014": "--"}
)

# Words that keep a period behind them: always, and before a number only.
_ABBREVIATED = (
    "mr|mrs|ms|messrs|drs?|prof|sr|jr|st|ave|blvd|rd|rt|mt|ft|est|mo|corp|co|inc|ltd|bros|dept|vs|etc|lt|sgt|capt|col|"
    "al|gen|rev|hon|gov|sen|rep|ph|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|mon|tues?|wed|thurs?|fri"
)
_NUMBERED = "nos?|figs?|pp?|art|sec"

_WORD = r"[^\W\d_]"
_TOKEN = re.compile(
    rf"""
      https?://[^\s"<>]*[^\s"<>.,;:!?()\[\]'] | www\.[^\s"<>]*[^\s"<>.,;:!?()\[\]']
    | [\w.+-]+@[\w-]+(?:\.[\w-]+)+
    | <[/!]?[a-z][^<>]*>
    | [\#@][a-z]\w*
    | (?<!\w)(?:[a-z]\.)+(?!\w) | (?<!\w)(?:[a-z]\.)+[a-z]\b
    | \b(?:{_ABBREVIATED})\.(?!\w) | \b(?:{_NUMBERED})\.(?=\s*\d)
    | (?<![\w.,/-])[+-]?\d++(?:[,.:/-]\d++)*+(?!-?\w|\.[a-z]\b) | \.\d+(?!\w)
    | (?<!\w)\d+(?:\.\d+)*\.[a-z]\b
    | (?<!\w)\d++(?:[.:]\d++)++(?={_WORD})
    | (?<!\w)'(?:em|til|cause|tis|twas|n|\d\ds?)(?!['\w]) | 'n'
    | \b(?:y'all|ma'am|c'mon|ph\.d\.)(?!\w)
    | '(?:s|m|d|ll|re|ve)(?!\w)
    | {_WORD}+(?=n't\b) | n't\b
    | {_WORD}+(?:[.!?]{_WORD}+)+
    | (?:(?:o|d|l|c)')?\w+(?:[-/_](?:(?:o|d|l)')?\w+)*
    | \.\.\.+ | -{{2,4}}(?!-) | --+ | [:;=]-?[()](?![\w(]) | '' | `` | [?!]+ | [*_~^]+ | [^\s\U00010000-\U0010ffff]
    """,
    re.VERBOSE,
)

_DASHES_OR_DOTS = re.compile(r"-{3,4}|\.{4,}")


def caption_tokens(text: str) -> list[str]:
    """Return the tokens of a caption, in lower case and without punctuation.

    Examples:
        >>> caption_tokens("The man's dog (brown) can't reach the 2 red-white balls.")
        ['the', 'man', "'s", 'dog', '-lrb-', 'brown', '-rrb-', 'ca', "n't", 'reach', 'the', '2', 'red-white', 'balls']
    """
    tokens: list[str] = []
    for token in _TOKEN.findall(text.translate(_TYPOGRAPHIC).lower()):
        # A bracket is a token, or the end of a smiley.
        tokens += _SPLIT.get(token, token[:-1] + _RENAMED.get(token[-1], token[-1])).split()
    return [token for token in tokens if token not in _PUNCTUATION and not _DASHES_OR_DOTS.fullmatch(token)]
