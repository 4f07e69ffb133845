"""Runs `sam4mllm label-studio` until a function has been called with the port that it listens at."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import ThreadingHTTPServer
from typing import Any

import pytest

from sam4mllm.cli.main import main
from sam4mllm.labeling import server


def run_while_serving(arguments: list[str], use: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> int:
    """Run the subcommand at any free port; return its exit status after `use` has returned or raised."""
    raised: list[BaseException] = []
    create = server.create_server

    def create_and_use(backend: Any, host: str, port: int) -> ThreadingHTTPServer:
        created = create(backend, host, 0)

        def call() -> None:
            try:
                use(created.server_address[1])
            except BaseException as error:
                raised.append(error)
            finally:
                created.shutdown()

        threading.Thread(target=call, daemon=True).start()
        return created

    monkeypatch.setattr(server, "create_server", create_and_use)
    status = main(["label-studio", *arguments])
    if raised:
        raise raised[0]
    return status
