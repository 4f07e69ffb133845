"""The images of tasks: files of one folder, or downloads from the labeling server and from addresses that were allowed.

A task can name any address, so nothing else is opened: not a file outside the folder, and no other server, also not
after a redirect. The token of the labeling server is sent to that server only.
"""

from __future__ import annotations

import hashlib
import json
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from sam4mllm.data.images import IMAGE_SUFFIXES
from sam4mllm.data.readers.label_studio import local_image
from sam4mllm.data.records import file_exists, shorten
from sam4mllm.errors import DataError, ServerError
from sam4mllm.utils.atomic_io import atomic_path

_TIMEOUT_S = 30
_LARGEST_BYTES = 256 * 2**20
KEY_VARIABLE = "LABEL_STUDIO_API_KEY"
"""The environment variable that replaces the token that the labeling server gives."""


class TaskImages:
    """Finds the image of a task.

    Args:
        folder: The folder of local images; None for none.
        server: The address of the labeling server, such as "http://localhost:8080".
        allowed: Further addresses whose images may be downloaded, such as "https://host/photos/".
        downloads: The folder that downloads are kept in.
    """

    def __init__(self, folder: Path | None, server: str, allowed: Sequence[str], downloads: Path) -> None:
        self.folder = folder
        self.server = server.rstrip("/") + "/"
        self._allowed = (self.server, *allowed)
        self._downloads = downloads
        self._token: str | None = os.environ.get(KEY_VARIABLE)
        self._has_own_key = self._token is not None
        self._opener = urllib.request.build_opener(_CheckedRedirects(self))

    def use_token(self, token: object) -> None:
        """Use the token that the labeling server gave, unless the environment has one."""
        if not self._has_own_key and isinstance(token, str) and token:
            self._token = token

    def path(self, url: str) -> Path:
        """Return the absolute path of the image that a task names, after a download if it is not in the folder.

        Raises:
            DataError: It is not in the folder, and its address is not allowed.
            ServerError: It cannot be downloaded.
        """
        if self.folder is not None:
            local = self.folder / local_image(url, self.folder)
            if file_exists(local):
                return local.absolute()
        if urlsplit(url).scheme not in ("", "http", "https"):
            raise DataError(f"the image {shorten(url)} is not in the folder of --images; sync it to a local folder")
        address = urljoin(self.server, url)
        suffix = Path(urlsplit(address).path).suffix.lower()
        name = hashlib.sha256(address.encode()).hexdigest()[:24] + (suffix if suffix in IMAGE_SUFFIXES else "")
        file = self._downloads / name
        if not file_exists(file):
            content = self.download(address)
            self._downloads.mkdir(parents=True, exist_ok=True)
            with atomic_path(file) as unfinished:
                unfinished.write_bytes(content)
        return file.absolute()

    def is_allowed(self, address: str) -> bool:
        """Return whether an address begins with an allowed one: scheme, host and port are equal, and so is the path."""
        parts = urlsplit(address)
        for allowed in map(urlsplit, self._allowed):
            equal = (parts.scheme, parts.netloc) == (allowed.scheme, allowed.netloc)
            # Servers resolve "..", so such a path may be outside.
            if equal and parts.path.startswith(allowed.path or "/") and ".." not in unquote(parts.path):
                return True
        return False

    def download(self, address: str) -> bytes:
        """Download the content of an allowed address.

        Raises:
            DataError: The address is not allowed.
            ServerError: No answer, an error, or too large a content.
        """
        return self._request(urllib.request.Request(self._checked(address)), self._authorization(address))

    def _checked(self, address: str) -> str:
        if urlsplit(address).scheme not in ("http", "https") or not self.is_allowed(address):
            raise DataError(
                f"{shorten(address)} is not in the folder of --images and not of the labeling server {self.server}; "
                "allow its address with --allow-url"
            )
        return address

    def _authorization(self, address: str) -> str | None:
        """Return the header for the labeling server; a personal access token is exchanged for a short-lived one."""
        if self._token is None or not address.startswith(self.server):
            return None
        if self._token.count(".") != 2:
            return f"Token {self._token}"
        body = json.dumps({"refresh": self._token}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(urljoin(self.server, "api/token/refresh"), body, headers)
        answer: Any = _json(self._request(request, None), request.full_url)
        return f"Bearer {answer.get('access')}" if isinstance(answer, dict) else None

    def _request(self, request: urllib.request.Request, authorization: str | None) -> bytes:
        if authorization is not None:
            # An unredirected header is not sent again to the address of a redirect.
            request.add_unredirected_header("Authorization", authorization)
        try:
            with self._opener.open(request, timeout=_TIMEOUT_S) as answer:
                content: bytes = answer.read(_LARGEST_BYTES + 1)
        except urllib.error.HTTPError as error:
            raise ServerError(f"{request.full_url}: {error.code} {error.reason}") from error
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise ServerError(f"{request.full_url}: cannot be downloaded: {reason}") from error
        if len(content) > _LARGEST_BYTES:
            raise ServerError(f"{request.full_url}: is larger than {_LARGEST_BYTES >> 20} MiB")
        return content

    def tasks_of(self, project: str) -> Any:
        """Return the annotated tasks of a project, which the labeling server exports as JSON.

        Raises:
            ServerError: The server does not give them.
        """
        address = urljoin(self.server, f"api/projects/{project}/export?exportType=JSON")
        return _json(self.download(address), address)


class _CheckedRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to allowed addresses only."""

    def __init__(self, images: TaskImages) -> None:
        self._images = images

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """Return the request of the new address.

        Raises:
            DataError: It is not allowed.
        """
        self._images._checked(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _json(content: bytes, address: str) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise ServerError(f"{address}: the answer is not JSON: {error}") from error
