"""Parse mutated and hostile strings as answers, and check what the parser promises about any string.

    python tools/fuzz_answers.py --strings 1000000

Each string is parsed in a coordinate format and for an image size. Checked are: no exception; one of three statuses; no
coordinate outside the image; corners in order; a reason of one short line; and that an answer which parses is parsed to
the same prompts when it is written again. Strings that reach a new outcome (status, reason without its quotes and
numbers, number of boxes and points) join the corpus that is mutated. Outcomes guide the search in place of covered
lines, because regular expressions do most of the work. At last, parts of the corpus are repeated to a megabyte, and the
CPU time of each is compared with a limit.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import time
from collections.abc import Sequence

from sam4mllm.geometry import SamPrompt
from sam4mllm.mllm.families import FAMILIES
from sam4mllm.prompts.coordinates import PLAIN, Coordinates
from sam4mllm.prompts.grammar import AnswerGrammar, ParsedAnswer

FORMATS: tuple[Coordinates, ...] = tuple(
    dict.fromkeys([PLAIN, *(family.coordinates for family in FAMILIES.values() if family.coordinates is not None)])
)
SIZES_WH = ((640, 480), (1, 1), (1000, 1000), (3, 500), (9999, 77))
PIECES = (
    *"[](){}<>,;+-.:0123456789eE \n\t\"'\\/|=_%",
    *(
        "[[",
        "]]",
        "; ",
        " +",
        " -",
        "--",
        "+-",
        "0x1F",
        "1e9",
        "0.5",
        "-1",
        "999",
        "1000",
        "1001",
        "9" * 400,
        "0" * 400,
    ),
    *("No object found.", "no  object found", "NO OBJECT FOUND", "No", "object", "the red ring", "<box>", "</box>"),
    *("<|box_start|>", "<|box_end|>", "<|im_end|>", "<image>", "</s>", "null", "NaN", "inf", "{}", "[]", "()"),
    # Digits of other scripts, NUL, lone surrogates, marks of direction, spaces and line ends of Unicode.
    *(
        "\uff11",
        "\u0661",
        "\u0967",
        "\u00b2",
        "\u2460",
        "\U0001d7d8",
        "\0",
        "\ud800",
        "\udfff",
        "\ud83d\ude00",
        "\ufeff",
    ),
    *("\u202e", "\u200f", "\u2066", "\u200b", "\u00a0", "\u2003", "\u2028", "\u0085", "\x1b[31m", "\x7f", "\U0010ffff"),
    *("\u0301" * 9, "\uff3b", "\uff0c", "\u2212", "\u3002", "\ufffd"),
)
MOST_CHARACTERS = 400
LONGEST_REASON = 300
_NUMBER = re.compile(r"\d+")
_QUOTE = re.compile(r"['\"]")


def seeds(coordinates: Coordinates) -> list[str]:
    """Return answers that parse, and beginnings of answers, in a format."""
    grammar = AnswerGrammar(coordinates)
    (left, right), (tag, end_tag), (opening, closing) = coordinates.box, coordinates.tags, coordinates.point
    comma = coordinates.separator
    box = f"{tag}{left}{comma.join(['12', '34', '56', '78'])}{right}{end_tag}"
    point = f"{opening}{comma.join(['20', '40'])}{closing}"
    full = f"{box} +{point}{point} -{point}; {box} -{point}; {box}"
    parsed = grammar.parse(full, (640, 480))
    return ["", "No object found.", box, full, grammar.write(parsed.prompts, (640, 480)), f"It is {box}.", left, point]


def mutate(text: str, other: str, rng: random.Random) -> str:
    """Return `text` after one to four random changes; `other` is spliced in by one of them."""
    for _ in range(rng.randint(1, 4)):
        start, end = sorted((rng.randint(0, len(text)), rng.randint(0, len(text))))
        change = rng.randrange(7)
        if change <= 1:
            text = text[:start] + rng.choice(PIECES) + text[start:]
        elif change == 2:
            text = text[:start] + text[min(end, start + 8) :]
        elif change == 3:
            text = text[:start] + text[start:end] * rng.randint(2, 5) + text[end:]
        elif change == 4:
            text = text[:start] + rng.choice(PIECES) + text[start + 1 :]
        elif change == 5:
            text = text[:start] + other[rng.randint(0, len(other)) :]
        else:
            text = text[:start] + chr(rng.choice((rng.randrange(128), rng.randrange(0x110000)))) + text[end:]
    return text[:MOST_CHARACTERS]


def problem(text: str, coordinates: Coordinates, size_wh: tuple[int, int]) -> tuple[str | None, ParsedAnswer | None]:
    """Return what is wrong with the parsed answer, or None, and the answer."""
    grammar = AnswerGrammar(coordinates)
    # Any exception is what is searched for here.
    try:
        parsed = grammar.parse(text, size_wh)
        return _violation(parsed, grammar, size_wh), parsed
    except Exception as error:
        return f"{type(error).__name__}: {error}", None


def _violation(parsed: ParsedAnswer, grammar: AnswerGrammar, size_wh: tuple[int, int]) -> str | None:
    if (parsed.status == "ok") != bool(parsed.prompts) or (parsed.status == "malformed") != (parsed.reason is not None):
        return f"the status {parsed.status} contradicts prompts or reason"
    if parsed.status == "malformed":
        reason = parsed.reason or ""
        is_line = reason.isprintable() and 0 < len(reason) <= LONGEST_REASON
        return None if is_line else f"the reason is not one short printable line: {reason!r}"
    if len(parsed.box_spans) != len(parsed.prompts):
        return "boxes and their positions differ in number"
    for prompt in parsed.prompts:
        if not _is_inside(prompt, size_wh):
            return f"{prompt} is outside of an image of {size_wh}"
    if parsed.prompts and grammar.parse(grammar.write(parsed.prompts, size_wh), size_wh).prompts != parsed.prompts:
        return "the answer is parsed to other prompts when it is written again"
    return None


def _is_inside(prompt: SamPrompt, size_wh: tuple[int, int]) -> bool:
    width, height = size_wh
    if prompt.box is None or not (prompt.box.x1 <= prompt.box.x2 and prompt.box.y1 <= prompt.box.y2):
        return False
    places = [prompt.box[:2], prompt.box[2:], *(point[:2] for point in prompt.points)]
    return all(0 <= x <= width and 0 <= y <= height for x, y in places)


def outcome(parsed: ParsedAnswer | None) -> tuple[object, ...]:
    """Return what distinguishes a parsed answer from others for the search."""
    if parsed is None:
        return ("exception",)
    points = sum(len(prompt.points) for prompt in parsed.prompts)
    reason = _NUMBER.sub("", _QUOTE.split(parsed.reason or "")[0])
    return parsed.status, reason, min(len(parsed.prompts), 9), min(points, 9)


def fuzz(strings: int, seed: int) -> tuple[list[str], dict[Coordinates, list[str]], int]:
    """Parse `strings` strings; return the problems found, the corpus of each format, and the number of outcomes."""
    rng = random.Random(seed)
    corpora = {coordinates: seeds(coordinates) for coordinates in FORMATS}
    seen: set[tuple[object, ...]] = set()
    problems: list[str] = []
    for number in range(strings):
        coordinates = FORMATS[number % len(FORMATS)]
        corpus = corpora[coordinates]
        if number % 10:
            text = mutate(rng.choice(corpus), rng.choice(corpus), rng)
        else:
            text = "".join(rng.choices(PIECES, k=rng.randint(0, 30)))
        size_wh = rng.choice(SIZES_WH)
        wrong, parsed = problem(text, coordinates, size_wh)
        if wrong is not None:
            problems.append(f"{text!r} for {coordinates} and {size_wh}: {wrong}")
        if (reached := (coordinates, *outcome(parsed))) not in seen:
            seen.add(reached)
            corpus.append(text)
    return problems, corpora, len(seen)


def slowest(corpora: dict[Coordinates, list[str]], seed: int, count: int, characters: int) -> tuple[float, str]:
    """Parse `count` texts of `characters` characters, made of repeated parts; return the longest CPU time and its text.

    A time above all others so far is measured twice more, and the least one is taken, because the machine may be busy.
    """
    rng = random.Random(seed)
    worst, worst_text = 0.0, ""
    for number in range(count):
        coordinates = FORMATS[number % len(FORMATS)]
        text = rng.choice(corpora[coordinates]) or "["
        start, end = sorted((rng.randint(0, len(text)), rng.randint(0, len(text))))
        part = text[start:end] or rng.choice(PIECES)
        long = (text[:start] + part * (characters // len(part)) + text[end:])[:characters]
        grammar = AnswerGrammar(coordinates)
        seconds = _cpu_seconds(grammar, long)
        if seconds > worst:
            seconds = min(seconds, _cpu_seconds(grammar, long), _cpu_seconds(grammar, long))
        if seconds > worst:
            worst, worst_text = seconds, f"{text[:start]!r}, then {part!r} repeated, then {text[end:]!r}"
    return worst, worst_text


def _cpu_seconds(grammar: AnswerGrammar, text: str) -> float:
    before = time.process_time()
    grammar.parse(text, (640, 480))
    return time.process_time() - before


def main(arguments: Sequence[str] | None = None) -> int:
    """Search and print what was found; the exit status is 1 for a problem or a text above the limit of time."""
    parser = argparse.ArgumentParser(description="Parse hostile strings as answers and check the results.")
    parser.add_argument("--strings", type=int, default=100_000, help="strings to parse (default 100000)")
    parser.add_argument("--long-texts", type=int, default=500, help="texts of --characters to time (default 500)")
    parser.add_argument("--characters", type=int, default=1_000_000, help="their length (default 1000000)")
    parser.add_argument("--limit", type=float, default=0.1, help="CPU seconds that each may take (default 0.1)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the mutations (default 0)")
    options = parser.parse_args(arguments)
    before = time.process_time()
    problems, corpora, outcomes = fuzz(options.strings, options.seed)
    print(
        f"{options.strings} strings in {len(FORMATS)} formats, {outcomes} outcomes, {len(problems)} problems, "
        f"{time.process_time() - before:.0f} s of CPU time"
    )
    for text in problems[:20]:
        print(text.encode("ascii", "backslashreplace").decode())
    worst, worst_text = slowest(corpora, options.seed, options.long_texts, options.characters)
    print(
        f"{options.long_texts} texts of {options.characters} characters: at most {worst:.3f} s of CPU time each "
        f"({worst_text.encode('ascii', 'backslashreplace').decode()[:300]})"
    )
    return 1 if problems or worst > options.limit else 0


if __name__ == "__main__":
    sys.exit(main())
