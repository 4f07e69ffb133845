"""ServerEngine against a fake server in this process, and against a real `transformers serve`."""

from __future__ import annotations

import base64
import importlib.util
import io
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import openai
import pytest
from PIL import Image
from transformers import AutoTokenizer

from sam4mllm.data.predictions import Query, read_predictions
from sam4mllm.errors import DataError, ModelError, ServerError
from sam4mllm.methods.registry import method_from_settings
from sam4mllm.mllm import server_engine
from sam4mllm.mllm.engine import Reply
from sam4mllm.mllm.loading import load_mllm
from sam4mllm.mllm.server_engine import ATTEMPTS, START_LIMIT_S, ServerEngine
from sam4mllm.mllm.transformers_engine import TransformersEngine
from sam4mllm.pipeline.batch import predict
from sam4mllm.pipeline.pipeline import Pipeline
from sam4mllm.prompts.conversation import Conversation, Turn, inference_conversation
from sam4mllm.segmenters.fake import BoxSegmenter
from sam4mllm.testing import save_tiny_mllm
from tests.mllm.fake_server import Server

IMAGE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def test_replies_come_in_the_order_asked_even_if_the_server_answers_in_reverse() -> None:
    with Server(at_once=4) as server:
        engine = ServerEngine(server.url, concurrency=4)
        replies = engine.generate([inference_conversation(IMAGE, f"question {n}") for n in range(8)], 20)
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
        assert engine.generate([inference_conversation(IMAGE, "a long one")], 5) == [
            Reply("echo: a long one", finished=False)
        ]


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """The seconds that the openai client waits between attempts; no test sleeps."""
    seconds: list[float] = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


def test_a_busy_server_is_asked_again_after_growing_waits_or_as_late_as_it_asks_for(waits) -> None:
    busy = {0: (429, {"Retry-After": "9"}, ""), 1: (503, {}, "starting"), 2: (429, {"Retry-After": "9999"}, "")}
    with Server(failure=busy.get) as server:
        assert ServerEngine(server.url, "m").generate([inference_conversation(IMAGE, "q")], 5) == [Reply("echo: q")]
    assert waits == [9.0, pytest.approx(0.875, abs=0.125), 60.0]


@pytest.mark.parametrize(
    ("status", "text", "error", "message", "attempts"),
    [
        (400, '{"error": {"message": "too\\nlong"}}', ModelError, r"rejects this question \(400: too long\)", 1),
        (422, '{"detail": "Unexpected fields"}', ModelError, r"rejects this question \(422: Unexpected fields\)", 1),
        (401, "", ServerError, r"rejects every request \(401: no message\); check its address, model and key", 1),
        (404, '{"error": "no such model"}', ServerError, r"rejects every request \(404: no such model\)", 1),
        (500, "oops", ModelError, rf"fails on this question after {ATTEMPTS} attempts \(500: oops\)", ATTEMPTS),
        (503, "full", ServerError, rf"does not answer after {ATTEMPTS} attempts \(503: full\)", ATTEMPTS),
        (200, "<html>", ServerError, "does not implement OpenAI's chat API: it answered '<html>'", 1),
        (200, '{"choices": []}', ServerError, "does not implement OpenAI's chat API", 1),
    ],
)
def test_a_request_that_fails_for_good_is_an_error_of_one_line(waits, status, text, error, message, attempts) -> None:
    with Server(failure=lambda number: (status, {}, text)) as server:
        with pytest.raises(error, match=message) as caught:
            ServerEngine(server.url, "m").generate([inference_conversation(IMAGE, "q")], 5)
        assert server.url in str(caught.value)
    assert len(server.asked) == attempts and "\n" not in str(caught.value)


class Clock:
    """A clock that sleeping advances, in place of time's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.waits: list[float] = []
        monkeypatch.setattr(time, "sleep", self.waits.append)
        monkeypatch.setattr(time, "monotonic", lambda: sum(self.waits))


@pytest.mark.parametrize("model", ["m", None])
def test_an_address_without_server_is_reported_at_once_and_given_up_within_seconds(monkeypatch, caplog, model) -> None:
    clock = Clock(monkeypatch)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(ServerError, match=rf"{url}/v1 does not answer within 15 s \(ConnectError.*start it first"):
            ServerEngine(url, model)
    assert 5 < sum(clock.waits) <= START_LIMIT_S
    (warning,) = caplog.messages
    assert f"the server {url}/v1 does not answer (ConnectError" in warning and "trying again" in warning


def test_a_server_that_is_still_starting_is_waited_for(monkeypatch, caplog) -> None:
    servers: list[Server] = []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def start(seconds: float) -> None:
        if not servers:
            servers.append(Server(port=port))
            servers[0].__enter__()

    monkeypatch.setattr(time, "sleep", start)
    try:
        engine = ServerEngine(f"http://127.0.0.1:{port}")
        assert engine.generate([inference_conversation(IMAGE, "q")], 5) == [Reply("echo: q")]
    finally:
        servers[0].__exit__()
    assert len(caplog.messages) == 1


def test_a_server_that_ends_is_reported_once_and_tried_again_for_a_minute(waits, caplog) -> None:
    with Server() as server:
        engine = ServerEngine(server.url, "m", concurrency=1)
        assert not caplog.messages
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        engine._client = engine._client.with_options(base_url=f"http://127.0.0.1:{free.getsockname()[1]}/v1")
    with pytest.raises(ServerError, match=rf"{server.url}/v1 does not answer after {ATTEMPTS} attempts \(ConnectError"):
        engine.generate([inference_conversation(IMAGE, "q")], 5)
    # Up to a quarter of each wait is taken off at random.
    longest = [min(0.5 * 2**n, 8) for n in range(ATTEMPTS - 1)]
    assert all(0.75 * most <= wait <= most for wait, most in zip(waits, longest, strict=True))
    assert 45 < sum(waits) < 65
    assert len(caplog.messages) == 1


def test_a_server_without_a_list_of_models_is_used_by_the_models_name() -> None:
    with Server(list_status=404) as server:
        assert ServerEngine(server.url, "m").generate([inference_conversation(IMAGE, "q")], 5) == [Reply("echo: q")]


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://", ""])
def test_a_text_that_is_not_an_address_is_refused(url: str) -> None:
    with pytest.raises(ModelError, match="is not an address; give it as http://host:port"):
        ServerEngine(url)


@pytest.mark.parametrize("names", [[], ["a", "b"]])
def test_of_several_models_one_must_be_named(names: list[str]) -> None:
    with (
        Server(models=names) as server,
        pytest.raises(ModelError, match=rf"has {len(names)} models \({', '.join(names)}\); name one"),
    ):
        ServerEngine(server.url)


def test_without_the_openai_package_the_extra_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ModelError, match=r"needs the openai package: pip install 'sam4mllm\[serving\]'") as caught:
        ServerEngine("http://x:1", "m")
    assert "\n" not in str(caught.value)


def test_a_lone_surrogate_in_a_reply_is_replaced_because_no_file_can_hold_it(tmp_path) -> None:
    method = method_from_settings({"name": "ppg", "positives": 2, "negatives": 1, "grid": 1000, "phrases": 1})
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    with Server(answer=lambda question: "[1,2,\ud800 \U0001f600") as server:
        pipeline = Pipeline(method, ServerEngine(server.url), BoxSegmenter())
        predict(pipeline, [Query("a", tmp_path / "a.png", "it")], tmp_path / "out")
    (line,) = read_predictions(tmp_path / "out/predictions.jsonl")
    assert (line.status, line.answer) == ("malformed", "[1,2,\ufffd \U0001f600")


def test_an_image_is_encoded_once_for_all_its_conversations(monkeypatch) -> None:
    encoded = []
    monkeypatch.setattr(server_engine, "data_url", lambda image: encoded.append(image) or "data:")
    with Server() as server:
        ServerEngine(server.url, "m").generate(
            [inference_conversation(IMAGE, str(n)) for n in range(3)] + [inference_conversation("a.png", "q")], 5
        )
    assert len(encoded) == 2


def test_a_question_without_an_image_is_sent_as_text() -> None:
    with Server() as server:
        ServerEngine(server.url, "m").generate([Conversation(None, (Turn("user", "Is ice cold?"),))], 5)
    assert server.asked[0]["messages"] == [{"role": "user", "content": "Is ice cold?"}]


def test_an_image_that_cannot_be_read_is_an_error_of_the_data(tmp_path) -> None:
    with Server() as server, pytest.raises(DataError, match="no such file"):
        ServerEngine(server.url, "m").generate([inference_conversation(tmp_path / "none.png", "q")], 5)


def has_serving_extra() -> bool:
    return all(importlib.util.find_spec(name) for name in ("fastapi", "uvicorn", "openai"))


@pytest.fixture
def served(tmp_path) -> Iterator[tuple[str, str]]:
    """(address, model) of a `transformers serve` with a tiny Qwen2-VL."""
    model = str(save_tiny_mllm("qwen2_vl", tmp_path / "model"))
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
        # The client retries refused connections until the server has imported its libraries.
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}", api_key="none", max_retries=20)
        assert client.get("/health", cast_to=object), (tmp_path / "log").read_text()
        yield f"http://127.0.0.1:{port}", model
    finally:
        process.terminate()
        process.wait()
        log.close()


@pytest.mark.skipif(not has_serving_extra(), reason="transformers serve needs fastapi, uvicorn and openai")
def test_transformers_serve_gives_the_replies_of_the_local_engine(served: tuple[str, str]) -> None:
    url, model = served
    asked = [inference_conversation(IMAGE.repeat(n + 2, axis=0), f"Where is {n}?") for n in range(4)]
    expected = TransformersEngine(load_mllm(model), 1).generate(asked, 12)
    replies = ServerEngine(url, model, concurrency=4).generate(asked, 12)
    # The server leaves special tokens in the text; a random model writes them anywhere, a trained one does not.
    added = AutoTokenizer.from_pretrained(model).added_tokens_decoder.values()
    special = re.compile("|".join(re.escape(token.content) for token in added if token.special))
    assert [Reply(special.sub("", reply.text).strip(), reply.finished) for reply in replies] == expected
