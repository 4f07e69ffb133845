"""Images of tasks: local files, downloads from the labeling server, and everything that is not opened."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from sam4mllm.data.reading import read_dataset
from sam4mllm.errors import DataError, ServerError
from sam4mllm.labeling.task_images import KEY_VARIABLE, TaskImages
from tests.data.tiny_datasets import write_image
from tests.labeling.servers import CONFIG, LabelingServer, ask, backend, serving
from tests.labeling.test_backend import LEFT, annotated


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    monkeypatch.delenv(KEY_VARIABLE, raising=False)


@pytest.fixture
def labeling() -> Iterator[tuple[LabelingServer, str]]:
    server = LabelingServer()
    with serving(server.server) as port:
        yield server, f"http://127.0.0.1:{port}"


@pytest.fixture
def png(tmp_path: Path) -> bytes:
    write_image(tmp_path / "photos/a.png", 20, 10)
    return (tmp_path / "photos/a.png").read_bytes()


def test_uploads_are_downloaded_once_with_the_servers_token(
    labeling: tuple[LabelingServer, str], png: bytes, tmp_path: Path
) -> None:
    server, address = labeling
    server.files["/data/upload/3/x.png"] = png
    images = TaskImages(None, address, (), tmp_path / "kept")
    images.use_token("abc")
    path = images.path("/data/upload/3/x.png")
    assert path.read_bytes() == png and path.suffix == ".png" and path.parent == tmp_path / "kept"
    assert images.path(f"{address}/data/upload/3/x.png") == path
    assert server.requests == [("/data/upload/3/x.png", "Token abc")]
    with pytest.raises(ServerError, match="404"):
        images.path("/data/upload/3/none.png")


def test_a_personal_access_token_is_exchanged(
    labeling: tuple[LabelingServer, str], png: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, address = labeling
    server.files["/x.png"] = png
    monkeypatch.setenv(KEY_VARIABLE, "a.b.c")
    images = TaskImages(None, address, (), tmp_path / "kept")
    images.use_token("other")
    images.path("/x.png")
    assert server.requests == [("/api/token/refresh", "a.b.c"), ("/x.png", "Bearer short")]


def test_other_addresses_need_permission_and_get_no_token(
    labeling: tuple[LabelingServer, str], png: bytes, tmp_path: Path
) -> None:
    server, address = labeling
    server.files["/photos/x.png"] = png
    images = TaskImages(None, "http://127.0.0.1:1", (f"{address}/photos/",), tmp_path / "kept")
    images.use_token("abc")
    assert images.path(f"{address}/photos/x.png").read_bytes() == png
    assert server.requests == [("/photos/x.png", None)]
    for refused in ("/other/x.png", "/photos/../x.png", "/photos/%2e%2e/x.png"):
        with pytest.raises(DataError, match="allow its address with --allow-url"):
            images.path(f"{address}{refused}")
    for refused in ("file:///etc/passwd", "ftp://host/x.png", "s3://bucket/x.png"):
        with pytest.raises(DataError, match="is not in the folder of --images"):
            images.path(refused)
    assert len(server.requests) == 1


def test_redirects_to_other_servers_are_not_followed(
    labeling: tuple[LabelingServer, str], png: bytes, tmp_path: Path
) -> None:
    server, address = labeling
    other = LabelingServer()
    other.files["/secret.png"] = png
    with serving(other.server) as port:
        server.redirects["/a.png"] = f"http://127.0.0.1:{port}/secret.png"
        with pytest.raises(DataError, match="allow its address with --allow-url"):
            TaskImages(None, address, (), tmp_path / "kept").path("/a.png")
        assert other.requests == []
        allowed = TaskImages(None, address, (f"http://127.0.0.1:{port}/",), tmp_path / "kept")
        allowed.use_token("abc")
        assert allowed.path("/a.png").read_bytes() == png
        assert other.requests == [("/secret.png", None)]


def test_local_files_come_first_and_stay_in_their_folder(png: bytes, tmp_path: Path) -> None:
    images = TaskImages(tmp_path / "photos", "http://127.0.0.1:1", (), tmp_path / "kept")
    assert images.path("/data/local-files/?d=a.png") == tmp_path / "photos/a.png"
    assert images.path("/data/upload/3/0123abcd-a.png") == tmp_path / "photos/a.png"
    assert images.path("https://elsewhere/deep/a.png") == tmp_path / "photos/a.png"
    with pytest.raises(DataError, match="leaves the folder of the images"):
        images.path("/data/local-files/?d=../kept/x.png")
    with pytest.raises(ServerError, match="cannot be downloaded"):
        images.path("/data/local-files/?d=none.png")


def test_start_of_training_asks_the_labeling_server_for_the_tasks(
    labeling: tuple[LabelingServer, str], png: bytes, tmp_path: Path
) -> None:
    server, address = labeling
    export = "/api/projects/3/export?exportType=JSON"
    server.files[export] = json.dumps([annotated(LEFT, "/data/upload/3/b.png")]).encode()
    server.files["/data/upload/3/b.png"] = png
    with backend(tmp_path, int(address.rpartition(":")[2])) as port:
        ask(port, "POST", "/setup", {"project": "3.17", "schema": CONFIG, "access_token": "abc"})
        event = {"action": "START_TRAINING", "project": {"id": 3, "title": "x"}}
        status, answer = ask(port, "POST", "/webhook", event)
        assert status == 201 and answer["phrases"] == 1 and answer["problems"] == []
        server.files[export] = b"<html>"
        status, answer = ask(port, "POST", "/webhook", event)
        assert status == 502 and "the answer is not JSON" in answer["error"]
    assert server.requests[:2] == [(export, "Token abc"), ("/data/upload/3/b.png", "Token abc")]
    (sample,) = read_dataset("jsonl", path=tmp_path / "out/project-3.jsonl")
    assert sample.image.read_bytes() == png and sample.mask().sum() == LEFT.sum()
