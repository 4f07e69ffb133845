"""Requests to the page that no browser sends: no file of the server is readable, and large bodies are refused."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest

from sam4mllm.app.saving import CorrectedData
from sam4mllm.cli.main import main
from sam4mllm.pipeline.pipeline import Pipeline
from tests.app.pages import scripted_models
from tests.app_page.served import LIMITS, Served, free_port, served
from tests.cli.scripted import scripted_pipeline
from tests.data.tiny_datasets import write_image
from tests.test_readme import commands

pytest.importorskip("gradio")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("page")
    write_image(folder / "root/photos/a.png")
    with served(folder) as each:
        yield each


def send(page: Served, head: str, body: bytes = b"") -> bytes:
    """The answer to a request that is sent as it is: clients would normalize its path."""
    parts = urlsplit(page.address)
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=60) as connection:
        connection.sendall(f"{head}\r\nHost: {parts.netloc}\r\nConnection: close\r\n".encode())
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        connection.sendall(f"{length}\r\n".encode() + body)
        return b"".join(iter(lambda: connection.recv(2**16), b""))


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


SECRETS = ("/etc/passwd", "{root}/photos/a.png", "{data}", "{cwd}/pyproject.toml")
ROUTES = (
    "/gradio_api/file={}",
    "/file={}",
    "/gradio_api/file={}/",
    "/gradio_api/stream/{}",
    "/gradio_api/proxy=file://{}",
)
CLIMBS = (
    "/gradio_api/file=../../../../../../etc/passwd",
    "/gradio_api/file=%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    "/gradio_api/file=//etc/passwd",
    "/gradio_api/file=/etc/./passwd",
    "/gradio_api/file=file:///etc/passwd",
    "/gradio_api/file={files}/../../../../../../../../../etc/passwd",
    "/gradio_api/file={files}/..%2f..%2f..%2f..%2f..%2f..%2f..%2fetc/passwd",
    "/assets/../../../../../../../../etc/passwd",
    "/assets/..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2fetc%2fpasswd",
    "/static/../../../../../../../../../etc/passwd",
    "/static/..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2fetc%2fpasswd",
    "/theme/../../../etc/passwd",
    "/../../../../etc/passwd",
)


def test_no_file_of_the_server_is_readable_by_its_path(page: Served) -> None:
    page.data.write_text('{"secret": 1}\n')
    for secret in SECRETS:
        path = secret.format(root=page.root, data=page.data, cwd=Path.cwd())
        content = Path(path).read_bytes()[:200]
        for route in ROUTES:
            answer = send(page, f"GET {route.format(path)} HTTP/1.1")
            assert status(answer) >= 400 and content not in answer, (route, path)
    page.data.unlink()


def test_no_file_of_the_server_is_readable_by_climbing(page: Served) -> None:
    from gradio.utils import get_upload_folder

    for path in CLIMBS:
        answer = send(page, f"GET {path.format(files=get_upload_folder())} HTTP/1.1")
        assert b"root:" not in answer, path


def test_no_event_takes_a_path_or_an_address_as_an_upload(page: Served) -> None:
    """The event of "Segment" gets a file of the server in the place of an upload."""
    config = json.loads(send(page, "GET /config HTTP/1.1").partition(b"\r\n\r\n")[2])
    image = next(each["id"] for each in config["components"] if each["props"].get("elem_id") == "image")
    event = next(each["id"] for each in config["dependencies"] if each["inputs"][:1] == [image])
    for path in ("/etc/passwd", str(page.root / "photos/a.png"), "http://127.0.0.1:9/a.png"):
        data = [{"path": path, "meta": {"_type": "gradio.FileData"}}, "left", False, False]
        body = json.dumps({"data": data, "fn_index": event, "session_hash": "s"}).encode()
        joined = send(page, "POST /gradio_api/queue/join HTTP/1.1\r\nContent-Type: application/json", body)
        assert status(joined) == 200
        answer = send(page, "GET /gradio_api/queue/data?session_hash=s HTTP/1.1")
        assert b'"success":false' in answer and b'"success":true' not in answer, path


def test_an_address_is_not_downloaded(tmp_path: Path) -> None:
    from sam4mllm.app.page import build_page
    from sam4mllm.errors import DataError

    built = build_page(scripted_models(), CorrectedData(tmp_path / "a.jsonl"), None, None, tmp_path, LIMITS)
    (image,) = [each for each in built.blocks.values() if each.elem_id == "image"]
    for address in ("http://127.0.0.1/a.png", "https://host/a.png"):
        with pytest.raises(DataError, match="addresses are not downloaded"):
            asyncio.run(image.async_move_resource_to_block_cache(address))
    assert asyncio.run(image.async_move_resource_to_block_cache(str(write_image(tmp_path / "a.png"))))


def test_large_bodies_and_bodies_without_a_length_are_refused(page: Served) -> None:
    head = "POST /gradio_api/upload HTTP/1.1\r\nContent-Type: multipart/form-data; boundary=x"
    assert status(send(page, f"{head}\r\nContent-Length: {LIMITS.upload_bytes + 2**20}")) == 413
    assert status(send(page, f"{head}\r\nTransfer-Encoding: chunked")) == 411
    part = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\nabc\r\n--x--\r\n'
    assert status(send(page, head, part)) == 200


def test_the_page_offers_no_description_of_an_interface_to_programs(page: Served) -> None:
    config = json.loads(send(page, "GET /config HTTP/1.1").partition(b"\r\n\r\n")[2])
    assert {each["api_visibility"] for each in config["dependencies"]} == {"private"}
    assert not config["analytics_enabled"]
    for path in ("/openapi.json", "/docs", "/redoc"):
        assert status(send(page, f"GET {path} HTTP/1.1")) == 404


def test_the_command_of_the_documentation_serves_until_it_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "photos/a.png")
    (tmp_path / "mine").mkdir()
    monkeypatch.setattr(Pipeline, "from_pretrained", scripted_pipeline)
    pages: list[bytes] = []

    class Stopped:
        """An event: in the place of waiting, the page is requested and the program interrupted."""

        def wait(self) -> None:
            address = capsys.readouterr().err.split()[2].rstrip(";")
            pages.append(send(Served(address, Path(), Path(), Path()), "GET /config HTTP/1.1"))
            raise KeyboardInterrupt

    monkeypatch.setattr("sam4mllm.cli.app.threading", SimpleNamespace(Event=Stopped))
    page = (Path(__file__).parents[2] / "docs/app.md").read_text(encoding="utf-8")
    (words,) = [words for words in commands(page) if words[0] == "sam4mllm"]
    port = str(free_port())
    assert main([*words[1:], "--port", port, "--compare", "shapes"]) == 130
    assert b'"Save to corrections.jsonl"' in pages[0] and b'"Beside it: shapes"' in pages[0]
    with socket.create_server(("127.0.0.1", int(port))):
        assert main([*words[1:], "--port", port]) == 2
    assert f"127.0.0.1:{port}: cannot be listened at" in capsys.readouterr().err
