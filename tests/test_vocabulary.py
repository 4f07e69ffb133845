"""Words that were replaced by the field's vocabulary (docs/glossary.md) and must not come back."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Each pattern with the words to use instead. Patterns are matched as whole words, without regard to case.
REPLACED = {
    r"pictures?|pictured": "image",
    r"taught|untaught|teach(es|ing|able)?": "trained on, supervised, training target",
    r"told|tells?": "reported, logged, stated",
    r"weigh(s|ed|er|ing)?": "score, yes/no probability, weighted",
    r"eyes": "vision tower",
    r"lessons?": "training set, conversations",
    r"recit(e|es|ed|ing)|ceilings?": "oracle",
    r"nobody|somebody|anybody": "ignored; name the subject",
    r"whole files?|(is|are|written) whole|whole or not at all": "atomic, complete",
    r"tun(e|es|ed|ing) whole": "fully fine-tuned",
    r"mend(s|ed|ing)?": "fix, patch",
    r"(goes|go|went) on (where|with|from|later)|taken up again|takes up again": "resume",
    r"spoil(s|ed|t)?": 'the query gets status "error"',
    r"verbs?": "subcommand",
    r"run lengths": "RLE",
    r"moments": "optimizer states",
    r"number type": "dtype",
    r"knows? (no|nothing|neither)|knows? of no": "import-linter holds the layers; delete the sentence",
    r"of one's own|of somebody's": "custom",
    r"in vain": "timed out",
    r"at hand": "available, placeholder",
    r"stands? (in|beside|behind|below|there)|stood (in|beside|alone)": "is, is located",
    r"(?<!there )((?-i:(is|are) none)|is no (number|file|folder|image|run|mask|pixels?))": "is not a ...",
    r"by talking|the whole way": "state the task; every stage",
    r"riddles?|hearsay|newcomers?": "plain words",
    r"says?|said": "report, state, explain, for example",
    r"whoever|anyone|everyone|someone": "name the subject",
    r"(splits?|files?|shards?|that) (that )?(is|are) there": "exist",
    r"fallback on|falls back on": "fallback to",
    r"so many (steps|phrases|images)": "a number of",
}
PATTERNS = {
    re.compile(rf"(?<![\w/.-])({words})(?![\w-])", re.IGNORECASE): instead for words, instead in REPLACED.items()
}


def written_files() -> list[Path]:
    """The package's source, the pages and the recipes."""
    files = [*ROOT.glob("sam4mllm/**/*.py"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("recipes/*.yaml")]
    return sorted([*files, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))])


def replaced_words(text: str) -> list[tuple[int, str, str]]:
    """The line number, the word and its replacement, for each replaced word of a text."""
    lines = enumerate(text.splitlines(), 1)
    return [
        (number, match[0], instead)
        for number, line in lines
        for pattern, instead in PATTERNS.items()
        for match in pattern.finditer(line)
    ]


@pytest.mark.parametrize("path", written_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_replaced_words_do_not_come_back(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if path.name == "CHANGELOG.md":
        # It quotes names as they were before.
        text = re.sub(r"`[^`\n]*`", "", text)
    found = replaced_words(text)
    assert not found, "\n" + "\n".join(
        f"{path.relative_to(ROOT)}:{number}: {word!r}; use: {instead}" for number, word, instead in found
    )


BRITISH = re.compile(
    r"\b((optim|quant|normal|initial|recogn|util|minim)is(e[drs]?|ers|ing|ations?)|colours?|coloured|licence|centred?|"
    r"behaviours?|labelled|neighbours?|greys?)\b",
    re.IGNORECASE,
)


@pytest.mark.parametrize("path", [path for path in written_files() if path.suffix != ".py"], ids=lambda path: path.name)
def test_pages_use_american_spelling(path: Path) -> None:
    assert [match[0] for match in BRITISH.finditer(path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    "text",
    [
        "the whole image, weighted by area; the weight of a row; weighted means",
        "teacher forcing, math.ceil, verbose output, recommended, momentum, retold.py",
        "run-length encoding; the eye of a needle; goes on top of it; a number of types",
    ],
)
def test_legitimate_words_pass(text: str) -> None:
    assert replaced_words(text) == []


@pytest.mark.parametrize(
    "text",
    [
        "A picture",
        "It is taught",
        "as told",
        "the number type",
        "verbs",
        "Weighs it",
        "none at hand",
        "It says so",
        "splits that are there",
    ],
)
def test_replaced_words_are_found(text: str) -> None:
    assert replaced_words(text)
