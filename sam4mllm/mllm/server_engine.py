"""ServerEngine: answers from a server that speaks OpenAI's chat protocol, as vLLM, SGLang and `transformers serve` do.

    POST {url}/chat/completions    one conversation, its image as a PNG in a data URL; temperature 0
    GET  {url}/models              the name to ask for, where none was given

Questions go out side by side, so the server can batch them. What may mend by itself (it is starting, full, restarting)
is tried again, ever later. This module does not know the weights behind the server, nor what the answers mean.
"""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx2
from PIL import Image

from sam4mllm.data.images import as_rgb
from sam4mllm.errors import ModelError, ServerError
from sam4mllm.mllm.engine import Reply
from sam4mllm.prompts.conversation import Conversation

ATTEMPTS = 8
"""How often a question is put; the waits between sum up to about a minute."""

LONGEST_WAIT_S = 60.0
"""Seconds between two attempts at most, whatever the server asks for."""

ANSWER_LIMIT_S = 600.0
"""Seconds within which an answer must come; it may stand in the server's queue for most of them."""

_BUSY = (408, 425, 429, 500, 502, 503, 504)
"""Statuses after which the same request may succeed."""

_REFUSES_US = (401, 403, 404)
"""Statuses that any other question would get as well: the wrong key, the wrong model, the wrong address."""


class ServerEngine:
    """Greedy answers of the model `model` at `url` ("http://host:8000", with or without /v1), `concurrency` at a time.

    Answers come back in the order asked, without surrounding white space. A server fills what a request leaves open
    from the checkpoint's generation_config.json; `sam4mllm merge` writes one that adds nothing to greedy decoding.

    Args:
        url: where the server is.
        model: the name that it serves the model under; None for its only one.
        concurrency: questions under way at once.
        api_key: sent as the bearer token, if given.
        transport: httpx2's, for tests.
        sleep: called with the seconds to wait before another attempt.

    Raises:
        ModelError: an address that is none; no model named where the server has not exactly one.
        ServerError: the server does not answer.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        concurrency: int = 16,
        api_key: str | None = None,
        transport: httpx2.BaseTransport | None = None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        if concurrency < 1:
            raise ValueError(f"a server is asked one question at a time at least; got {concurrency=}")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ModelError(f"server {url!r} is no address; give it as http://host:port")
        self.url = url.rstrip("/") + ("/v1" if parts.path in ("", "/") else "")
        self.concurrency = concurrency
        self._sleep = sleep
        self._client = httpx2.Client(
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx2.Timeout(ANSWER_LIMIT_S, connect=10.0),
            limits=httpx2.Limits(max_connections=concurrency),
            transport=transport,
        )
        self.model = model if model is not None else self._only_model()

    def generate(self, conversations: Sequence[Conversation], max_new_tokens: int) -> list[Reply]:
        """The replies; one is finished unless the server says that the limit of tokens cut it off.

        Raises:
            ValueError: a conversation whose last turn is not the user's.
            DataError: an image cannot be read.
            ModelError: the server refuses a question, or fails at it again and again.
            ServerError: the server does not answer, or refuses us.
        """
        for conversation in conversations:
            if not conversation.asks:
                raise ValueError(f"the last turn must be the user's; got {conversation.turns[-1]}")
        pool = ThreadPoolExecutor(self.concurrency)
        try:
            # Of an image that several conversations are about one data URL is made.
            images: dict[object, Future[str]] = {}
            for conversation in conversations:
                if _key(conversation) not in images:
                    images[_key(conversation)] = pool.submit(data_url, conversation.image)
            urls = [images[_key(conversation)].result() for conversation in conversations]
            asked = [
                pool.submit(self._answer, messages(conversation, url), max_new_tokens)
                for conversation, url in zip(conversations, urls, strict=True)
            ]
            return [reply.result() for reply in asked]
        finally:
            pool.shutdown(cancel_futures=True)

    def _answer(self, said: list[dict[str, Any]], max_new_tokens: int) -> Reply:
        body = {
            "model": self.model,
            "messages": said,
            "temperature": 0,
            # `transformers serve` makes its repetition penalty of it, which spoils coordinates.
            "frequency_penalty": 0,
            "max_tokens": max_new_tokens,
        }
        answer = self._request("POST", "chat/completions", body)
        try:
            choice = answer["choices"][0]
            text, reason = choice["message"]["content"] or "", choice["finish_reason"]
        except (KeyError, IndexError, TypeError) as error:
            raise self._speaks_otherwise(answer) from error
        return Reply(text.strip(), finished=reason != "length")

    def _only_model(self) -> str:
        answer = self._request("GET", "models")
        try:
            names = [str(entry["id"]) for entry in answer["data"]]
        except (KeyError, TypeError) as error:
            raise self._speaks_otherwise(answer) from error
        if len(names) != 1:
            raise ModelError(
                f"the server {self.url} has {len(names)} models ({', '.join(names[:5])}); name one by --server-model"
            )
        return names[0]

    def _request(self, method: str, place: str, body: dict[str, Any] | None = None) -> Any:
        """The server's answer as JSON, after as many attempts as it takes, up to `ATTEMPTS`."""
        for attempt in range(ATTEMPTS):
            wait = min(0.5 * 2**attempt, LONGEST_WAIT_S)
            status = None
            try:
                response = self._client.request(method, f"{self.url}/{place}", json=body)
            except httpx2.TransportError as error:
                trouble = f"{type(error).__name__}: {error}"
            else:
                status = response.status_code
                trouble = f"{status}: {_complaint(response)}"
                if status < 400:
                    return self._json(response)
                if status not in _BUSY:
                    break
                wait = max(wait, _asked_to_wait_s(response))
            if attempt + 1 < ATTEMPTS:
                self._sleep(wait)
        if status in _REFUSES_US:
            raise ServerError(f"the server {self.url} refuses us ({trouble}); check its address, model and key")
        if status is not None and status not in _BUSY:
            raise ModelError(f"the server {self.url} refuses this question ({trouble})")
        if status == 500:
            raise ModelError(f"the server {self.url} fails at this question, tried {ATTEMPTS} times ({trouble})")
        raise ServerError(
            f"the server {self.url} does not answer, tried {ATTEMPTS} times ({trouble}); is it running? "
            "What is done is kept, so the same command goes on later"
        )

    def _json(self, response: httpx2.Response) -> Any:
        try:
            return response.json()
        except ValueError as error:
            raise self._speaks_otherwise(response.text) from error

    def _speaks_otherwise(self, answer: object) -> ServerError:
        return ServerError(f"the server {self.url} does not speak OpenAI's chat protocol: it answered {answer!r:.120}")


def messages(conversation: Conversation, image_url: str) -> list[dict[str, Any]]:
    """The conversation as the protocol takes it: the image, by its data URL, opens the first turn."""
    said: list[dict[str, Any]] = [{"role": turn.role, "content": turn.text} for turn in conversation.turns]
    image = {"type": "image_url", "image_url": {"url": image_url}}
    said[0]["content"] = [image, {"type": "text", "text": conversation.turns[0].text}]
    return said


def data_url(image: Any) -> str:
    """The image as a PNG in a data URL: lossless, so that the server sees the pixels that a model here would.

    Raises:
        DataError: it cannot be read.
    """
    file = io.BytesIO()
    # Packed lightly: it travels once, and the packing would take longer than the journey.
    Image.fromarray(as_rgb(image)).save(file, format="PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _key(conversation: Conversation) -> object:
    image = conversation.image
    return id(image) if isinstance(image, Image.Image) or hasattr(image, "shape") else str(image)


def _complaint(response: httpx2.Response) -> str:
    """What an answer says is wrong, on one line: OpenAI's `error.message`, FastAPI's `detail`, or the plain text."""
    text: Any = response.text
    try:
        record = response.json()
    except ValueError:
        record = None
    if isinstance(record, dict):
        error = record.get("error", record.get("detail", record.get("message", text)))
        text = error.get("message", error) if isinstance(error, dict) else error
    return " ".join(str(text).split())[:300] or "without a word"


def _asked_to_wait_s(response: httpx2.Response) -> float:
    """The seconds of a `Retry-After` header; 0 without one, or with a date."""
    text = response.headers.get("retry-after", "")
    return min(float(text), LONGEST_WAIT_S) if text.isdecimal() else 0.0
