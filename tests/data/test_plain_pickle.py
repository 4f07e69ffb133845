"""Recognition of pickles for the unpickler in C, which must read them as the one in Python does."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sam4mllm.data import plain_pickle
from sam4mllm.data.plain_pickle import is_plain_pickle
from sam4mllm.data.readers import refcoco
from sam4mllm.errors import DataError

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
VALUE = [{"id": 7, "size": [1.5, -2, 10**30], "none": (None, True, False), "long": "x" * 300, "é": "\n'"}]
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
plain = st.recursive(scalars, lambda part: st.lists(part) | st.dictionaries(st.text() | st.integers(), part))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_pickles_as_python_writes_them_are_recognized(protocol: int) -> None:
    assert is_plain_pickle(pickle.dumps([{"id": 7, "sent": "left", "bytes": "x" * 300, "size": [1.5, -2]}], protocol))


def test_pickles_of_python_2_are_recognized() -> None:
    assert is_plain_pickle(b"(lp1\n(dp2\nS'ref_id'\np3\nI7\nsS'sent'\np4\nS'caf\\xe9'\np5\nsS'id'\nL12L\nsa.")
    assert is_plain_pickle(b"\x80\x02]q\x01}q\x02(U\x06ref_idq\x03K\x07U\x04sentq\x04T\x03\x00\x00\x00abcq\x05ua.")


@pytest.mark.parametrize(
    "content",
    [
        b"Nr\xff\xff\xff\x3f.",  # a memo entry far beyond the file
        b"Np400000000\n.",
        b"Np4000000000\n.",
        b"\x96\x00\x00\x00\x00\x08\x00\x00\x00.",  # a byte array, which the unpickler allocates before it reads it
        b"X\xff\xff\xff\x7fab.",  # a text longer than the file
        b"\x80\x04\x95\x00\x00\x00\x00\x02\x00\x00\x00N.",  # a frame longer than the file
        b"cos\nmkdir\n.",
        b"\x8c\x02os\x8c\x05mkdir\x93.",
        b"I007\n.",  # octal in C, an error in Python
        b"I" + b"9" * 5000 + b"\n.",
        b"not a pickle",
    ],
)
def test_other_pickles_are_not_recognized(content: bytes) -> None:
    assert not is_plain_pickle(content)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=plain, protocol=st.sampled_from(PROTOCOLS), at=st.integers(0, 2000), byte=st.integers(0, 255))
def test_damaged_or_not_both_unpicklers_read_the_same(
    tmp_path_factory: pytest.TempPathFactory, value: Any, protocol: int, at: int, byte: int
) -> None:
    whole = pickle.dumps(value, protocol)
    damaged = bytearray(whole)
    damaged[at % len(whole)] = byte
    path = tmp_path_factory.mktemp("refs") / "refs.p"
    for content in (whole, bytes(damaged), whole[: at % len(whole)]):
        path.write_bytes(content)
        if is_plain_pickle(content):
            assert repr(_read(path)) == repr(_read_by_python(path))


def test_a_recognized_pickle_is_read_by_the_unpickler_in_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "refs.p"
    path.write_bytes(pickle.dumps(VALUE, 2))
    monkeypatch.setattr(refcoco._PlainUnpickler, "load", lambda _: pytest.fail("read by the unpickler in Python"))
    assert refcoco.load_plain(path) == VALUE


def test_the_unpickler_in_c_would_refuse_a_class_too() -> None:
    with pytest.raises(pickle.UnpicklingError, match=r"it asks for (posix|nt|os)\.mkdir"):
        refcoco._FastUnpickler(io.BytesIO(b"cos\nmkdir\n.")).load()


def _read(path: Path) -> object:
    try:
        return refcoco.load_plain(path)
    except DataError as error:
        return str(error)


def _read_by_python(path: Path) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refcoco, "is_plain_pickle", lambda _: False)
        return _read(path)


def test_no_instruction_of_the_pattern_needs_a_class() -> None:
    """The instructions that make objects by calling something: none of them may be in the pattern or in the table."""
    calling = (b"c", b"\x93", b"R", b"b", b"i", b"o", b"\x81", b"\x92", b"\x82", b"\x83", b"\x84", b"P", b"Q", b"\x97")
    for instruction in calling:
        match = plain_pickle._FIXED.match(instruction + b"\n" * 20)
        assert match is not None and match.end() == 0
        assert instruction not in plain_pickle._LENGTH_BYTES
