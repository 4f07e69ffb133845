"""YAML of recipes: the core schema of YAML 1.2 without duplicate keys, and text that reads back equal."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sam4mllm.recipe.yaml_text import read_yaml, write_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1.5", 1.5),
        ("-.5E+2", -50.0),
        ("10", 10),
        ("010", 10),
        ("-3", -3),
        ("no", "no"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("2026-11-21", "2026-11-21"),
        ("1_000", "1_000"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("'1'", "1"),
        ('"a"', "a"),
        ("[1, a, {b: 2.0}]", [1, "a", {"b": 2.0}]),
        ("a: {b: c}\nd:\n- e\n", {"a": {"b": "c"}, "d": ["e"]}),
    ],
)
def test_reads_the_core_schema(text: str, value: Any) -> None:
    read = read_yaml(text)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "line 3, column 1: duplicate key 'a'"),
        ("1: a", "line 1, column 1: key 1 is not text"),
        ("a: [1", "line 1, column 6: "),
        ("a: b: c", "line 1, column 5: "),
        ("!!python/object/apply:os.getcwd []", "line 1, column 1: "),
        ("!!timestamp 2026-11-21", "line 1, column 1: "),
        ("&a [*a]", "recursive"),
        ("a: \x00", "special characters are not allowed"),
    ],
)
def test_invalid_yaml_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        read_yaml(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


printable = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FFF, exclude_characters="\x7f\x85"), max_size=20)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**9), 10**9),
    st.floats(allow_nan=False, allow_infinity=False),
    printable,
    st.sampled_from(["1e-4", "no", "010", "null", "true", "1:30", "2026-11-21", "~", "", "=", "<<", ".5"]),
)


@given(st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(printable, inner), max_leaves=8))
def test_what_is_written_reads_back_equal(value: Any) -> None:
    written = write_yaml(value)
    assert read_yaml(written) == value
    # PyYAML, a reader of YAML 1.1, is installed with transformers.
    assert yaml.safe_load(written) == value


def test_a_value_used_twice_is_written_twice() -> None:
    shared = [1]
    assert write_yaml({"a": shared, "b": shared}) == "a:\n- 1\nb:\n- 1\n"
