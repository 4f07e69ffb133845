from __future__ import annotations

import pytest

from sam4mllm.utils.messages import first_and_more, first_line


@pytest.mark.parametrize(
    ("items", "text"),
    [
        ([], ""),
        (["a"], "a"),
        (["a", "b"], "a; b"),
        (["a", "b", "c"], "a; b; and 1 more"),
        ([1, 2, 3, 4], "1; 2; and 2 more"),
    ],
)
def test_the_first_items_are_written_and_the_others_counted(items: list[object], text: str) -> None:
    assert first_and_more(items, 2) == text
    assert first_and_more(items, 2, ", ") == text.replace(";", ",")


@pytest.mark.parametrize(
    ("error", "text"),
    [(ValueError("one\ntwo"), "one"), (MemoryError(), "MemoryError"), (ValueError("x" * 300), "x" * 200)],
)
def test_an_error_is_named_by_its_first_line(error: Exception, text: str) -> None:
    assert first_line(error) == text
