"""The answer grammar: what it writes, what it parses, and what is malformed."""

from __future__ import annotations

from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sam4mllm.geometry import NEGATIVE, POSITIVE, Box, Grid, Point, ResizedGrid, SamPrompt
from sam4mllm.prompts.coordinates import Coordinates
from sam4mllm.prompts.grammar import NO_OBJECT, AnswerGrammar

GRAMMAR = AnswerGrammar()
SIZE_WH = (1000, 1000)  # so that bin k is the pixel k
EXAMPLE = "[120,340,560,780] +(200,400)(250,410) -(130,350); [003,010,044,099] +(010,020)"
EXAMPLE_PROMPTS = (
    SamPrompt(
        Box(120.5, 340.5, 560.5, 780.5),
        (Point(200.5, 400.5, POSITIVE), Point(250.5, 410.5, POSITIVE), Point(130.5, 350.5, NEGATIVE)),
    ),
    SamPrompt(Box(3.5, 10.5, 44.5, 99.5), (Point(10.5, 20.5, POSITIVE),)),
)


def test_writes_the_example() -> None:
    assert GRAMMAR.write(EXAMPLE_PROMPTS, SIZE_WH) == EXAMPLE


def test_parses_the_example() -> None:
    parsed = GRAMMAR.parse(EXAMPLE, SIZE_WH)
    assert (parsed.status, parsed.prompts, parsed.reason) == ("ok", EXAMPLE_PROMPTS, None)


def test_no_prompts_are_written_as_no_object() -> None:
    assert GRAMMAR.write([], SIZE_WH) == NO_OBJECT
    assert GRAMMAR.parse(NO_OBJECT, SIZE_WH).status == "no_object"


def test_points_only_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="has a box for each object"):
        GRAMMAR.write([SamPrompt(None, (Point(1, 1, POSITIVE),))], SIZE_WH)


def test_each_axis_has_its_own_bins_and_padding() -> None:
    grammar = AnswerGrammar(Coordinates(Grid((100, 5))))
    text = grammar.write([SamPrompt(Box(0, 0, 640, 480), (Point(320, 240, POSITIVE),))], (640, 480))
    assert text == "[00,0,99,4] +(50,2)"
    assert grammar.parse("[00,0,99,5]", (640, 480)).reason == "object 1: y = 5 is beyond the grid's last bin 4"


def test_coordinates_outside_the_image_are_moved_to_its_edge() -> None:
    assert GRAMMAR.write([SamPrompt(Box(-9, -9, 2000, 5))], SIZE_WH) == "[000,000,999,005]"


@pytest.mark.parametrize(
    "text",
    [
        "No object found.",
        "no object found",
        "NO OBJECT FOUND",
        "  No object found .\n",
        "No  object\nfound.",
    ],
)
def test_parses_no_object(text: str) -> None:
    parsed = GRAMMAR.parse(text, SIZE_WH)
    assert (parsed.status, parsed.prompts, parsed.reason) == ("no_object", (), None)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("[1,2,3,4]", "[001,002,003,004]"),
        ("[0001,2,3,4]", "[001,002,003,004]"),
        (" [ 1 , 2 ,3, 4 ] + ( 5 , 6 ) ( 7,8 ) - (9,10) ", "[001,002,003,004] +(005,006)(007,008) -(009,010)"),
        ("[1,2,3,4]+(5,6)-(7,8);[1,2,3,4]", "[001,002,003,004] +(005,006) -(007,008); [001,002,003,004]"),
        ("[1,2,3,4] -(7,8)", "[001,002,003,004] -(007,008)"),
        ("[1,2,3,4]\n;\n[5,6,7,8]", "[001,002,003,004]; [005,006,007,008]"),
        ("It is at the left-most spot: [1,2,3,4].", "[001,002,003,004]"),
        ("[1,2,3,4] is the ring, I think.", "[001,002,003,004]"),
        ("[3,4,1,2]", "[001,002,003,004]"),
        ("[3,2,1,4]", "[001,002,003,004]"),
        ("[5,5,5,5]", "[005,005,005,005]"),
        ("[0,0,999,999]", "[000,000,999,999]"),
    ],
)
def test_parses_variants_with_the_same_meaning(text: str, written: str) -> None:
    parsed = GRAMMAR.parse(text, SIZE_WH)
    assert parsed.status == "ok", parsed.reason
    assert GRAMMAR.write(parsed.prompts, SIZE_WH) == written


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the answer is empty"),
        (" \n", "the answer is empty"),
        ("I do not know.", "neither a box nor"),
        ("No object", "neither a box nor"),
        ("There is no object found here.", "neither a box nor"),
        ("(1,2)", "neither a box nor"),
        ("[", "object 1: expected a box [x1,y1,x2,y2], got '['"),
        ("[1,2,3,4", "object 1: expected a box"),
        ("[1,2,3]", "object 1: expected a box"),
        ("[1,2,3,4,5]", "object 1: expected a box"),
        ("[[1,2,3,4]]", "object 1: expected a box"),
        ("[-1,2,3,4]", "object 1: expected a box"),
        ("[0.1,0.2,0.3,0.4]", "object 1: expected a box"),
        ("[1 2 3 4]", "object 1: expected a box"),
        ("[\uff11,2,3,4]", "object 1: expected a box"),
        ("[1,2,3,4];", "object 2: expected a box [x1,y1,x2,y2], got the end of the answer"),
        ("[1,2,3,4]; [5,6", "object 2: expected a box [x1,y1,x2,y2], got '[5,6'"),
        ("[1,2,3,4]; ring", "object 2: expected a box"),
        ("[1,2,3,4] +", "object 1: expected a point (x,y) after '+', got the end of the answer"),
        ("[1,2,3,4] -", "object 1: expected a point (x,y) after '-', got the end of the answer"),
        ("[1,2,3,4] +(5", "object 1: expected a point (x,y) after '+', got '(5'"),
        ("[1,2,3,4] +(5,6)(7", "unreadable after object 1: '(7'"),
        ("[1,2,3,4] +(5,6) -(7,8); [1,2,3,4] +(5,6)(", "unreadable after object 2: '('"),
        ("[1,2,3,4] +(5,6) +(7,8)", "unreadable after object 1"),
        ("[1,2,3,4] -(5,6) +(7,8)", "unreadable after object 1"),
        ("[1,2,3,4] (5,6)", "unreadable after object 1"),
        ("[1,2,3,4], [5,6,7,8]", "unreadable after object 1"),
        ("[1,2,3,4] [5,6,7,8]", "unreadable after object 1"),
        ("[1,2,3,4] and 2 more", "unreadable after object 1"),
        ("[1,2,3,4], the ring", "unreadable after object 1: ', the ring'"),
        ("[1,2,3,4] -(5,6) - the ring ", "unreadable after object 1: '- the ring'"),
        ("2 rings: [1,2,3,4]", "unreadable before the first box"),
        ("(5,6) [1,2,3,4]", "unreadable before the first box"),
        ("[1,2,3,4]. No object found.", "has an object and"),
        ("No object found. [1,2,3,4]", "has an object and"),
        ("[1,2,3,1000]", "object 1: y = 1000 is beyond the grid's last bin 999"),
        ("[1000,2,3,4]", "object 1: x = 1000 is beyond the grid's last bin 999"),
        ("[1,2,3,4]; [1,2,3,4] +(5,1234)", "object 2: y = 1234 is beyond the grid's last bin 999"),
        ("[1,2,3," + "9" * 10_000 + "]", "object 1: y = 99"),
    ],
)
def test_a_malformed_answer_has_a_reason_and_no_prompts(text: str, reason: str) -> None:
    parsed = GRAMMAR.parse(text, SIZE_WH)
    assert (parsed.status, parsed.prompts) == ("malformed", ())
    assert parsed.reason is not None
    assert reason in parsed.reason
    assert "\n" not in parsed.reason
    assert len(parsed.reason) < 200


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("x" * 40, "'" + "x" * 40 + "'"),
        ("x" * 41, "'" + "x" * 37 + "...'"),
        # Each NUL is quoted by four characters; 120 characters are the most.
        ("\0" * 29 + "xx", "'" + "\\x00" * 29 + "xx'"),
        ("\0" * 29 + "xxx", "'" + ("\\x00" * 29)[:115] + "...'"),
    ],
)
def test_a_reason_quotes_the_first_characters(text: str, quoted: str) -> None:
    assert GRAMMAR.parse(text, SIZE_WH).reason == f"neither a box nor 'No object found.': {quoted}"
    assert GRAMMAR.parse(" ", SIZE_WH).reason == "the answer is empty"


def test_words_before_the_first_box_may_begin_with_a_dash() -> None:
    text = "- the ring, [1,2,3,4]; [5,6,7,8] +(1,2)"
    parsed = GRAMMAR.parse(text, SIZE_WH)
    assert [text[start:end] for start, end in parsed.box_spans] == ["[1,2,3,4]", " [5,6,7,8]"]


def test_a_point_is_written_on_the_grid_of_the_resized_image() -> None:
    grammar = AnswerGrammar(Coordinates(ResizedGrid(28, 784, 50_176), padded=False))
    assert grammar.write_point(640, 0, (640, 480)) == "(251,0)"
    assert grammar.nearest(640, 0, (640, 480)) == pytest.approx((251.5 / 252 * 640, 0.5 / 168 * 480))


def test_a_cut_off_answer_is_not_parsed_as_a_complete_one() -> None:
    """Only a cut at the end of an object or a point looks complete, and then all of the written text is parsed."""
    for end in range(len(EXAMPLE)):
        cut = EXAMPLE[:end]
        parsed = GRAMMAR.parse(cut, SIZE_WH)
        if parsed.status == "ok":
            assert GRAMMAR.write(parsed.prompts, SIZE_WH) == cut.strip()
        else:
            assert parsed.status == "malformed"
            assert not cut.endswith((")", "]"))


sizes = st.tuples(st.integers(1, 3000), st.integers(1, 3000))
grids = st.tuples(st.integers(1, 1500), st.integers(1, 1500)).map(Grid)


@st.composite
def prompts_in(draw: st.DrawFn, size_wh: tuple[int, int]) -> SamPrompt:
    x, y = (st.floats(0, side, allow_nan=False) for side in size_wh)
    x1, x2 = sorted((draw(x), draw(x)))
    y1, y2 = sorted((draw(y), draw(y)))
    points = draw(st.lists(st.builds(Point, x, y, st.sampled_from([POSITIVE, NEGATIVE])), max_size=4))
    return SamPrompt(Box(x1, y1, x2, y2), tuple(points))


@given(st.data(), sizes, grids)
def test_parses_what_it_wrote(data: st.DataObject, size_wh: tuple[int, int], grid: Grid) -> None:
    grammar = AnswerGrammar(Coordinates(grid))
    prompts = data.draw(st.lists(prompts_in(size_wh), max_size=4))
    text = grammar.write(prompts, size_wh)
    parsed = grammar.parse(text, size_wh)
    assert parsed.status == ("ok" if prompts else "no_object")
    assert len(parsed.prompts) == len(prompts)
    assert grammar.write(parsed.prompts, size_wh) == text
    half_bin = [side / bins / 2 + 1e-6 for side, bins in zip(size_wh, grid.bins_wh, strict=True)]
    for before, after in zip(prompts, parsed.prompts, strict=True):
        assert before.box is not None
        assert after.box is not None
        places = [*zip(before.box, after.box, half_bin * 2, strict=True)]
        for was, now in zip((*before.positives, *before.negatives), after.points, strict=True):
            assert was.label == now.label
            places += zip(was[:2], now[:2], half_bin, strict=True)
        assert all(abs(was - now) <= allowed for was, now, allowed in places)


pieces = st.sampled_from(
    ["[", "]", "(", ")", ",", ";", "+", "-", ".", " ", "0", "17", "999", "1000", "No object found"]
)


@given(st.one_of(st.text(), st.lists(pieces, max_size=30).map("".join), st.text(alphabet="[](),;+-0123456789 ")), sizes)
def test_any_string_is_parsed_to_one_of_three_statuses(text: str, size_wh: tuple[int, int]) -> None:
    parsed = GRAMMAR.parse(text, size_wh)
    assert (parsed.status == "ok") == bool(parsed.prompts)
    assert (parsed.status == "malformed") == (parsed.reason is not None)
    for prompt in parsed.prompts:
        assert prompt.box is not None
        assert prompt.box == prompt.box.clip(size_wh)
        assert prompt.box.x1 <= prompt.box.x2
        assert prompt.box.y1 <= prompt.box.y2
    if parsed.status == "ok":
        assert GRAMMAR.parse(GRAMMAR.write(parsed.prompts, size_wh), size_wh) == parsed


@pytest.mark.parametrize("form", ["{}", "{}x", "the {}[1,2,3,4]", "[1,2,3,4]{}x", "no{}object", "[1,2,3,4] +{}(1,2)"])
def test_a_long_run_of_spaces_is_parsed_in_linear_time(form: str) -> None:
    before = process_time()
    AnswerGrammar().parse(form.format(" " * 20_000), (640, 480))
    assert process_time() - before < 0.5


def test_a_single_point_is_written_as_in_an_answer_and_parsed_at_the_center_of_its_bin() -> None:
    assert GRAMMAR.write_point(200.5, 400.9, SIZE_WH) == "(200,400)"
    assert GRAMMAR.write_point(320, 120, (640, 480)) == "(500,250)"
    assert GRAMMAR.nearest(200.9, 400.1, SIZE_WH) == (200.5, 400.5)
    assert GRAMMAR.nearest(320.1, 120.1, (640, 480)) == pytest.approx((320.32, 120.24))
