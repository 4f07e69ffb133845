"""A server in this process that speaks the part of OpenAI's chat protocol that the engine uses, and answers by echo."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server:
    """Answers the last question by `answer`, each `at_once` requests together and the last of them first.

    `trouble` gives (status, headers, body) for the n-th request, or None where it is to be answered.
    """

    def __init__(
        self,
        at_once: int = 1,
        trouble: Callable[[int], tuple[int, dict, str] | None] = lambda number: None,
        answer: Callable[[str], str] = lambda question: f" echo: {question}\n",
    ) -> None:
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self._trouble = trouble
        self._say = answer
        self._all_here = threading.Barrier(at_once)
        self._turn = threading.Condition()
        self._waiting: defaultdict[int, list[int]] = defaultdict(list)
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.send(200, {}, json.dumps({"data": [{"id": "the-model"}]}))

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

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def answer(self, path: str, body: dict[str, Any], key: str | None) -> tuple[int, dict, str]:
        assert path == "/v1/chat/completions"
        with self._turn:
            number = len(self.asked)
            self.asked.append(body)
            self.keys.append(key)
            if (trouble := self._trouble(number)) is not None:
                return trouble
            self._waiting[number // self._all_here.parties].append(number)
        self._all_here.wait(timeout=60)
        with self._turn:
            # The last come is the first served. The next ones, which already come in, do not hold these back.
            together = self._waiting[number // self._all_here.parties]
            assert self._turn.wait_for(lambda: together[-1] == number, timeout=60)
            together.pop()
            self._turn.notify_all()
        last = body["messages"][-1]["content"]
        text = last if isinstance(last, str) else last[-1]["text"]
        reason = "length" if "long" in text else "stop"
        message = {"message": {"role": "assistant", "content": self._say(text)}, "finish_reason": reason}
        return 200, {}, json.dumps({"choices": [message]})

    def __enter__(self) -> Server:
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()
