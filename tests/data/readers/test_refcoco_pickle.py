"""The unpickler of refs: plain data comes back, code never runs, damaged files are one error."""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sam4mllm.data.readers.refcoco import load_plain
from sam4mllm.errors import DataError


class _Payload:
    """Creates a folder when it is unpickled by pickle.load."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_would_run_code_is_refused_before_it_runs(tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "ran"
    path = tmp_path / "refs.p"
    path.write_bytes(pickle.dumps([{"ref_id": 1, "extra": _Payload(marker)}], protocol=protocol))
    with pytest.raises(DataError, match=r"refs\.p: the refs must be a pickle of plain data.*mkdir"):
        load_plain(path, "the refs")
    assert not marker.exists()
    pickle.loads(path.read_bytes())
    assert marker.exists(), "pickle itself must run the payload, or this test shows nothing"


def test_python_2_byte_strings_become_text(tmp_path: Path) -> None:
    path = tmp_path / "refs.p"
    path.write_bytes(b"(lp0\n(dp1\nS'ref_id'\np2\nI7\nsS'sent'\np3\nS'caf\\xe9'\np4\nsS'id'\nL12L\nsa.")
    assert load_plain(path, "the refs") == [{"ref_id": 7, "sent": "caf\u00e9", "id": 12}]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_comes_back(tmp_path: Path, protocol: int) -> None:
    value = [{"a": 1, "b": [1.5, None, True, "x"], "c": (1, 2)}]
    path = tmp_path / "refs.p"
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    assert load_plain(path, "the refs") == value


@pytest.mark.parametrize(
    "content", [b"Nr\xff\xff\xff\x3f.", b"Np4000000000\n.", b"\x96\x00\x00\x00\x00\x08\x00\x00\x00."]
)
def test_a_length_in_a_damaged_pickle_does_not_exhaust_the_memory(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "refs.p"
    path.write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.suppress(DataError):
        assert load_plain(path, "the refs") is None
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20, "more than a gigabyte was allocated"


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file; the refs was expected there"):
        load_plain(tmp_path / "refs.p", "the refs")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(cut=st.integers(0, 60), junk=st.binary(max_size=20))
def test_a_damaged_pickle_is_one_clear_error_or_plain_data(tmp_path: Path, cut: int, junk: bytes) -> None:
    path = tmp_path / "refs.p"
    path.write_bytes(pickle.dumps([{"ref_id": 1, "sentences": ["a", "b"]}], protocol=2)[:cut] + junk)
    try:
        load_plain(path, "the refs")
    except DataError as error:
        assert "refs.p" in str(error)
