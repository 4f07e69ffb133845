from __future__ import annotations

import pytest

from sam4mllm.synthetic.scenes import Scene, make_scene


@pytest.fixture(scope="package")
def scenes() -> list[Scene]:
    """Enough scenes that every silhouette, colour and kind of phrase occurs; every second one has shared boxes."""
    return [make_scene(11, index, shared_boxes=0.5 if index % 2 else 0.0) for index in range(80)]
