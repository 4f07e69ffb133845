"""The page with scripted answers on localhost, and a headless Chromium."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sam4mllm.app.limits import Limits
from sam4mllm.app.saving import CorrectedData
from tests.app.pages import scripted_models

FLAGS = (
    "headless",
    "no-sandbox",
    "disable-gpu",
    "disable-quic",
    "no-first-run",
    "disable-background-networking",
    "disable-component-update",
    "disable-sync",
    "window-size=1300,1600",
)
LIMITS = Limits(upload_bytes=2**20)


@dataclass(frozen=True)
class Served:
    """The address of the page, the data set of corrections, the root of the folders and the home of evaluations."""

    address: str
    data: Path
    root: Path
    home: Path


def free_port() -> int:
    with socket.socket() as each:
        each.bind(("127.0.0.1", 0))
        port: int = each.getsockname()[1]
        return port


@contextmanager
def served(folder: Path) -> Iterator[Served]:
    from sam4mllm.app.page import serving

    page = Served("", folder / "mine/data.jsonl", folder / "root", folder / "run")
    for each in (page.data.parent, page.root, page.home):
        each.mkdir(exist_ok=True)
    models, data = scripted_models("other"), CorrectedData(page.data)
    with serving(models, data, root=page.root, home=page.home, port=free_port(), limits=LIMITS) as address:
        yield Served(address, page.data, page.root, page.home)


@contextmanager
def browser(profile: Path) -> Iterator[Any]:
    """A Chromium without a window; skips the test if none is installed."""
    webdriver = pytest.importorskip("selenium.webdriver")
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("needs chromium and chromedriver on PATH")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS, f"user-data-dir={profile}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield opened
    finally:
        opened.quit()
