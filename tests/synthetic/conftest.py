from __future__ import annotations

import pytest

from sam4mllm.synthetic.scenes import Scene, make_scene


@pytest.fixture(scope="package")
def scenes() -> list[Scene]:
    """Enough scenes that every silhouette, colour and kind of phrase occurs."""
    return [make_scene(11, index) for index in range(60)]
