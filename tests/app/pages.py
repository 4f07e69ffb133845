"""Parts of the page with scripted answers, for tests."""

from __future__ import annotations

import numpy as np

from sam4mllm.app.answers import Models
from sam4mllm.data.images import Rgb
from tests.cli.scripted import scripted_pipeline


def grey(width: int = 20, height: int = 10) -> Rgb:
    return np.full((height, width, 3), 128, dtype=np.uint8)


def scripted_models(*others: str) -> Models:
    """The models "mine" and others, which all give the answers of `tests.cli.scripted`."""
    return Models({name: scripted_pipeline() for name in ("mine", *others)})
