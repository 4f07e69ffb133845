import pytest

from sam4mllm.testing import save_tiny_mllm


@pytest.fixture(scope="session")
def fast_vlm(tmp_path_factory) -> str:
    return str(save_tiny_mllm("fast_vlm", tmp_path_factory.mktemp("fast_vlm"), seed=1))


@pytest.fixture(scope="session")
def qwen2_vl(tmp_path_factory) -> str:
    return str(save_tiny_mllm("qwen2_vl", tmp_path_factory.mktemp("qwen2_vl")))


@pytest.fixture(scope="session")
def idefics3(tmp_path_factory) -> str:
    return str(save_tiny_mllm("idefics3", tmp_path_factory.mktemp("idefics3")))
