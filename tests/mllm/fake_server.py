"""A server in this process with the part of OpenAI's chat API that the engine uses; it echoes the question."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server:
    """Answers the last question by `answer`: `at_once` requests are held back, then answered in reverse order.

    `failure` returns (status, headers, body) for the n-th request, or None if that request is to be answered. `models`
    are the ids that the server lists, with the owner `owner` and the status `list_status`; `port` 0 is a free one.
    """

    def __init__(
        self,
        at_once: int = 1,
        failure: Callable[[int], tuple[int, dict, str] | None] = lambda number: None,
        answer: Callable[[str], str] = lambda question: f" echo: {question}\n",
        models: Sequence[str] = ("the-model",),
        owner: str = "",
        list_status: int = 200,
        port: int = 0,
    ) -> None:
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self._failure = failure
        self._answer_text = answer
        self._barrier = threading.Barrier(at_once)
        self._order = threading.Condition()
        self._waiting: defaultdict[int, list[int]] = defaultdict(list)
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.send(list_status, {}, json.dumps({"data": [{"id": name, "owned_by": owner} for name in models]}))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self.send(*server.answer(self.path, body, self.headers["Authorization"]))

            def send(self, status: int, headers: dict[str, str], text: str) -> None:
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(text.encode()))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *arguments: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def answer(self, path: str, body: dict[str, Any], key: str | None) -> tuple[int, dict, str]:
        assert path == "/v1/chat/completions"
        with self._order:
            number = len(self.asked)
            self.asked.append(body)
            self.keys.append(key)
            if (failure := self._failure(number)) is not None:
                return failure
            self._waiting[number // self._barrier.parties].append(number)
        self._barrier.wait(timeout=60)
        with self._order:
            # The last request of a group is answered first. Requests of the next group do not delay this one.
            group = self._waiting[number // self._barrier.parties]
            assert self._order.wait_for(lambda: group[-1] == number, timeout=60)
            group.pop()
            self._order.notify_all()
        last = body["messages"][-1]["content"]
        text = last if isinstance(last, str) else last[-1]["text"]
        reason = "length" if "long" in text else "stop"
        message = {"message": {"role": "assistant", "content": self._answer_text(text)}, "finish_reason": reason}
        return 200, {}, json.dumps({"choices": [message]})

    def __enter__(self) -> Server:
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()
