"""Any string is parsed in every family's format: no exception, no coordinate outside the image, linear time."""

from __future__ import annotations

from time import process_time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sam4mllm.mllm.families import FAMILIES
from sam4mllm.prompts.coordinates import PLAIN, Coordinates
from sam4mllm.prompts.grammar import AnswerGrammar

FORMATS = list(
    dict.fromkeys([PLAIN, *(family.coordinates for family in FAMILIES.values() if family.coordinates is not None)])
)
MEGABYTE = 1_000_000

# NUL, lone surrogates, marks of direction and digits of other scripts, beside the parts of every format.
pieces = st.sampled_from(
    [
        *("[", "]", "(", ")", "[[", "]]", "{", "}", "<box>", "</box>", ",", ", ", ";", "+", "-", ".", " ", "\n"),
        *("0", "17", "999", "1000", "1001", "9" * 300, "-1", "0.5", "1e3", "No object found.", "<|im_end|>", "<image>"),
        *("\uff11", "\u0661", "\u0967", "\u00b2", "\0", "\ud800", "\udfff", "\u202e", "\u200f", "\u2066", "\u00a0"),
    ]
)
texts = st.one_of(
    st.lists(pieces, max_size=40).map("".join),
    st.text(st.characters(codec=None), max_size=60),
    st.tuples(st.sampled_from(["[1,2,3,4]", "[12, 34, 56, 78] +(1, 2)"]), st.lists(pieces, max_size=9)).map(
        lambda parts: parts[0] + "".join(parts[1])
    ),
)
sizes = st.one_of(
    st.sampled_from([(1, 1), (1, 200), (640, 480)]), st.tuples(st.integers(20, 3000), st.integers(20, 3000))
)


@settings(max_examples=300, deadline=None)
@given(texts, st.sampled_from(FORMATS), sizes)
def test_any_string_has_a_status_and_coordinates_in_the_image(
    text: str, coordinates: Coordinates, size_wh: tuple[int, int]
) -> None:
    grammar = AnswerGrammar(coordinates)
    parsed = grammar.parse(text, size_wh)
    assert (parsed.status == "ok") == bool(parsed.prompts) == bool(parsed.box_spans)
    assert (parsed.status == "malformed") == (parsed.reason is not None)
    if parsed.reason is not None:
        assert parsed.reason.isprintable() and len(parsed.reason) < 300
    for prompt, (start, end) in zip(parsed.prompts, parsed.box_spans, strict=True):
        assert prompt.box is not None and 0 <= start < end <= len(text)
        corners = [prompt.box[:2], prompt.box[2:], *((point.x, point.y) for point in prompt.points)]
        assert all(0 < x < size_wh[0] and 0 < y < size_wh[1] for x, y in corners)
        assert prompt.box == prompt.box.clip(size_wh) and prompt.box.x1 <= prompt.box.x2
    if parsed.prompts:
        assert grammar.parse(grammar.write(parsed.prompts, size_wh), size_wh).prompts == parsed.prompts


@pytest.mark.parametrize("character", ["\U0010fffe", "\ud800", "\0", "'", '"', "\n", "\u202e"])
def test_a_reason_is_short_whatever_it_quotes(character: str) -> None:
    for text in (character * 40, f"[1,2{character * 40}", f"[1,2,3,4] {character * 99};"):
        reason = AnswerGrammar().parse(text, (640, 480)).reason
        assert reason is not None and reason.isprintable() and len(reason) < 200


@pytest.mark.parametrize("digit", ["\uff11", "\u0661", "\u0967", "\u00b9", "\u2460", "\U0001d7cf"])
def test_digits_of_other_scripts_are_no_numbers(digit: str) -> None:
    assert "1" in str(int(digit)) if digit.isdecimal() else digit.isdigit() or digit.isnumeric()
    assert AnswerGrammar().parse(f"[{digit},2,3,4]", (100, 100)).status == "malformed"


@pytest.mark.parametrize(
    ("count", "text", "status"),
    [
        (1000, "; ".join(["[1,2,3,4]"] * 1000), "ok"),
        (1001, "; ".join(["[1,2,3,4]"] * 1001), "malformed"),
        (1000, "[1,2,3,4] +" + "(1,2)" * 999, "ok"),
        (1001, "[1,2,3,4] +" + "(1,2)" * 1000, "malformed"),
        (1001, "[1,2,3,4] +(1,2) -" + "(1,2)" * 999, "malformed"),
        (1000, "; ".join(["[1,2,3,4] +(1,2) -" + "(3,4)" * 98] * 10), "ok"),
        (1001, "; ".join(["[1,2,3,4] -" + "(3,4)" * 99] * 9 + ["[1,2,3,4] -" + "(3,4)" * 100]), "malformed"),
        (1002, "; ".join(["[1,2,3,4] +(1,2) -(3,4)"] * 334), "malformed"),
    ],
)
def test_a_repetition_is_malformed_beyond_a_thousand_boxes_and_points(count: int, text: str, status: str) -> None:
    parsed = AnswerGrammar().parse(text, (640, 480))
    assert parsed.status == status
    assert sum(1 + len(prompt.points) for prompt in parsed.prompts) == (count if status == "ok" else 0)
    assert parsed.reason == (None if status == "ok" else "more than 1000 boxes and points")


@pytest.mark.parametrize("coordinates", FORMATS)
def test_a_megabyte_is_parsed_in_a_tenth_of_a_second(coordinates: Coordinates) -> None:
    (left, right), tag = coordinates.box, coordinates.tags[0]
    box = f"{left}1,2,3,4{right}"
    parts = [
        box + ";",
        left,
        tag or left,
        right,
        "9",
        " ",
        "no ",
        "no   object  ",
        "the ring. ",
        "+(1,2)",
        "\ud800",
        "[1,",
    ]
    forms = [("", ""), (box, ""), (f"{box} +", ""), ("", box), (left, right), ("no", "object found")]
    for part in parts:
        for start, end in forms:
            text = start + part * (MEGABYTE // len(part)) + end
            # The least of three times: the machine may be busy.
            for attempt in range(3):
                before = process_time()
                AnswerGrammar(coordinates).parse(text, (640, 480))
                if (seconds := process_time() - before) < 0.1:
                    break
                assert attempt < 2, f"{seconds:.3f} s for {start!r}, {part!r} repeated, {end!r}"
