"""The HTTP server of the ML backend: JSON in, JSON out, with limits on the size and the kind of requests.

Only requests of the content type application/json are answered: a page in a browser cannot send them to this server
without its permission, which it does not give.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from sam4mllm.errors import Sam4mllmError, ServerError
from sam4mllm.labeling.backend import LabelStudioBackend

logger = logging.getLogger(__name__)

LARGEST_REQUEST_BYTES = 256 * 2**20
"""The maximum size of a request, which may hold all annotated tasks of a project."""

_IDLE_S = 60


def create_server(backend: LabelStudioBackend, host: str, port: int) -> ThreadingHTTPServer:
    """Return a server that listens at host and port; 0 is any free port. `serve_forever` answers requests.

    Raises:
        ServerError: The address is taken or not of this machine.
    """

    class Handler(_Handler):
        """The handler of this backend's requests."""

        routes = _routes(backend)

    try:
        return ThreadingHTTPServer((host, port), Handler)
    except OSError as error:
        raise ServerError(
            f"cannot listen at {host}:{port}: {error.strerror}; choose another --host or --port"
        ) from error


def _routes(backend: LabelStudioBackend) -> dict[tuple[str, str], Callable[[Mapping[str, Any]], tuple[int, Any]]]:
    health = {"status": "UP", "model_class": "sam4mllm"}
    return {
        ("GET", "/"): lambda body: (200, health),
        ("GET", "/health"): lambda body: (200, health),
        ("GET", "/versions"): lambda body: (200, {"versions": [backend.model_version]}),
        ("POST", "/setup"): lambda body: (200, backend.setup(body)),
        ("POST", "/predict"): lambda body: (200, backend.predict(body)),
        ("POST", "/webhook"): lambda body: (201, backend.webhook(body)),
        ("POST", "/train"): lambda body: (201, backend.train(body)),
    }


class _Handler(BaseHTTPRequestHandler):
    routes: Mapping[tuple[str, str], Callable[[Mapping[str, Any]], tuple[int, Any]]] = {}
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_S

    def do_GET(self) -> None:
        """Answer a GET request."""
        self._answer("GET", {})

    def do_POST(self) -> None:
        """Answer a POST request, whose body is a JSON object."""
        if self.headers.get_content_type() != "application/json":
            return self._refuse(415, "the content type must be application/json")
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            return self._refuse(411, "the header Content-Length is missing")
        if int(length) > LARGEST_REQUEST_BYTES:
            return self._refuse(413, f"the request is larger than {LARGEST_REQUEST_BYTES >> 20} MiB")
        try:
            body = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError) as error:
            return self._send(400, {"error": f"the body must be JSON: {error}"})
        if not isinstance(body, dict):
            return self._send(400, {"error": "the body must be a JSON object"})
        return self._answer("POST", body)

    def _answer(self, method: str, body: Mapping[str, Any]) -> None:
        path = self.path.partition("?")[0]
        route = self.routes.get((method, path))
        if route is None:
            return self._send(404, {"error": f"no such address: {method} {path:.80}"})
        try:
            status, answer = route(body)
        except ServerError as error:
            status, answer = 502, {"error": str(error)}
        except Sam4mllmError as error:
            status, answer = 400, {"error": str(error)}
        # A defect: the traceback is logged, and the client gets an answer.
        except Exception as error:
            logger.exception("%s %s", method, path)
            status, answer = 500, {"error": f"{type(error).__name__}: {error}"}
        return self._send(status, answer)

    def _refuse(self, status: int, message: str) -> None:
        """Answer without reading the body, so the connection cannot be used again."""
        self.close_connection = True
        self._send(status, {"error": message})

    def _send(self, status: int, answer: Any) -> None:
        content = json.dumps(answer, allow_nan=False).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Log a request."""
        logger.info("%s %s", self.address_string(), format % args)
