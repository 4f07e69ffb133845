"""The check whether the Hub responds, against an address without a server and a server in this process."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import datasets
import pytest
from huggingface_hub import constants

from sam4mllm import models
from sam4mllm.errors import ModelError
from sam4mllm.mllm.loading import load_processor
from sam4mllm.segmenters.loading import load_segmenter
from sam4mllm.utils import hub
from sam4mllm.utils.hub import use_cache_if_unreachable


@pytest.fixture
def nothing_listens() -> Iterator[str]:
    """An address without a server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub's library and that of data sets are not in offline mode, and are restored after the test."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")


def test_a_hub_that_does_not_respond_is_reported_once_and_then_only_the_cache_is_used(
    online, nothing_listens, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", nothing_listens)
    use_cache_if_unreachable()
    use_cache_if_unreachable()
    assert constants.is_offline_mode() and os.environ["HF_HUB_OFFLINE"] == "1"
    assert datasets.config.HF_HUB_OFFLINE
    (message,) = caplog.messages
    assert message.startswith(f"{nothing_listens} does not respond (ConnectError") and "HF_HUB_OFFLINE=1" in message


def test_a_hub_that_does_not_reply_is_given_up_after_seconds(online, monkeypatch, caplog) -> None:
    monkeypatch.setattr(hub, "REPLY_LIMIT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        use_cache_if_unreachable()
    assert constants.is_offline_mode()
    assert "Timeout" in caplog.messages[0] or "no response within 0.2 s" in caplog.messages[0]


def test_a_name_that_cannot_be_looked_up_is_given_up_after_seconds(online, monkeypatch, caplog) -> None:
    looked_up = threading.Event()
    monkeypatch.setattr(hub, "REPLY_LIMIT_S", 0.1)
    monkeypatch.setattr(hub, "_request", lambda endpoint: looked_up.wait(60) and None)
    use_cache_if_unreachable()
    looked_up.set()
    assert constants.is_offline_mode() and "no response within 0.1 s" in caplog.messages[0]


@pytest.mark.parametrize("status", [200, 404, 503])
def test_a_hub_that_responds_is_used(online, monkeypatch, caplog, status) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.handle_request).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        use_cache_if_unreachable()
    assert not constants.is_offline_mode() and not caplog.messages


def test_in_offline_mode_nothing_is_requested(monkeypatch, nothing_listens, caplog) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "ENDPOINT", nothing_listens)
    use_cache_if_unreachable()
    assert not caplog.messages


def test_a_segmenter_of_the_hub_that_is_not_cached_is_an_error_at_once(
    online, nothing_listens, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", nothing_listens)
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail(f"waits {seconds} s"))
    with pytest.raises(ModelError, match="'nobody/nothing' does not load"):
        load_segmenter("nobody/nothing")
    assert len(caplog.messages) == 1


def test_a_cached_base_is_loaded_without_a_network_after_one_warning(
    online, nothing_listens, tmp_path, monkeypatch, caplog
) -> None:
    folder = tmp_path / "models--me--shapes"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text("abc")
    (folder / "snapshots").mkdir()
    (folder / "snapshots/abc").symlink_to(models.path("mllm"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", nothing_listens)
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail(f"waits {seconds} s"))
    processor, family = load_processor("me/shapes")
    assert processor.tokenizer is not None and family.model_type
    assert [message for message in caplog.messages if "does not respond" in message] == caplog.messages[:1]
