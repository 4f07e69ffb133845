import pytest

from tests.mllm import tiny


@pytest.fixture(scope="session")
def fast_vlm(tmp_path_factory) -> str:
    return str(tiny.save_fast_vlm(tmp_path_factory.mktemp("fast_vlm"), seed=1))


@pytest.fixture(scope="session")
def qwen2_vl(tmp_path_factory) -> str:
    return str(tiny.save_qwen2_vl(tmp_path_factory.mktemp("qwen2_vl")))


@pytest.fixture(scope="session")
def idefics3(tmp_path_factory) -> str:
    return str(tiny.save_idefics3(tmp_path_factory.mktemp("idefics3")))
