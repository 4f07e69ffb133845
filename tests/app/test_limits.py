"""What the page accepts: uploads, phrases, names and requests."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import pytest

from sam4mllm.app.limits import Limits, RequestLimit, check_name, load_upload, parse_phrases
from sam4mllm.errors import DataError
from tests.data.tiny_datasets import write_image


def test_an_upload_is_loaded_as_it_is_displayed(tmp_path: Path) -> None:
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    assert load_upload(write_image(tmp_path / "a.jpg", 20, 10, exif=exif), Limits()).shape == (20, 10, 3)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(pixels=199), r"^the image has 20 x 10 pixels; at most 199 are allowed"),
        (Limits(upload_bytes=10), r"^the file has more than 0 MiB"),
    ],
)
def test_large_uploads_are_refused(tmp_path: Path, limits: Limits, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_upload(write_image(tmp_path / "a.png", 20, 10), limits)


def test_the_error_about_an_upload_has_no_path_of_the_server(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("<svg/>")
    with pytest.raises(DataError, match=r"^not an image that can be read") as error:
        load_upload(tmp_path / "a.png", Limits())
    assert str(tmp_path) not in str(error.value)


def test_phrases_are_the_lines_of_the_text() -> None:
    assert parse_phrases(" the cat \n\nthe dog\r\nthe cat\n", Limits()) == ["the cat", "the dog"]


@pytest.mark.parametrize(
    ("text", "message"), [(" \n", "there is no phrase"), ("a\nb\nc", "3 phrases; at most 2"), ("x" * 5000, "line 1")]
)
def test_phrases_are_limited(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_phrases(text, Limits(phrases=2))


@pytest.mark.parametrize("name", ["a", "IMG_0001", "a.b-c", "9" * 100])
def test_valid_names_of_images(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".a", "-a", "a/b", "../a", "a\\b", "a b", "a\n", "é", "a\0", "9" * 101]
)
def test_names_that_are_no_plain_file_names_are_refused(name: str) -> None:
    with pytest.raises(DataError, match="not a valid name"):
        check_name(name)


def answers_to(requests: list[dict[str, Any]], limits: Limits, times: list[float]) -> list[int]:
    """The statuses of requests; 200 is that of the application behind the middleware."""
    statuses: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        statuses.append(200)

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    async def receive() -> dict[str, Any]:
        raise AssertionError("the body of a refused request is not read")

    middleware = RequestLimit(app, limits, clock=iter(times).__next__)
    for request in requests:
        length = request.pop("length", "10")
        headers = [] if length is None else [(b"content-length", length.encode())]
        scope = {"type": "http", "method": "POST", "path": "/x", "headers": headers, **request}
        asyncio.run(middleware(scope, receive, send))
    return statuses


def test_requests_with_a_large_body_are_refused() -> None:
    lengths: list[str | None] = ["10", str(2**20 + 2**16), str(2**20 + 2**16 + 1), None, "x", "-1"]
    requests = [{"length": length} for length in lengths]
    assert answers_to(requests, Limits(upload_bytes=2**20), []) == [200, 200, 413, 411, 411, 411]
    assert answers_to([{"method": "GET", "length": None}, {"type": "lifespan"}], Limits(), []) == [200, 200]


def test_uploads_are_counted_in_the_last_hour() -> None:
    paths = ["/gradio_api/upload", "/upload/", "/upload", "/queue/join", "/upload", "/upload"]
    times = [0.0, 1.0, 2.0, 3600.0, 3600.5]
    statuses = answers_to([{"path": path} for path in paths], Limits(uploads_per_hour=2), times)
    assert statuses == [200, 200, 429, 200, 200, 429]
