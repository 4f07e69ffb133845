from __future__ import annotations

import gc
from pathlib import Path

import pytest

from sam4mllm.data.entry import data_entry
from sam4mllm.data.readers import refcoco
from sam4mllm.data.reading import read_samples
from sam4mllm.utils.garbage import paused_garbage_collection
from tests.data.tiny_datasets import annotation, image_record, ref, write_instances, write_refs


def test_collection_is_enabled_again_after_the_block_and_after_an_error() -> None:
    with paused_garbage_collection():
        assert not gc.isenabled()
        with paused_garbage_collection():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ValueError), paused_garbage_collection():
        raise ValueError
    assert gc.isenabled()


def test_collection_stays_disabled_where_the_program_disabled_it() -> None:
    gc.disable()
    try:
        with paused_garbage_collection():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_refs_are_read_without_collection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_instances(tmp_path / "refcoco", [image_record(5)], [annotation(50, 5)])
    write_refs(tmp_path / "refcoco", [ref(1, 50, 5, "train", "left")])
    enabled = []
    load = refcoco._READER._load
    monkeypatch.setattr(refcoco._READER, "_load", lambda path: (enabled.append(gc.isenabled()), load(path))[1])
    assert read_samples(data_entry("refcoco", root=tmp_path, split="train"))
    assert enabled == [False] and gc.isenabled()
