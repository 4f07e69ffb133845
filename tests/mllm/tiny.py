"""The tiny models, from where the doctor has them."""

from sam4mllm.doctor.tiny_mllms import byte_tokenizer, chat_template, save_fast_vlm, save_qwen2_vl

__all__ = ["byte_tokenizer", "chat_template", "save_fast_vlm", "save_qwen2_vl"]
