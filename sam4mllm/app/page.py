"""The page: its tabs, and the server that shows it.

Only this module and the tabs import gradio; what their events do is in the other modules.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from sam4mllm.app.answers import Models
from sam4mllm.app.cases import Evaluations
from sam4mllm.app.folders import ImageFolders
from sam4mllm.app.image_tab import ImageTab
from sam4mllm.app.limits import Limits, RequestLimit
from sam4mllm.app.run_tabs import add_cases_tab, add_folder_tab
from sam4mllm.app.saving import CorrectedData
from sam4mllm.app.sessions import Sessions
from sam4mllm.errors import LaunchError

_PENDING = 32
"""Requests that wait for an answer; further ones are refused."""
_KEPT_S = 3600
"""Seconds after which uploads and drawings are deleted."""


def build_page(
    models: Models,
    data: CorrectedData,
    folders: ImageFolders | None,
    evaluations: Evaluations | None,
    work: Path,
    limits: Limits,
) -> gr.Blocks:
    """Return the page, with the tabs "Folder" and "Cases" if there are folders and evaluations.

    Args:
        models: The pipelines that answer.
        data: The data set of corrected answers.
        folders: The folders that may be answered.
        evaluations: The evaluations that may be browsed.
        work: A folder for the answers about folders.
        limits: The limits of what is accepted.
    """
    sessions = Sessions(limits.sessions)
    # Uploads and drawings are looked through every ten minutes.
    with gr.Blocks(title=f"sam4mllm: {models.title}", analytics_enabled=False, delete_cache=(600, _KEPT_S)) as page:
        with gr.Tab("Image"):
            ImageTab(models, data, sessions, limits)
        if folders is not None:
            with gr.Tab("Folder"):
                add_folder_tab(models, folders, work, limits)
        if evaluations is not None:
            with gr.Tab("Cases"):
                add_cases_tab(evaluations)
    return page


@contextmanager
def serving(
    models: Models,
    data: CorrectedData,
    *,
    root: Path | None = None,
    home: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    limits: Limits | None = None,
) -> Iterator[str]:
    """Serve the page until the block ends, and yield its address.

    Uploads, drawings and downloads are in a temporary folder, which is removed at the end. No other file can be
    requested. The page is not shared by a public link, and nothing is reported to other hosts.

    Args:
        models, data: As in `build_page`.
        root: The folder whose subfolders may be answered; None for no tab "Folder".
        home: The folder whose evaluations may be browsed; None for no tab "Cases".
        host, port: The address to listen at.
        limits: The limits of what is accepted; None for the default ones.

    Raises:
        DataError: There is no folder `root`.
        LaunchError: The port is used by another program.
    """
    limits = limits or Limits()
    with tempfile.TemporaryDirectory(prefix="sam4mllm-app-") as temporary:
        work = Path(temporary, "folders")
        work.mkdir()
        os.environ["GRADIO_TEMP_DIR"] = str(Path(temporary, "files"))
        folders = None if root is None else ImageFolders(root, limits)
        evaluations = None if home is None else Evaluations(home)
        page = build_page(models, data, folders, evaluations, work, limits)
        page.queue(max_size=_PENDING)
        try:
            _, address, _ = page.launch(server_name=host, server_port=port, **_launch_options(limits))
        except OSError as error:
            raise LaunchError(f"{host}:{port}: cannot be listened at: {error}; give another --port") from error
        try:
            yield address
        finally:
            page.close(verbose=False)


def _launch_options(limits: Limits) -> dict[str, Any]:
    """Return the options of gradio's server: no public link, no files of the server, no interfaces for programs."""
    return {
        "share": False,
        "prevent_thread_lock": True,
        "quiet": True,
        "allowed_paths": [],
        "max_file_size": limits.upload_bytes,
        "app_kwargs": {
            "middleware": [Middleware(RequestLimit, limits=limits)],
            "docs_url": None,
            "redoc_url": None,
            "openapi_url": None,
        },
        "footer_links": [],
        "ssr_mode": False,
        "mcp_server": False,
        "pwa": False,
        "enable_monitoring": False,
        "state_session_capacity": limits.sessions,
        # The usual themes load fonts from another host.
        "theme": gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
    }
