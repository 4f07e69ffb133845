"""Whole files: the old one or the new one, and nothing beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sam4mllm.utils.atomic_io import atomic_path, atomic_write_text


def test_a_file_is_replaced_by_what_was_written(tmp_path: Path) -> None:
    place = tmp_path / "a.json"
    atomic_write_text(place, "old")
    atomic_write_text(place, "née\n")
    assert place.read_bytes() == "née\n".encode()
    assert list(tmp_path.iterdir()) == [place]


def test_a_writer_that_fails_leaves_the_old_file_alone(tmp_path: Path) -> None:
    place = tmp_path / "a.json"
    atomic_write_text(place, "old")
    with pytest.raises(RuntimeError, match="half way"), atomic_path(place) as unfinished:
        unfinished.write_text("ne")
        assert place.read_text() == "old"
        raise RuntimeError("half way")
    assert place.read_text() == "old"
    assert list(tmp_path.iterdir()) == [place]


def test_nothing_written_is_an_error_not_an_empty_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a.json"):
        pass
    assert list(tmp_path.iterdir()) == []
