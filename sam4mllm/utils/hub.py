"""The Hugging Face Hub: a short check before anything is loaded from it, and the names of files of checkpoints.

Without a network, the Hub's client retries every file of a checkpoint for half a minute, even if all files are cached.
"""

from __future__ import annotations

import logging
import os
import sys
import threading

MODEL_CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
MASK_DECODER = "mask_decoder.safetensors"
"""The name of the file, in the folder of an adapter, of a mask decoder of SAM that was trained with it."""

REPLY_LIMIT_S = 5.0
"""Seconds within which the Hub must give any response."""

logger = logging.getLogger(__name__)


def use_cache_if_unreachable() -> None:
    """Use only cached files of the Hub in this process, as with HF_HUB_OFFLINE=1, if the Hub does not respond.

    Called before a Hub id is loaded. A warning reports it; a file that is not cached is then an error at once.
    """
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return
    if (reason := _failure(constants.ENDPOINT)) is None:
        return
    logger.warning(
        "%s does not respond (%s): only files in the cache %s are used; set HF_HUB_OFFLINE=1 to skip this check, or "
        "HF_ENDPOINT for another address",
        constants.ENDPOINT,
        reason,
        constants.HF_HUB_CACHE,
    )
    # Libraries that were imported before keep the variable's value.
    os.environ["HF_HUB_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = True
    if "datasets" in sys.modules:
        sys.modules["datasets"].config.HF_HUB_OFFLINE = True


def _failure(endpoint: str) -> str | None:
    """Return why the Hub's address gives no HTTP response in time; None if it does, whatever its status."""
    failures: list[str | None] = []
    # The client's time limit does not include the look-up of the name, which may take half a minute without a network.
    request = threading.Thread(target=lambda: failures.append(_request(endpoint)), daemon=True)
    request.start()
    request.join(REPLY_LIMIT_S)
    return failures[0] if failures else f"no response within {REPLY_LIMIT_S:g} s"


def _request(endpoint: str) -> str | None:
    from huggingface_hub import get_session

    try:
        get_session().head(endpoint, timeout=REPLY_LIMIT_S)
    # The exceptions' classes depend on the version of the client: those of requests, httpx or httpx2.
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None
