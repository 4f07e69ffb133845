"""The form of answers: all that the grammar writes has it, all that has it is parsed, and nothing else has it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sam4mllm.geometry import NEGATIVE, POSITIVE, Box, Grid, Point, ResizedGrid, SamPrompt
from sam4mllm.prompts.answer_form import NO_OBJECT, AnswerForm, LocationForm
from sam4mllm.prompts.coordinates import Coordinates
from sam4mllm.prompts.grammar import AnswerGrammar

SIZE_WH = (1000, 1000)

coordinate_formats = st.builds(
    Coordinates,
    frame=st.one_of(
        st.builds(Grid, st.tuples(st.integers(1, 1200), st.integers(1, 1200))),
        st.just(ResizedGrid(28, 56 * 56, 28 * 28 * 300)),
    ),
    box=st.sampled_from([("[", "]"), ("[[", "]]"), ("{ ", " }"), ("<", ">")]),
    point=st.sampled_from([("(", ")"), ("<<", ">>"), ("|", "|")]),
    tags=st.sampled_from([("", ""), ("<box>", "</box>"), ("<|begin_of_box|>", "<|end_of_box|>")]),
    separator=st.sampled_from([",", ", ", " ^ "]),
    padded=st.booleans(),
    far_edge=st.booleans(),
    axis_order=st.sampled_from(["xy", "yx"]),
)
sizes = st.tuples(st.integers(1, 2000), st.integers(1, 2000)).filter(lambda wh: max(wh) <= 200 * min(wh))


@st.composite
def prompts_in(draw: st.DrawFn, size_wh: tuple[int, int], positives: int, negatives: int) -> SamPrompt:
    def coordinate(axis: int) -> float:
        return draw(st.floats(0, size_wh[axis], allow_nan=False))

    (x1, x2), (y1, y2) = (sorted([coordinate(axis), coordinate(axis)]) for axis in (0, 1))
    points = [
        Point(coordinate(0), coordinate(1), label)
        for label, limit in ((POSITIVE, positives), (NEGATIVE, negatives))
        for _ in range(draw(st.integers(0, limit)))
    ]
    return SamPrompt(Box(x1, y1, x2, y2), tuple(points))


@given(st.data(), coordinate_formats, sizes, st.integers(0, 3), st.integers(0, 2))
def test_all_that_is_written_has_the_form(
    data: st.DataObject, coordinates: Coordinates, size_wh: tuple[int, int], positives: int, negatives: int
) -> None:
    prompts = data.draw(st.lists(prompts_in(size_wh, positives, negatives), max_size=4))
    grammar = AnswerGrammar(coordinates)
    text = grammar.write(prompts, size_wh)
    assert re.fullmatch(grammar.form(positives, negatives).regex(size_wh), text)


@given(st.data(), coordinate_formats, sizes, st.integers(0, 3), st.integers(0, 2))
def test_all_that_has_the_form_is_parsed(
    data: st.DataObject, coordinates: Coordinates, size_wh: tuple[int, int], positives: int, negatives: int
) -> None:
    grammar = AnswerGrammar(coordinates)
    # A few objects, because examples of a thousand take long.
    regex = grammar.form(positives, negatives).regex(size_wh).removesuffix("*") + "{0,3}"
    text = data.draw(st.from_regex(re.compile(regex, re.ASCII), fullmatch=True))
    parsed = grammar.parse(text, size_wh)
    assert parsed.status == ("no_object" if text == NO_OBJECT else "ok"), parsed.reason
    assert all(len(prompt.positives) <= positives and len(prompt.negatives) <= negatives for prompt in parsed.prompts)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("far_edge", [False, True])
@pytest.mark.parametrize("bins", [1, 2, 7, 10, 11, 28, 99, 100, 101, 532, 1000, 1001, 1036])
def test_the_numbers_are_those_of_the_grid(bins: int, far_edge: bool, padded: bool) -> None:
    coordinates = Coordinates(Grid((bins, 10)), padded=padded, far_edge=far_edge)
    pattern = re.compile(AnswerForm(coordinates).regex(SIZE_WH))
    digits = len(str(bins - 1)) if padded else 0
    numbers = [f"{number:0{width}d}" for width in range(5) for number in range(1100)]
    matched = {number for number in numbers if pattern.fullmatch(f"[{number},5,{number},5]")}
    expected = {str(number).zfill(digits) for number in range(bins)}
    assert matched == expected | ({str(bins)} if far_edge else set())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1,2,3,4]",
        "[001,002,003]",
        "[001, 002,003,004]",
        " [001,002,003,004]",
        "[001,002,003,004];",
        "[001,002,003,004]; No object found.",
        "[001,002,003,004] +",
        "[001,002,003,004] +(001,002)(001,002)(001,002)",
        "[001,002,003,004] -(001,002) +(001,002)",
        "No object found",
        "[001,002,003,004]\n",
    ],
)
def test_no_other_text_has_the_form(text: str) -> None:
    assert re.fullmatch(AnswerForm(positives=2, negatives=1).regex(SIZE_WH), text) is None


def test_the_longest_answer_is_parsed_and_the_grammar_of_decoding_has_its_number_of_objects() -> None:
    form = AnswerForm(positives=2, negatives=1)
    item = "[001,002,003,004] +(001,002)(003,004) -(005,006)"
    longest = "; ".join([item] * form.max_objects)
    assert form.max_objects == 250
    assert AnswerGrammar().parse(longest, SIZE_WH).status == "ok"
    assert re.fullmatch(form.regex(SIZE_WH), longest)
    assert AnswerGrammar().parse(f"{longest}; {item}", SIZE_WH).status == "malformed"
    assert "object (SEPARATOR object){0,249}" in form.lark(SIZE_WH, ('""', '""'))


@pytest.mark.parametrize(("positives", "negatives"), [(-1, 0), (0, -1), (999, 1)])
def test_impossible_numbers_of_points_are_refused(positives: int, negatives: int) -> None:
    with pytest.raises(ValueError, match="0 or more points"):
        AnswerForm(positives=positives, negatives=negatives)


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        (NO_OBJECT, True),
        ("<location>", True),
        ("<location>" * 1000, True),
        ("", False),
        ("<location>" * 1001, False),
        ("<location>; <location>", False),
        ("<location>No object found.", False),
    ],
)
def test_the_form_of_locations(text: str, matches: bool) -> None:
    assert bool(re.fullmatch(LocationForm().regex(SIZE_WH), text)) is matches
