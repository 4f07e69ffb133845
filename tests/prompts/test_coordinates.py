"""Each family's way to write places: it survives the text within half a bin, and any string is read as one of three."""

from __future__ import annotations

import json

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sam4mllm.geometry import NEGATIVE, POSITIVE, Box, Grid, Point, ResizedGrid, SamPrompt
from sam4mllm.mllm.families import FAMILIES
from sam4mllm.prompts.coordinates import PLAIN, Coordinates
from sam4mllm.prompts.grammar import AnswerGrammar

CONVENTIONS = list(dict.fromkeys(family.coordinates or PLAIN for family in FAMILIES.values()))
QWEN2_5_VL, INTERNVL = FAMILIES["qwen2_5_vl"].coordinates, FAMILIES["internvl"].coordinates
QWEN3_VL = FAMILIES["qwen3_vl"].coordinates
PROMPT = SamPrompt(Box(77, 163, 358, 374), (Point(128.5, 192.5, POSITIVE), Point(83.5, 168.5, NEGATIVE)))

conventions = st.sampled_from(CONVENTIONS)
sides = st.integers(1, 3000)
shares = st.floats(0, 1, allow_nan=False)


def test_the_table_has_conventions_of_both_frames_and_both_brackets() -> None:
    assert {type(each.frame) for each in CONVENTIONS} == {Grid, ResizedGrid}
    assert {each.box for each in CONVENTIONS} == {("[", "]"), ("[[", "]]")}


@pytest.mark.parametrize(
    ("convention", "text"),
    [
        (PLAIN, "[120,339,559,779] +(200,401) -(130,351)"),
        (QWEN3_VL, "[120, 339, 559, 779] +(200, 401) -(130, 351)"),
        (INTERNVL, "<box>[[120, 339, 559, 779]]</box> +(200, 401) -(130, 351)"),
        # 640 x 480 becomes 644 x 476.
        (QWEN2_5_VL, "[77, 161, 360, 370] +(129, 190) -(84, 167)"),
    ],
)
def test_what_each_convention_writes(convention: Coordinates, text: str) -> None:
    grammar = AnswerGrammar(convention)
    assert grammar.write([PROMPT], (640, 480)) == text
    assert grammar.write(grammar.parse(text, (640, 480)).prompts, (640, 480)) == text


@pytest.mark.parametrize(
    "text",
    [
        "<box>[[120, 339, 559, 779]]</box>",
        "[[120,339,559,779]]",
        "<box> [[120, 339, 559, 779]] </box>",
        "[[120, 339, 559, 779]]</box>",
        "<ref>the left cup</ref><box>[[120, 339, 559, 779]]</box>",
    ],
)
def test_internvls_tags_may_be_missing(text: str) -> None:
    """Its tokenizer has them as special tokens, which are dropped when an answer is decoded."""
    read = AnswerGrammar(INTERNVL).parse(text, (1000, 1000))
    assert read.status == "ok", read.reason
    assert read.prompts[0].box == (120.5, 339.5, 559.5, 779.5)


@pytest.mark.parametrize("text", ["<box>[[1, 2, 3]]</box>", "[1, 2, 3, 4]", "<box>", "[[1,2,3,4]", "[[[1,2,3,4]]]"])
def test_half_a_box_of_internvl_is_malformed(text: str) -> None:
    assert AnswerGrammar(INTERNVL).parse(text, (1000, 1000)).status == "malformed"


def test_the_far_edge_belongs_to_the_last_bin_where_the_convention_has_one() -> None:
    (prompt,) = AnswerGrammar(QWEN3_VL).parse("[0, 0, 1000, 1000]", (1000, 1000)).prompts
    assert prompt.box == (0.5, 0.5, 999.5, 999.5)
    assert AnswerGrammar(QWEN3_VL).parse("[0, 0, 1001, 3]", (9, 9)).reason == (
        "object 1: x = 1001 is beyond the grid's last bin 999"
    )
    assert AnswerGrammar(PLAIN).parse("[0,0,1000,3]", (9, 9)).status == "malformed"


def has_grid(size_wh: tuple[int, int]) -> bool:
    return max(size_wh) <= 200 * min(size_wh)


@given(conventions, sides, sides, st.lists(shares, min_size=6, max_size=6))
def test_places_survive_the_text_within_half_a_bin(convention, width, height, at) -> None:
    size_wh = (width, height)
    assume(has_grid(size_wh))
    (x1, x2), (y1, y2) = sorted(share * width for share in at[:2]), sorted(share * height for share in at[2:4])
    prompt = SamPrompt(Box(x1, y1, x2, y2), (Point(at[4] * width, at[5] * height, POSITIVE),))
    grammar = AnswerGrammar(convention)
    text = grammar.write([prompt], size_wh)
    (read,) = grammar.parse(text, size_wh).prompts
    assert grammar.write([read], size_wh) == text
    bins_wh = convention.frame.of_image(size_wh).bins_wh
    half_wh = [size / bins / 2 * (1 + 1e-9) + 1e-9 for size, bins in zip(size_wh, bins_wh, strict=True)]
    places = [(*prompt.box, *prompt.points[0][:2]), (*read.box, *read.points[0][:2])]
    for index, (was, now) in enumerate(zip(*places, strict=True)):
        assert abs(was - now) <= half_wh[index % 2]


pieces = st.sampled_from(
    ["<box>", "</box>", "[[", "]]", "[", "]", "(", ")", ",", ";", "+", "-", " ", "0", "17", "1000", "No object found"]
)


@given(conventions, st.one_of(st.text(), st.lists(pieces, max_size=30).map("".join)), sides, sides)
def test_any_string_is_read_as_one_of_three(convention, text, width, height) -> None:
    size_wh = (width, height)
    assume(has_grid(size_wh))
    grammar = AnswerGrammar(convention)
    parsed = grammar.parse(text, size_wh)
    assert (parsed.status == "ok") == bool(parsed.prompts)
    assert (parsed.status == "malformed") == (parsed.reason is not None)
    if parsed.status == "ok":
        assert grammar.parse(grammar.write(parsed.prompts, size_wh), size_wh) == parsed


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_convention_comes_back_from_json(convention: Coordinates) -> None:
    record = convention.to_json()
    # What is compared with a file's content must equal it: a tuple is no list.
    assert json.loads(json.dumps(record)) == record
    assert Coordinates.from_json(record) == convention


@pytest.mark.parametrize("record", [{}, {"frame": {}}, {"frame": {"bins_wh": [1]}}, {"frame": 3}, {"sign": "x"}])
def test_what_is_no_convention_says_so(record) -> None:
    with pytest.raises(ValueError, match="not what Coordinates"):
        Coordinates.from_json(record)


def test_signs_must_tell_numbers_apart() -> None:
    with pytest.raises(ValueError, match="signs without digits"):
        Coordinates(separator=" ")
    with pytest.raises(ValueError, match="signs without digits"):
        Coordinates(tags=("<box1>", ""))
