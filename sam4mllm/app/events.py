"""What the events of all tabs share: errors that users see, and inputs that refuse addresses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from sam4mllm.errors import DataError, Sam4mllmError

DRAWING: dict[str, Any] = {"format": "png", "interactive": False, "buttons": ["download", "fullscreen"]}
"""The arguments of an image that shows a drawing, without gradio's button for sharing it on another host."""


@contextmanager
def shown_errors() -> Iterator[None]:
    """Show the errors that a user can fix as a message on the page; others remain in the log of the server.

    Raises:
        gradio.Error: The message of a `Sam4mllmError`, or of a file that cannot be written.
    """
    try:
        yield
    except (Sam4mllmError, OSError) as error:
        # gradio renders messages as HTML, and removes quotes around them.
        raise gr.Error(escape(str(error)), print_exception=False) from error


def refuse_addresses(component: Any) -> None:
    """Let a component accept uploaded files alone: gradio would download an address that a request names."""
    to_cache = component.async_move_resource_to_block_cache

    async def checked(source: str | Path | None) -> str | None:
        if source is not None and "://" in str(source):
            raise DataError("an image is uploaded; addresses are not downloaded")
        return await to_cache(source)

    component.async_move_resource_to_block_cache = checked
