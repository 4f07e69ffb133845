"""The backend and a labeling server on localhost, for tests."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from sam4mllm.labeling.backend import LabelStudioBackend
from sam4mllm.labeling.server import create_server
from sam4mllm.labeling.task_images import TaskImages
from tests.cli.scripted import scripted_pipeline

CONFIG = """<View><Image name="photo" value="$photo"/><BrushLabels name="brush" toName="photo">
<Label value="the left one"/><Label value="object"/></BrushLabels>
<TextArea name="words" toName="photo" perRegion="true"/></View>"""


@contextmanager
def serving(server: ThreadingHTTPServer) -> Iterator[int]:
    """Serve in a thread; yield the port."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class LabelingServer:
    """A labeling server: files at paths, the exported tasks of project 3, redirects, and what it was sent."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.requests: list[tuple[str, str | None]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests.append((self.path, self.headers.get("Authorization")))
                if self.path in outer.redirects:
                    self.send_response(302)
                    self.send_header("Location", outer.redirects[self.path])
                    self.end_headers()
                    return
                content = outer.files.get(self.path)
                self.send_response(404 if content is None else 200)
                self.end_headers()
                self.wfile.write(content or b"")

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append((self.path, body["refresh"]))
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b'{"access": "short"}')

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)


@contextmanager
def backend(folder: Path, labeling_port: int = 1, allowed: tuple[str, ...] = ()) -> Iterator[int]:
    """Run the backend with scripted answers on images of `folder`/photos; yield its port."""
    images = TaskImages(folder / "photos", f"http://127.0.0.1:{labeling_port}", allowed, folder / "out/images")
    served = LabelStudioBackend(scripted_pipeline(), images, folder / "out", "run-1")
    with serving(create_server(served, "127.0.0.1", 0)) as port:
        yield port


def ask(port: int, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    """Send a request as Label Studio does; return the status and the JSON of the answer."""
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    content = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request(method, path, content, {"Content-Type": "application/json", **headers})
    answer = connection.getresponse()
    result = answer.status, json.loads(answer.read())
    connection.close()
    return result
