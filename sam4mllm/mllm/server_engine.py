"""ServerEngine: replies from a server with OpenAI's chat completions API (vLLM, SGLang, `transformers serve`).

Requests are sent concurrently, so that the server can batch them. The openai client retries a request that may succeed
later (the server is starting, busy, restarting) with growing waits, or after the time in the server's `Retry-After`. A
warning reports the first attempt that fails. An address at which nothing has answered yet is given up within seconds.
"""

from __future__ import annotations

import base64
import io
import logging
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, TypeVar
from urllib.parse import urlsplit

from PIL import Image

from sam4mllm.data.images import as_rgb, image_key
from sam4mllm.errors import ModelError, Sam4mllmError, ServerError
from sam4mllm.mllm.control_tokens import check_unknown_tokenizer
from sam4mllm.mllm.engine import Reply
from sam4mllm.prompts.conversation import Conversation

ATTEMPTS = 12
"""Number of attempts per request; the waits between them add up to about a minute."""

MAX_RETRY_AFTER_S = 60
"""Longest wait in seconds that a server's `Retry-After` can ask for."""

REPLY_TIMEOUT_S = 600.0
"""Seconds until a request times out; it may spend most of them in the server's queue."""

START_LIMIT_S = 15.0
"""Seconds within which a new engine must get any response from its server."""

_CONNECT_TIMEOUT_S = 5.0

_TRANSIENT = (408, 409, 429, 502, 503, 504)
"""Statuses of a server that is busy or starting."""

_MISCONFIGURED = (401, 403, 404)
"""Statuses that every other request would get too: a wrong key, model or address."""

_SURROGATE = re.compile(r"[\ud800-\udfff]")

Parsed = TypeVar("Parsed")

logger = logging.getLogger(__name__)


class ServerEngine:
    """An engine that gets greedy replies from a server.

    Replies come back in the order of the conversations, without surrounding white space. For settings that a request
    leaves open, a server uses the checkpoint's generation_config.json; `sam4mllm merge` writes one that keeps decoding
    greedy.

    Args:
        url: The server's address, such as "http://host:8000", with or without /v1.
        model: The model's name on the server; None for the only one that the server has.
        concurrency: Number of requests in flight at the same time.
        api_key: Sent as a bearer token; local servers need none.

    Raises:
        ValueError: `concurrency` is below 1.
        ModelError: `url` is not an HTTP address; the server has no model, or has several and none was named; or the
            openai package is not installed.
        ServerError: The server does not answer within `START_LIMIT_S`, or has no API of this kind.
    """

    def __init__(
        self, url: str, model: str | None = None, *, concurrency: int = 16, api_key: str | None = None
    ) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency must be at least 1; got {concurrency}")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ModelError(f"server {url!r} is not an address; give it as http://host:port")
        try:
            import openai
        except ImportError as error:
            raise ModelError("a model on a server needs the openai package: pip install 'sam4mllm[serving]'") from error
        self.url = url.rstrip("/") + ("/v1" if parts.path in ("", "/") else "")
        self.concurrency = concurrency
        self._client = openai.OpenAI(
            base_url=self.url,
            # The client requires a key, even for servers that need none.
            api_key=api_key or "none",
            timeout=openai.Timeout(REPLY_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S),
            max_retries=ATTEMPTS - 1,
            http_client=_reporting_client(self.url),
        )
        self._wait_for_server()
        self.model = model if model is not None else self._only_model()

    def generate(
        self,
        conversations: Sequence[Conversation],
        max_new_tokens: int,
        *,
        fields: Sequence[dict[str, Any]] | None = None,
    ) -> list[Reply]:
        """Return the replies; one is finished unless the server reports that the limit of tokens cut it off.

        `fields` are added to the request of each conversation.

        Raises:
            ValueError: The last turn of a conversation is not the user's.
            DataError: An image cannot be read, or a text holds a control token of a common family.
            ModelError: The server rejects a question, or fails on it in every attempt; or a question has a region.
            ServerError: The server does not answer, or rejects all requests.
        """
        for conversation in conversations:
            if not conversation.awaits_answer:
                raise ValueError(f"the last turn must be the user's; got {conversation.turns[-1]}")
            if conversation.has_regions:
                raise ModelError("a server takes no regions as embeddings; run the model in this process")
            for turn in conversation.turns:
                check_unknown_tokenizer(turn.text)
        pool = ThreadPoolExecutor(self.concurrency)
        try:
            # 1. Each image is encoded once, for all conversations about it.
            images = {image_key(each.image): each.image for each in conversations if each.image is not None}
            encoded: dict[object, str | None] = dict(zip(images, pool.map(data_url, images.values()), strict=True))
            # 2. The requests, `concurrency` at a time.
            replies = [
                pool.submit(self._reply, messages(each, encoded.get(image_key(each.image))), max_new_tokens, added)
                for each, added in zip(conversations, fields or [{}] * len(conversations), strict=True)
            ]
            return [reply.result() for reply in replies]
        finally:
            pool.shutdown(cancel_futures=True)

    def _reply(self, chat: list[dict[str, Any]], max_new_tokens: int, fields: dict[str, Any]) -> Reply:
        def parse(completion: Any) -> Reply:
            choice = completion.choices[0]
            # JSON can hold lone surrogates, which no file in UTF-8 can.
            text = _SURROGATE.sub("\ufffd", choice.message.content or "")
            return Reply(text.strip(), finished=choice.finish_reason != "length")

        return self._request(
            self._client.chat.completions.with_raw_response.create,
            parse,
            model=self.model,
            messages=chat,
            temperature=0,
            # `transformers serve` makes a repetition penalty of it, which changes the digits of coordinates.
            frequency_penalty=0,
            max_tokens=max_new_tokens,
            extra_body=fields,
        )

    def _wait_for_server(self) -> None:
        """Wait until the address gives any HTTP response, or raise a ServerError after `START_LIMIT_S`."""
        import openai

        client = self._client.with_options(max_retries=0, timeout=_CONNECT_TIMEOUT_S)
        give_up_at = time.monotonic() + START_LIMIT_S
        wait = 0.5
        while True:
            try:
                client.models.with_raw_response.list()
            except openai.APITimeoutError as error:
                # A server that accepts connections and is busy is waited for by the requests themselves.
                if "Connect" not in type(error.__cause__).__name__:
                    return
                cause: BaseException = error.__cause__ or error
            except openai.APIConnectionError as error:
                cause = error.__cause__ or error
            # Any response, also one of a status that is an error: the requests themselves interpret it.
            except openai.APIError:
                return
            else:
                return
            if time.monotonic() + wait > give_up_at:
                raise ServerError(
                    f"the server {self.url} does not answer within {START_LIMIT_S:g} s ({type(cause).__name__}: "
                    f"{cause}); start it first, or correct its address"
                ) from cause
            time.sleep(wait)
            wait = min(2 * wait, 4.0)

    @cached_property
    def owner(self) -> str:
        """The owner of the model in the server's list, by which vLLM and SGLang name themselves; "" for none."""
        owners = self._request(
            self._client.models.with_raw_response.list,
            lambda page: {str(each.id): str(getattr(each, "owned_by", None) or "") for each in page.data},
        )
        return owners.get(self.model, "")

    def _only_model(self) -> str:
        names = self._request(self._client.models.with_raw_response.list, lambda page: [str(m.id) for m in page.data])
        if len(names) != 1:
            raise ModelError(
                f"the server {self.url} has {len(names)} models ({', '.join(names[:5])}); name one by --server-model"
            )
        return names[0]

    def _request(self, endpoint: Callable[..., Any], parse: Callable[[Any], Parsed], **arguments: Any) -> Parsed:
        """Send a request, with retries, and parse the response."""
        import openai

        try:
            response = endpoint(**arguments)
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            raise self._error(None, f"{type(cause).__name__}: {cause}") from error
        except openai.APIStatusError as error:
            raise self._error(error.status_code, f"{error.status_code}: {_error_message(error.body)}") from error
        try:
            return parse(response.parse())
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            raise ServerError(
                f"the server {self.url} does not implement OpenAI's chat API: it answered {response.text!r:.120}"
            ) from error

    def _error(self, status: int | None, reason: str) -> Sam4mllmError:
        """Return the error for a request that failed for good; `status` is None without an HTTP response."""
        if status in _MISCONFIGURED:
            return ServerError(
                f"the server {self.url} rejects every request ({reason}); check its address, model and key"
            )
        if status is None or status in _TRANSIENT:
            return ServerError(
                f"the server {self.url} does not answer after {ATTEMPTS} attempts ({reason}); is it running? "
                "Finished work is saved, and the same command resumes it"
            )
        if status == 500:
            return ModelError(f"the server {self.url} fails on this question after {ATTEMPTS} attempts ({reason})")
        return ModelError(f"the server {self.url} rejects this question ({reason})")


def messages(conversation: Conversation, image_url: str | None) -> list[dict[str, Any]]:
    """Return the conversation in OpenAI's chat format; the image, as a data URL if any, opens the first turn."""
    chat: list[dict[str, Any]] = [{"role": turn.role, "content": turn.text} for turn in conversation.turns]
    if image_url is not None:
        image = {"type": "image_url", "image_url": {"url": image_url}}
        chat[0]["content"] = [image, {"type": "text", "text": conversation.turns[0].text}]
    return chat


def data_url(image: Any) -> str:
    """Encode an image as a PNG in a data URL: lossless, so that the server's model gets the same pixels as one here.

    Raises:
        DataError: The image cannot be read.
    """
    file = io.BytesIO()
    # Light compression: more of it would take longer than sending the larger file.
    Image.fromarray(as_rgb(image)).save(file, format="PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _error_message(body: Any) -> str:
    """Return the message in an error's body on one line: OpenAI's `message`, FastAPI's `detail`, or the whole body."""
    if isinstance(body, dict):
        body = body.get("message") or body.get("detail") or body
    return " ".join(str(body or "").split())[:300] or "no message"


def _reporting_client(url: str) -> Any:
    """Return an HTTP client that reports the first attempt that fails in a row, which the openai client retries."""
    import openai

    def respond(response: Any) -> None:
        client.is_failing = response.status_code in _TRANSIENT and client.report(f"status {response.status_code}")
        _limit_retry_after(response)

    class ReportingClient(openai.DefaultHttpxClient):
        is_failing = False

        def send(self, request: Any, **arguments: Any) -> Any:
            try:
                return super().send(request, **arguments)
            except Exception as error:
                self.is_failing = self.report(f"{type(error).__name__}: {error}")
                raise

        def report(self, reason: str) -> bool:
            if not self.is_failing:
                logger.warning("the server %s does not answer (%s); trying again", url, reason)
            return True

    client = ReportingClient(event_hooks={"response": [respond]})
    return client


def _limit_retry_after(response: Any) -> None:
    """Limit the response's `Retry-After` in seconds; the openai client does not retry at all above two minutes."""
    seconds = response.headers.get("retry-after", "")
    if seconds.isdecimal() and float(seconds) > MAX_RETRY_AFTER_S:
        response.headers["retry-after"] = str(MAX_RETRY_AFTER_S)
