"""ResizedGrid gives the size that transformers' image processor resizes an image to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sam4mllm.errors import DataError
from sam4mllm.geometry import ResizedGrid

sides = st.integers(1, 5000)


@given(sides, sides, st.sampled_from([28, 32]), st.integers(1, 40), st.integers(0, 40_000))
def test_a_resized_grid_follows_transformers_rule(width, height, multiple, least, more):
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    bounds = {"min_pixels": least * 784, "max_pixels": max(least * 784, multiple**2) + more * 784}
    grid = ResizedGrid(multiple, **bounds)
    try:
        rows, columns = smart_resize(height, width, factor=multiple, **bounds)
    except ValueError:
        with pytest.raises(DataError, match="at most 200 times"):
            grid.of_image((width, height))
    else:
        assert grid.of_image((width, height)).bins_wh == (columns, rows)


@pytest.mark.parametrize("bounds", [(0, 1, 9), (28, 1, 783), (28, 0, 800), (28, 900, 800)])
def test_bounds_without_a_possible_size_are_refused(bounds):
    with pytest.raises(ValueError, match="room for one multiple"):
        ResizedGrid(*bounds)
