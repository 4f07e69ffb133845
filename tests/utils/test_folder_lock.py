"""Locks on folders: one job at a time, also with nested blocks, threads, and processes that were killed."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sam4mllm.errors import DataError, LaunchError
from sam4mllm.utils import folder_lock as module
from sam4mllm.utils.folder_lock import LOCK_FILE, folder_lock, remove_stale_lock

ROOT = Path(__file__).parents[2]

HOLDER = """
import sys, time
from pathlib import Path
from sam4mllm.utils.folder_lock import folder_lock
with folder_lock(Path(sys.argv[1]), "training", beside=len(sys.argv) > 2):
    {inside}
    print("locked", flush=True)
    sys.stdin.read()
"""
# A child process that outlives its parent, as the worker of a data loader does for some seconds.
FORK = "import os\n    if os.fork() == 0: time.sleep(3600)"


def hold(folder: Path, *beside: str, inside: str = "") -> subprocess.Popen[str]:
    """Start a process that holds the lock until its standard input is closed."""
    command = [sys.executable, "-c", HOLDER.format(inside=inside), str(folder), *beside]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None and process.stdout.readline() == "locked\n"
    return process


@pytest.mark.parametrize("beside", [False, True])
def test_a_second_process_is_refused_and_the_first_one_leaves_no_file(tmp_path: Path, beside: bool) -> None:
    folder = tmp_path / "runs" / "run"
    folder.parent.mkdir()
    holder = hold(folder, *["beside"] * beside)
    expected = (
        f"{folder}: another job is training here (process {holder.pid} on {socket.gethostname()}); "
        "wait until it ends, or choose another folder"
    )
    with pytest.raises(LaunchError) as refused, folder_lock(folder, "training", beside=beside):
        pass
    assert str(refused.value) == expected
    holder.communicate()
    with folder_lock(folder, "training", beside=beside):
        assert folder.exists() is not beside
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_killed_process_holds_no_lock_even_if_its_child_is_alive(tmp_path: Path) -> None:
    holder = hold(tmp_path, inside=FORK)
    child = int(Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text())
    try:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        os.kill(child, 0)
        with folder_lock(tmp_path, "training"):
            assert f"process {os.getpid()}" in (tmp_path / LOCK_FILE).read_text()
    finally:
        os.kill(child, signal.SIGKILL)
    assert not (tmp_path / LOCK_FILE).exists()


def test_nested_blocks_share_the_lock_and_another_thread_does_not(tmp_path: Path) -> None:
    errors = []

    def other_thread() -> None:
        try:
            with folder_lock(tmp_path, "predicting"):
                pass
        except LaunchError as error:
            errors.append(str(error))

    (tmp_path / "link").symlink_to(tmp_path)
    with folder_lock(tmp_path, "evaluating"):
        with folder_lock(tmp_path / "link", "predicting"):
            pass
        assert (tmp_path / LOCK_FILE).exists()
        thread = threading.Thread(target=other_thread)
        thread.start()
        thread.join()
    assert len(errors) == 1 and not (tmp_path / LOCK_FILE).exists()


@pytest.mark.parametrize("kind", ["a file", "a symbolic link that leads nowhere"])
@pytest.mark.parametrize("below", ["", "new", "new/new"])
def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path, kind: str, below: str) -> None:
    if kind == "a file":
        (tmp_path / "file").touch()
    else:
        (tmp_path / "file").symlink_to(tmp_path / "file")
    with (
        pytest.raises(DataError, match=f"/file: is {kind}, and a folder is to be written there"),
        folder_lock(tmp_path / "file" / below, "training"),
    ):
        pass


def test_an_error_in_the_block_releases_the_lock(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="inside"), folder_lock(tmp_path, "training"):
            raise ValueError("inside")


@pytest.mark.parametrize("written", [False, True])
def test_a_new_folder_is_removed_unless_the_block_writes_to_it(tmp_path: Path, written: bool) -> None:
    with folder_lock(tmp_path / "new", "training"):
        if written:
            (tmp_path / "new" / "a").write_text("")
    assert (tmp_path / "new").exists() is written
    (tmp_path / "old").mkdir()
    with folder_lock(tmp_path / "old", "training"):
        pass
    assert (tmp_path / "old").exists()


def test_a_process_that_is_not_the_main_one_takes_no_lock(tmp_path: Path) -> None:
    with folder_lock(tmp_path / "new", "training", active=False):
        assert not (tmp_path / "new").exists()


def test_temporary_files_of_killed_processes_are_removed_and_others_are_not(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "other").mkdir()
    old = [".a.json.7.tmp.json", "shards/.0.jsonl.7.tmp.jsonl", ".name.7.tmp"]
    kept = ["a.json", ".a.json.tmp", ".a.7.json", "other/.a.json.7.tmp.json", "a.7.tmp.json"]
    for name in (*old, *kept):
        (tmp_path / name).write_text("")
    with folder_lock(tmp_path, "predicting", subfolders=("shards", "missing")):
        pass
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)


def test_the_files_of_a_killed_process_are_removed_and_those_of_a_running_one_are_not(tmp_path: Path) -> None:
    for name in (LOCK_FILE, ".a.json.7.tmp.json"):
        (tmp_path / name).write_text("")
    remove_stale_lock(tmp_path)
    assert list(tmp_path.iterdir()) == []
    remove_stale_lock(tmp_path)
    holder = hold(tmp_path)
    remove_stale_lock(tmp_path)
    assert (tmp_path / LOCK_FILE).read_text().startswith("training\n")
    holder.communicate()


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(path: Path, *arguments: object) -> int:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(module.os, "open", refuse)
    with pytest.raises(OSError, match=os.strerror(number)) as raised, folder_lock(tmp_path, "training"):
        pass
    assert (raised.value.errno, raised.value.filename) == (number, str(tmp_path))


def test_a_file_system_without_locks_gets_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import fcntl

    def unsupported(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", unsupported)
    with folder_lock(tmp_path, "training"):
        pass
    assert "has no locks" in caplog.text
