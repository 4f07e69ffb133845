"""A full disk and a folder without write permission, in each subcommand that writes: one line, and exit status 2."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors import SafetensorError

from sam4mllm.cli.main import main
from sam4mllm.testing import save_tiny_mllm
from sam4mllm.utils import folder_lock
from tests.data.tiny_datasets import write_image
from tests.runs.test_merge import save_run

FULL = "No space left on device"


def fail(error: Exception) -> Callable[..., Any]:
    def write(*arguments: object, **options: object) -> None:
        raise error

    return write


def is_one_line(capsys: pytest.CaptureFixture[str], file: Path) -> bool:
    return capsys.readouterr().err.splitlines()[-1] == f"sam4mllm: error: {file}: no space left on device"


def test_merge_names_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import PreTrainedModel

    save_tiny_mllm("fast_vlm", tmp_path / "base", seed=1)
    run = save_run(tmp_path)
    rust_error = SafetensorError(f"Error while serializing: I/O error: {FULL} (os error 28)")
    monkeypatch.setattr(PreTrainedModel, "save_pretrained", fail(rust_error))
    assert main(["merge", str(run.path), "-o", str(tmp_path / "merged")]) == 2
    assert is_one_line(capsys, tmp_path / ".merged.unfinished")
    assert not (tmp_path / "merged").exists()


@pytest.mark.usefixtures("scripted")
@pytest.mark.parametrize("option", ["-o", "--mask"])
def test_segment_names_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    image, out = write_image(tmp_path / "a.png"), tmp_path / "out.png"
    monkeypatch.setattr(Image.Image, "save", fail(OSError(errno.ENOSPC, FULL)))
    assert main(["segment", "run", str(image), "left", option, str(out)]) == 2
    assert is_one_line(capsys, out)


def test_shapes_names_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Image.Image, "save", fail(OSError(errno.ENOSPC, FULL)))
    assert main(["shapes", str(tmp_path / "made"), "--scenes", "1"]) == 2
    first = tmp_path / "made.part/images/mscoco/images/train2014/COCO_train2014_000000000001.jpg"
    assert is_one_line(capsys, first)


def test_convert_names_the_file_and_keeps_the_old_one(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sam4mllm.data.readers import jsonl

    out = tmp_path / "out.jsonl"
    arguments = ["convert", "--dataset", "refcoco", "--root", str(root), "--split", "val", "-o", str(out)]
    assert main(arguments) == 0
    before = out.read_bytes()
    monkeypatch.setattr(jsonl, "record_of", fail(OSError(errno.ENOSPC, FULL)))
    assert main(arguments) == 2
    assert is_one_line(capsys, out) and out.read_bytes() == before


@pytest.mark.usefixtures("scripted")
@pytest.mark.parametrize(
    ("number", "reason"), [(errno.EROFS, "read-only file system"), (errno.EACCES, "permission denied")]
)
def test_a_folder_that_cannot_be_written_is_named_before_any_answer(
    number: int, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "q.jsonl").write_text(json.dumps({"id": "1", "image": "a.png", "phrase": "left"}) + "\n")
    out = tmp_path / "out"
    out.mkdir()

    def refuse(path: Path, *arguments: object) -> int:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(folder_lock.os, "open", refuse)
    assert main(["predict", "run", str(tmp_path / "q.jsonl"), "--output", str(out)]) == 2
    assert capsys.readouterr().err == f"sam4mllm: error: {out}: {reason}\n"
    assert list(out.iterdir()) == []
