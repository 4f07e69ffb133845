"""What the page accepts: the sizes and numbers of uploads, images, phrases and points, and the names of files.

A request whose body is too large is refused before it is read, and so are uploads above the number of an hour.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam4mllm.data.images import Rgb, known_size_wh, load_image
from sam4mllm.data.records import check_phrase, shorten
from sam4mllm.errors import DataError

_HOUR_S = 3600.0
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", re.ASCII)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of the page.

    upload_bytes: the largest body of a request, and so the largest image file.
    uploads_per_hour: uploads by all users together.
    pixels: the largest image, width times height.
    phrases: the phrases of one question.
    points: the clicks on one object.
    folder_images: the images of a folder.
    sessions: users whose last answers are kept for correction; the longest unused are forgotten.
    """

    upload_bytes: int = 20 * 2**20
    uploads_per_hour: int = 500
    pixels: int = 2**24
    phrases: int = 16
    points: int = 64
    folder_images: int = 1000
    sessions: int = 16


def load_upload(path: Path, limits: Limits) -> Rgb:
    """Load an uploaded image file as RGB (H, W, 3) uint8, with its EXIF orientation applied.

    Raises:
        DataError: It is not an image, or it has more bytes or pixels than allowed. The message has no path.
    """
    if path.stat().st_size > limits.upload_bytes:
        raise DataError(f"the file has more than {limits.upload_bytes >> 20} MiB; upload a smaller one", "image")
    try:
        size_wh = known_size_wh(path)
        if size_wh is not None and size_wh[0] * size_wh[1] > limits.pixels:
            raise DataError(f"the image has {size_wh[0]} x {size_wh[1]} pixels; at most {limits.pixels} are allowed")
        return load_image(path)
    except DataError as error:
        # Messages of the readers begin with the path, which is that of a temporary file of the server.
        raise DataError(str(error).removeprefix(f"{path}: "), "image") from error


def parse_phrases(text: str, limits: Limits) -> list[str]:
    """Return the phrases of a text, one per line, without empty and repeated lines.

    Raises:
        DataError: No phrase, too many, or one that is too long.
    """
    phrases = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if not phrases:
        raise DataError("there is no phrase; type one per line, such as: the red ring", "phrase")
    if len(phrases) > limits.phrases:
        raise DataError(f"there are {len(phrases)} phrases; at most {limits.phrases} are answered at once", "phrase")
    for number, phrase in enumerate(phrases, start=1):
        check_phrase(phrase, f"line {number}")
    return phrases


def check_name(name: str) -> str:
    """Return a file name without folder and suffix that is safe in every file system.

    Raises:
        DataError: It is empty, has other characters than ASCII letters, digits, "_", "-" and ".", or begins with "."
            or "-", or is longer than 100 characters.
    """
    if not _NAME.fullmatch(name):
        raise DataError(
            f"{shorten(name)} is not a valid name of an image; use at most 100 letters, digits, '_', '-' and '.', and "
            "begin with a letter, a digit or '_'"
        )
    return name


class RequestLimit:
    """An ASGI middleware that refuses requests with too large a body, and too many uploads in an hour.

    A body of unknown length is refused with status 411, a too large one with 413, an upload above the number with 429.

    Args:
        app: The application that gets all other requests.
        limits: The limits.
        clock: Returns seconds.
    """

    def __init__(self, app: AsgiApp, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._limits = limits
        self._clock = clock
        self._uploads: deque[float] = deque()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with an error."""
        refused = self._refusal(scope) if scope["type"] == "http" else None
        if refused is None:
            await self._app(scope, receive, send)
            return
        status, message = refused
        headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": message.encode()})

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Return status and message for a request that is refused, else None; counts uploads."""
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return None
        length = dict(scope["headers"]).get(b"content-length", b"").decode("latin-1")
        if not length.isdecimal():
            return 411, "a request needs a Content-Length"
        # A multipart body has some bytes more than its file.
        if int(length) > self._limits.upload_bytes + 2**16:
            return 413, f"the body has more than {self._limits.upload_bytes >> 20} MiB"
        if scope["path"].rstrip("/").endswith("/upload"):
            now = self._clock()
            while self._uploads and now - self._uploads[0] >= _HOUR_S:
                self._uploads.popleft()
            if len(self._uploads) >= self._limits.uploads_per_hour:
                return 429, f"more than {self._limits.uploads_per_hour} uploads in an hour; try again later"
            self._uploads.append(now)
        return None
