"""Atomic writes: the old file or the new one, and no temporary file is left."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from safetensors import SafetensorError

from sam4mllm.errors import DataError
from sam4mllm.utils import atomic_io
from sam4mllm.utils.atomic_io import (
    atomic_path,
    atomic_write_text,
    check_folder_of,
    file_sha256,
    remove_folder,
    remove_leftovers,
    writing,
)


def test_a_file_is_replaced_by_the_new_content(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    atomic_write_text(path, "old")
    atomic_write_text(path, "née\n")
    assert path.read_bytes() == "née\n".encode()
    assert list(tmp_path.iterdir()) == [path]


def test_a_writer_that_fails_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    atomic_write_text(path, "old")
    with pytest.raises(RuntimeError, match="half way"), atomic_path(path) as temporary:
        temporary.write_text("ne")
        assert path.read_text() == "old"
        raise RuntimeError("half way")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_writes_nothing_is_an_error_and_leaves_no_empty_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a.json"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_named_by_the_sha256_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


FULL = "No space left on device"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, FULL),
        OSError(f"[Errno 28] Error writing bytes to file. Detail: [errno 28] {FULL}"),
        SafetensorError(f"Error while serializing: I/O error: {FULL} (os error 28)"),
        shutil.Error([("a", "b", f"[Errno 28] {FULL}")]),
    ],
)
def test_a_failed_write_names_its_file_and_leaves_the_old_one(tmp_path: Path, error: Exception) -> None:
    path = tmp_path / "a.json"
    atomic_write_text(path, "old")
    with pytest.raises(OSError, match=FULL) as raised, atomic_path(path) as temporary:
        temporary.write_text("ne")
        raise error
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(path))
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("probed", "expected"), [(errno.ENOSPC, OSError), (None, RuntimeError)])
def test_a_failed_write_of_torch_is_a_full_disk_if_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, probed: int | None, expected: type[Exception]
) -> None:
    def fsync(descriptor: int) -> None:
        if probed:
            raise OSError(probed, FULL)

    monkeypatch.setattr(atomic_io.os, "fsync", fsync)
    with pytest.raises(expected, match=FULL if probed else "PytorchStreamWriter"), writing(tmp_path / "checkpoint-1"):
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")


@pytest.mark.parametrize(
    "error",
    [ValueError("os error 28"), RuntimeError("CUDA error 28"), OSError("not an image"), OSError(2, "gone", "in.png")],
)
def test_other_errors_are_not_renamed(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as raised, writing(tmp_path / "a"):
        raise error
    assert raised.value is error


def test_a_folder_without_permission_is_an_error_about_the_file_and_not_the_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, *arguments: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(PermissionError) as raised:
        atomic_write_text(tmp_path / "a.json", "new")
    assert raised.value.filename == str(tmp_path / "a.json")


def test_a_folder_that_cannot_be_written_to_is_found_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("new", "pipe"):
        check_folder_of(tmp_path / name)
    # The tests may run as a superuser, who may write to any folder.
    monkeypatch.setattr(os, "access", lambda path, mode: not (path == tmp_path and mode == os.W_OK))
    check_folder_of(tmp_path / "pipe")
    with pytest.raises(DataError, match=r"/new: its folder .* cannot be written to; give a file elsewhere"):
        check_folder_of(tmp_path / "new")


def test_a_symbolic_link_is_written_through(tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder / "real.json")
    for text in ("old", "new"):
        atomic_write_text(tmp_path / "link", text)
        assert (tmp_path / "link").is_symlink() and (folder / "real.json").read_text() == text
    assert list(folder.iterdir()) == [folder / "real.json"]


def test_a_pipe_or_a_folder_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(DataError, match=f"{name}: is not a regular file"):
            atomic_write_text(tmp_path / name, "new")
    assert (tmp_path / "pipe").is_fifo()


def test_the_temporary_files_of_ended_processes_are_removed_and_those_of_running_ones_are_not(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    names = [f".a[1].json.{ended.pid}.tmp.json", f".a[1].json.{os.getpid()}.tmp.json", f".b.json.{ended.pid}.tmp.json"]
    for name in names:
        (tmp_path / name).write_text("")
    remove_leftovers(tmp_path / "a[1].json")
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(names[1:])


def test_a_folder_is_renamed_before_it_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed while it removes a folder leaves none that looks complete."""

    def killed(folder: Path, **options: object) -> None:
        if Path(folder).exists():
            raise KeyboardInterrupt

    (tmp_path / "best-2").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            remove_folder(tmp_path / "best-2")
    assert [path.name for path in tmp_path.iterdir()] == ["removed-best-2"]
    (tmp_path / "best-2").mkdir()
    remove_folder(tmp_path / "best-2")
    assert list(tmp_path.iterdir()) == []
