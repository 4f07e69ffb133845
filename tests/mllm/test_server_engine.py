"""ServerEngine against a server in this process that speaks the protocol, and against a real `transformers serve`."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator

import httpx2
import numpy as np
import pytest
from PIL import Image
from transformers import AutoTokenizer

from sam4mllm.errors import DataError, ModelError, ServerError
from sam4mllm.mllm.engine import Reply
from sam4mllm.mllm.loading import load_mllm
from sam4mllm.mllm.server_engine import ATTEMPTS, ServerEngine
from sam4mllm.mllm.transformers_engine import TransformersEngine
from sam4mllm.prompts.conversation import Conversation, Turn, asking
from tests.mllm import tiny
from tests.mllm.fake_server import Server

IMAGE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def test_answers_come_in_the_order_asked_though_the_server_turns_it_round() -> None:
    with Server(at_once=4) as server:
        engine = ServerEngine(server.url, concurrency=4)
        replies = engine.generate([asking(IMAGE, f"question {n}") for n in range(8)], 20)
    assert replies == [Reply(f"echo: question {n}") for n in range(8)]
    assert engine.model == "the-model" and {body["model"] for body in server.asked} == {"the-model"}


def test_the_request_is_greedy_and_carries_the_pixels_and_every_turn() -> None:
    turns = (Turn("user", "first?"), Turn("assistant", "an answer"), Turn("user", "second?"))
    with Server() as server:
        ServerEngine(server.url, "m", api_key="k", concurrency=1).generate([Conversation(IMAGE, turns)], 7)
    (body,) = server.asked
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0, 7)
    first, answer, second = body["messages"]
    assert [part["type"] for part in first["content"]] == ["image_url", "text"]
    assert first["content"][1]["text"] == "first?"
    assert answer == {"role": "assistant", "content": "an answer"}
    assert second == {"role": "user", "content": "second?"}
    head, _, data = first["content"][0]["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    assert (np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) == IMAGE).all()
    assert server.keys == ["Bearer k"]


def test_a_reply_that_the_limit_cut_off_is_not_finished() -> None:
    with Server() as server:
        engine = ServerEngine(server.url, "m")
        assert engine.generate([asking(IMAGE, "a long one")], 5) == [Reply("echo: a long one", finished=False)]


def test_a_busy_server_is_asked_again_ever_later_and_as_late_as_it_says() -> None:
    busy = {0: (429, {"Retry-After": "9"}, ""), 1: (503, {}, "starting"), 2: (429, {"Retry-After": "9999"}, "")}
    waits: list[float] = []
    with Server(trouble=busy.get) as server:
        engine = ServerEngine(server.url, "m", sleep=waits.append)
        assert engine.generate([asking(IMAGE, "q")], 5) == [Reply("echo: q")]
    assert waits == [9.0, 1.0, 60.0]


def answering(status: int, text: str, calls: list[int]) -> httpx2.MockTransport:
    def respond(request: httpx2.Request) -> httpx2.Response:
        calls.append(status)
        return httpx2.Response(status, text=text)

    return httpx2.MockTransport(respond)


@pytest.mark.parametrize(
    ("status", "text", "error", "message", "attempts"),
    [
        (400, '{"error": {"message": "too\\nlong"}}', ModelError, r"refuses this question \(400: too long\)", 1),
        (422, '{"detail": "Unexpected fields"}', ModelError, r"refuses this question \(422: Unexpected fields\)", 1),
        (401, "", ServerError, r"refuses us \(401: without a word\); check its address, model and key", 1),
        (404, '{"error": "no such model"}', ServerError, r"refuses us \(404: no such model\)", 1),
        (500, "oops", ModelError, rf"fails at this question, tried {ATTEMPTS} times \(500: oops\)", ATTEMPTS),
        (503, "full", ServerError, rf"does not answer, tried {ATTEMPTS} times \(503: full\)", ATTEMPTS),
        (200, "<html>", ServerError, "does not speak OpenAI's chat protocol: it answered '<html>'", 1),
        (200, '{"choices": []}', ServerError, "does not speak OpenAI's chat protocol", 1),
    ],
)
def test_what_cannot_be_mended_is_said_on_one_line(status, text, error, message, attempts) -> None:
    calls: list[int] = []
    transport = answering(status, text, calls)
    engine = ServerEngine("http://x:1", "m", transport=transport, sleep=lambda seconds: None)
    with pytest.raises(error, match=message) as caught:
        engine.generate([asking(IMAGE, "q")], 5)
    assert len(calls) == attempts and "\n" not in str(caught.value)


def test_a_server_that_is_not_there_is_tried_again_and_then_named() -> None:
    waits: list[float] = []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(ServerError, match=rf"{url}/v1 does not answer, tried {ATTEMPTS} times \(ConnectError"):
            ServerEngine(url, "m", sleep=waits.append).generate([asking(IMAGE, "q")], 5)
    assert waits == [0.5 * 2**n for n in range(ATTEMPTS - 1)]


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://", ""])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(ModelError, match="is no address; give it as http://host:port"):
        ServerEngine(url)


@pytest.mark.parametrize("names", [[], ["a", "b"]])
def test_of_several_models_one_must_be_named(names: list[str]) -> None:
    listed = json.dumps({"data": [{"id": name} for name in names]})
    with pytest.raises(ModelError, match=rf"has {len(names)} models \({', '.join(names)}\); name one"):
        ServerEngine("http://x:1", transport=answering(200, listed, []))


def test_a_image_that_is_none_is_the_datas_fault(tmp_path) -> None:
    with Server() as server, pytest.raises(DataError, match="no such file"):
        ServerEngine(server.url, "m").generate([asking(tmp_path / "none.png", "q")], 5)


def serving_is_installed() -> bool:
    return all(importlib.util.find_spec(name) for name in ("fastapi", "uvicorn", "openai"))


@pytest.fixture
def served(tmp_path) -> Iterator[tuple[str, str]]:
    """(address, model) of a `transformers serve` with a tiny Qwen2-VL."""
    model = str(tiny.save_qwen2_vl(tmp_path / "model"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = "from transformers.cli.transformers import app; app()"
    log = (tmp_path / "log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-c", command, "serve", model, "--port", str(port), "--device", "cpu"],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        stdout=log,
        stderr=log,
    )
    try:
        # A refused connection costs the transport its own waits; it takes a while until all is imported.
        transport = httpx2.HTTPTransport(retries=10)
        with httpx2.Client(transport=transport, timeout=120) as client:
            assert client.get(f"http://127.0.0.1:{port}/health").status_code == 200, (tmp_path / "log").read_text()
        yield f"http://127.0.0.1:{port}", model
    finally:
        process.terminate()
        process.wait()
        log.close()


@pytest.mark.skipif(not serving_is_installed(), reason="transformers serve needs fastapi, uvicorn and openai")
def test_transformers_serve_answers_as_the_model_here(served: tuple[str, str]) -> None:
    url, model = served
    asked = [asking(IMAGE.repeat(n + 2, axis=0), f"Where is {n}?") for n in range(4)]
    expected = TransformersEngine(load_mllm(model), 1).generate(asked, 12)
    replies = ServerEngine(url, model, concurrency=4).generate(asked, 12)
    # The server leaves special tokens in the text; a random model writes them anywhere, a trained one does not.
    special = re.compile("|".join(map(re.escape, AutoTokenizer.from_pretrained(model).get_added_vocab())))
    assert [Reply(special.sub("", reply.text).strip(), reply.finished) for reply in replies] == expected
