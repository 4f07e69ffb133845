"""Each family's coordinate format: accurate to half a bin, and every string is parsed to one of three statuses."""

from __future__ import annotations

import json

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sam4mllm.geometry import NEGATIVE, POSITIVE, Box, Grid, Point, ResizedGrid, SamPrompt
from sam4mllm.mllm.families import FAMILIES
from sam4mllm.prompts.coordinates import PLAIN, Coordinates
from sam4mllm.prompts.grammar import AnswerGrammar

FORMATS = list(dict.fromkeys(family.coordinates or PLAIN for family in FAMILIES.values()))
QWEN2_5_VL, INTERNVL = FAMILIES["qwen2_5_vl"].coordinates, FAMILIES["internvl"].coordinates
QWEN3_VL = FAMILIES["qwen3_vl"].coordinates
GEMMA4, GLM = FAMILIES["gemma4"].coordinates, FAMILIES["glm4v"].coordinates
PROMPT = SamPrompt(Box(77, 163, 358, 374), (Point(128.5, 192.5, POSITIVE), Point(83.5, 168.5, NEGATIVE)))

formats = st.sampled_from(FORMATS)
sides = st.integers(1, 3000)
shares = st.floats(0, 1, allow_nan=False)


def test_the_families_have_formats_of_both_frames_and_both_brackets() -> None:
    assert {type(each.frame) for each in FORMATS} == {Grid, ResizedGrid}
    assert {each.box for each in FORMATS} == {("[", "]"), ("[[", "]]")}
    assert {each.axis_order for each in FORMATS} == {"xy", "yx"}


@pytest.mark.parametrize(
    ("coordinates", "text"),
    [
        (PLAIN, "[120,339,559,779] +(200,401) -(130,351)"),
        (QWEN3_VL, "[120, 339, 559, 779] +(200, 401) -(130, 351)"),
        (INTERNVL, "<box>[[120, 339, 559, 779]]</box> +(200, 401) -(130, 351)"),
        # 640 x 480 becomes 644 x 476.
        (QWEN2_5_VL, "[77, 161, 360, 370] +(129, 190) -(84, 167)"),
        (GEMMA4, "[339, 120, 779, 559] +(401, 200) -(351, 130)"),
        (GLM, "<|begin_of_box|>[[120,339,559,779]]<|end_of_box|> +(200,401) -(130,351)"),
    ],
)
def test_each_format_writes_and_parses_its_example(coordinates: Coordinates, text: str) -> None:
    grammar = AnswerGrammar(coordinates)
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
def test_an_incomplete_box_of_internvl_is_malformed(text: str) -> None:
    assert AnswerGrammar(INTERNVL).parse(text, (1000, 1000)).status == "malformed"


def test_the_far_edge_belongs_to_the_last_bin_where_the_format_has_one() -> None:
    (prompt,) = AnswerGrammar(QWEN3_VL).parse("[0, 0, 1000, 1000]", (1000, 1000)).prompts
    assert prompt.box == (0.5, 0.5, 999.5, 999.5)
    assert AnswerGrammar(QWEN3_VL).parse("[0, 0, 1001, 3]", (9, 9)).reason == (
        "object 1: x = 1001 is beyond the grid's last bin 999"
    )
    assert AnswerGrammar(PLAIN).parse("[0,0,1000,3]", (9, 9)).status == "malformed"


def test_with_y_first_each_axis_keeps_its_bins_digits_and_name() -> None:
    grammar = AnswerGrammar(Coordinates(Grid((1000, 10)), axis_order="yx"))
    prompt = SamPrompt(Box(100, 1, 999, 9), (Point(7, 3, POSITIVE),))
    assert grammar.write([prompt], (1000, 10)) == "[1,100,9,999] +(3,007)"
    assert grammar.write_point(7, 3, (1000, 10)) == "(3,007)"
    # The corners are brought in order on each axis.
    (parsed,) = grammar.parse("[9,100,1,999] +(3,007)", (1000, 10)).prompts
    assert parsed == SamPrompt(Box(100.5, 1.5, 999.5, 9.5), (Point(7.5, 3.5, POSITIVE),))
    assert grammar.parse("[12,0,0,0]", (1000, 10)).reason == "object 1: y = 12 is beyond the grid's last bin 9"
    assert grammar.parse("[0,1000,0,0]", (1000, 10)).reason == "object 1: x = 1000 is beyond the grid's last bin 999"
    assert grammar.parse("[1,2", (9, 9)).reason == "object 1: expected a box [y1,x1,y2,x2], got '[1,2'"
    reason = grammar.parse("[1,2,3,4] +(1", (9, 9)).reason
    assert reason == "object 1: expected a point (y,x) after '+', got '(1'"


def test_the_axis_order_is_stored_only_where_it_differs_from_earlier_files() -> None:
    assert "axis_order" not in PLAIN.to_json() and GEMMA4.to_json()["axis_order"] == "yx"
    with pytest.raises(ValueError, match="axis_order is 'xy' or 'yx'; got 'xyz'"):
        Coordinates(axis_order="xyz")  # type: ignore[arg-type]


def has_grid(size_wh: tuple[int, int]) -> bool:
    return max(size_wh) <= 200 * min(size_wh)


@given(formats, sides, sides, st.lists(shares, min_size=6, max_size=6))
def test_coordinates_survive_the_text_within_half_a_bin(coordinates, width, height, at) -> None:
    size_wh = (width, height)
    assume(has_grid(size_wh))
    (x1, x2), (y1, y2) = sorted(share * width for share in at[:2]), sorted(share * height for share in at[2:4])
    prompt = SamPrompt(Box(x1, y1, x2, y2), (Point(at[4] * width, at[5] * height, POSITIVE),))
    grammar = AnswerGrammar(coordinates)
    text = grammar.write([prompt], size_wh)
    (read,) = grammar.parse(text, size_wh).prompts
    assert grammar.write([read], size_wh) == text
    bins_wh = coordinates.frame.of_image(size_wh).bins_wh
    half_wh = [size / bins / 2 * (1 + 1e-9) + 1e-9 for size, bins in zip(size_wh, bins_wh, strict=True)]
    values = [(*prompt.box, *prompt.points[0][:2]), (*read.box, *read.points[0][:2])]
    for index, (was, now) in enumerate(zip(*values, strict=True)):
        assert abs(was - now) <= half_wh[index % 2]


pieces = st.sampled_from(
    ["<box>", "</box>", "[[", "]]", "[", "]", "(", ")", ",", ";", "+", "-", " ", "0", "17", "1000", "No object found"]
)


@given(formats, st.one_of(st.text(), st.lists(pieces, max_size=30).map("".join)), sides, sides)
def test_any_string_is_parsed_to_one_of_three_statuses(coordinates, text, width, height) -> None:
    size_wh = (width, height)
    assume(has_grid(size_wh))
    grammar = AnswerGrammar(coordinates)
    parsed = grammar.parse(text, size_wh)
    assert (parsed.status == "ok") == bool(parsed.prompts)
    assert (parsed.status == "malformed") == (parsed.reason is not None)
    if parsed.status == "ok":
        assert grammar.parse(grammar.write(parsed.prompts, size_wh), size_wh) == parsed


@pytest.mark.parametrize("coordinates", FORMATS)
def test_a_format_survives_json(coordinates: Coordinates) -> None:
    record = coordinates.to_json()
    # It is compared with the content of a file, so it must hold lists, not tuples.
    assert json.loads(json.dumps(record)) == record
    assert Coordinates.from_json(record) == coordinates


@pytest.mark.parametrize("record", [{}, {"frame": {}}, {"frame": {"bins_wh": [1]}}, {"frame": 3}, {"delimiter": "x"}])
def test_invalid_json_of_a_format_is_refused(record) -> None:
    with pytest.raises(ValueError, match="not what Coordinates"):
        Coordinates.from_json(record)


def test_delimiters_must_separate_numbers() -> None:
    with pytest.raises(ValueError, match="delimiters without digits"):
        Coordinates(separator=" ")
    with pytest.raises(ValueError, match="delimiters without digits"):
        Coordinates(tags=("<box1>", ""))
