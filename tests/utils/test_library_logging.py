"""Log messages on standard error: only inside the block, and in the stream of its beginning."""

from __future__ import annotations

import logging

import pytest

from sam4mllm.utils.library_logging import log_to_stderr


def test_messages_are_written_inside_the_block_only(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("sam4mllm.somewhere")
    for number in range(2):
        with log_to_stderr(logging.INFO):
            logger.info("step %d", number)
    # A handler that stayed would write this one twice.
    logger.info("after")
    assert capsys.readouterr().err == "step 0\nstep 1\n"
    assert not logging.getLogger("sam4mllm").handlers
