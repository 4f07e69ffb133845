"""A model on the meta device has the dtype of its checkpoint."""

import json
import shutil

import pytest
import torch

from sam4mllm.mllm.meta_loading import load_meta_mllm


@pytest.mark.parametrize(
    ("top", "text", "expected"),
    [
        ("bfloat16", "float32", torch.bfloat16),
        # As in Qwen3.5.
        (None, "bfloat16", torch.bfloat16),
        (None, None, torch.float32),
    ],
)
def test_auto_is_the_dtype_of_the_config_or_of_its_language_model(top, text, expected, fast_vlm, tmp_path):
    shutil.copytree(fast_vlm, tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    for each, dtype in ((config, top), (config["text_config"], text)):
        each.pop("dtype", None)
        if dtype is not None:
            each["dtype"] = dtype
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    assert load_meta_mllm(str(tmp_path / "base")).dtype == expected
    assert load_meta_mllm(str(tmp_path / "base"), dtype="float16").dtype == torch.float16
