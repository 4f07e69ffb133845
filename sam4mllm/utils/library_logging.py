"""Silence libraries' messages that users cannot act on, each by name; all other messages stay."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


def silence_libraries() -> None:
    """Silence known messages, for the command line and scripts; importing the package changes no library's logging."""
    # bitsandbytes reports optional kernels that are missing, even where nothing is quantized.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # Training imports DeepSpeed where it is installed, which reports on standard output that there is no GPU.
    logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())
    # Without a network the Hub's client reports each of its retries; our error reports the failure once.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    # peft calls a deprecated function of transformers.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    # Our recipes use the spelling that older versions of transformers know, too.
    warnings.filterwarnings("ignore", message=".*`gradient_checkpointing", category=FutureWarning)


@contextmanager
def log_to_stderr(level: int) -> Iterator[None]:
    """Write this package's log messages of at least `level` to standard error inside the block."""
    logger, handler = logging.getLogger("sam4mllm"), logging.StreamHandler()
    former = logger.level
    logger.setLevel(level)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(former)


@contextmanager
def transformers_bars_on_terminals_only() -> Iterator[None]:
    """Hide transformers' own progress bars inside the block where standard error is not a terminal."""
    from transformers.utils import logging

    hidden = logging.is_progress_bar_enabled() and not sys.stderr.isatty()
    if hidden:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if hidden:
            logging.enable_progress_bar()
