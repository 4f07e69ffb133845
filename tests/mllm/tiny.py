"""The tiny models, from where the doctor has them."""

from sam4mllm.testing.tiny_llava import save_fast_vlm, save_llava, save_llava_onevision
from sam4mllm.testing.tiny_mllms import save_idefics3
from sam4mllm.testing.tiny_qwen import save_qwen2_5_vl, save_qwen2_vl

__all__ = [
    "save_fast_vlm",
    "save_idefics3",
    "save_llava",
    "save_llava_onevision",
    "save_qwen2_5_vl",
    "save_qwen2_vl",
]
