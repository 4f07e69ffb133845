import pytest

from sam4mllm.runs.run_folder import RunFolder
from sam4mllm.testing import save_tiny_mllm
from tests.training.helpers import make_recipe, run_fit


@pytest.fixture(scope="session")
def fast_vlm(tmp_path_factory) -> str:
    return str(save_tiny_mllm("fast_vlm", tmp_path_factory.mktemp("fast_vlm"), seed=1))


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory, fast_vlm) -> RunFolder:
    """A run of eight steps that was never interrupted."""
    return run_fit(make_recipe(tmp_path_factory.mktemp("uninterrupted"), fast_vlm))
