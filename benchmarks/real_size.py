"""Save models of real sizes with random weights, for benchmarks of time and memory.

The sizes are those of the published configs (`config.json` of the Hub id in the comment of each). The tokenizer has the
words of questions, and digits, so that a question has about as many tokens as for the real model.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from questions import questions_of

from sam4mllm.mllm.loading import Mllm, load_mllm
from sam4mllm.segmenters.segment_anything import save_checkpoint
from sam4mllm.testing.tiny_qwen import save_qwen2_5_vl, save_qwen3_vl
from sam4mllm.testing.tiny_segmenters import TINY_SAM, tiny_sam

# Qwen/Qwen3-VL-8B-Instruct
_QWEN3_VL_8B = {
    "text": {
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "rope": [24, 20, 20],
    },
    "vision": {
        "depth": 27,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_heads": 16,
        "out_hidden_size": 4096,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [8, 16, 24],
    },
}
# Qwen/Qwen2.5-VL-3B-Instruct and -7B-Instruct
_VISION_2_5 = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
_QWEN2_5_VL_3B = {
    "text": {
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
        "rope": [16, 24, 24],
    },
    "vision": {**_VISION_2_5, "out_hidden_size": 2048},
}
_QWEN2_5_VL_7B = {
    "text": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "rope": [16, 24, 24],
    },
    "vision": {**_VISION_2_5, "out_hidden_size": 3584},
}
# The proportions of Qwen2.5-VL-3B at a size that a CPU runs in seconds. Its images have 256 tokens.
_QWEN2_5_VL_CPU = {
    "text": {
        "hidden_size": 768,
        "intermediate_size": 4128,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
        "rope": [8, 12, 12],
        # Large enough that answers depend on image and question, so that different ones are noticed.
        "initializer_range": 0.1,
    },
    "vision": {
        "depth": 10,
        "hidden_size": 480,
        "intermediate_size": 1280,
        "num_heads": 6,
        "window_size": 112,
        "fullatt_block_indexes": [4, 9],
        "out_hidden_size": 768,
    },
}
CPU_MLLM = "qwen2.5-vl-cpu"
CPU_PIXELS = 448 * 448
MLLMS: dict[str, tuple[Callable[[Path], Path], dict[str, Any]]] = {
    "qwen3-vl-8b": (save_qwen3_vl, _QWEN3_VL_8B),
    "qwen2.5-vl-7b": (save_qwen2_5_vl, _QWEN2_5_VL_7B),
    "qwen2.5-vl-3b": (save_qwen2_5_vl, _QWEN2_5_VL_3B),
    CPU_MLLM: (save_qwen2_5_vl, _QWEN2_5_VL_CPU),
    "tiny": (save_qwen3_vl, {"text": {}, "vision": {}}),
}
SAMS = ("vit_h", "vit_l", "vit_b", "tiny")


def config_of(name: str, tiny: Path) -> Any:
    """Return the config of a model of `MLLMS`, derived from that of its tiny model in the folder `tiny`."""
    from transformers import AutoConfig

    config, size = AutoConfig.from_pretrained(tiny), MLLMS[name][1]
    text = dict(size["text"])
    config.text_config.rope_parameters = {**config.text_config.rope_parameters, "mrope_section": text.pop("rope")}
    config.tie_word_embeddings = text.get("tie_word_embeddings", False)
    config.text_config.update({"initializer_range": 0.02, "max_position_embeddings": 32768, **text})
    if hasattr(config.text_config, "layer_types"):
        config.text_config.layer_types = ["full_attention"] * config.text_config.num_hidden_layers
    config.vision_config.update(size["vision"])
    return config


def save_mllm(name: str, folder: Path, device: str) -> Path:
    """Save the model `name` of `MLLMS`, initialized on `device`, in bfloat16 except "tiny"; keep an existing one."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    if (folder / "config.json").exists():
        return folder
    save_tiny, size = MLLMS[name]
    if not size["text"]:
        return save_tiny(folder)
    tiny = save_tiny(folder / "tiny")
    config, processor = config_of(name, tiny), AutoProcessor.from_pretrained(tiny)
    use_words(config, processor)
    if name == CPU_MLLM:
        processor.image_processor.size = {"shortest_edge": CPU_PIXELS, "longest_edge": CPU_PIXELS}
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    # Tokens that the tokenizer lacks are not generated: the most probable token of a random model has a positive logit.
    model.get_output_embeddings().weight.data[len(processor.tokenizer) :] = 0
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    processor.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def use_words(config: Any, processor: Any) -> None:
    """Give the processor a tokenizer of the words of questions and of digits, in place."""
    texts = [question.turns[0].text for question in questions_of(200, seed=1)]
    words = ["".join(letter for letter in text if not letter.isdigit()) for text in texts]
    tokenizer = processor.tokenizer.train_new_from_iterator(words, vocab_size=1000)
    for key in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
        token = processor.tokenizer.convert_ids_to_tokens(getattr(config, key))
        setattr(config, key, tokenizer.convert_tokens_to_ids(token))
        if hasattr(processor, key):
            setattr(processor, key, getattr(config, key))
    config.text_config.eos_token_id = tokenizer.eos_token_id
    config.text_config.pad_token_id = tokenizer.pad_token_id
    processor.tokenizer = tokenizer


def load_cpu_mllm(work: Path, device: str) -> Mllm:
    """Load the model `CPU_MLLM` in float32; it is created in the folder `work` if it is not there."""
    return load_mllm(str(save_mllm(CPU_MLLM, work / CPU_MLLM, "cpu")), device=device, dtype="float32")


def random_sam(name: str, seed: int = 0) -> Any:
    """Return segment_anything's Sam of that size with random weights."""
    from segment_anything import sam_model_registry

    torch.manual_seed(seed)
    return sam_model_registry[name](checkpoint=None)


def save_sam(name: str, file: Path) -> Path:
    """Save segment_anything's Sam of that size with random weights in its own file format; keep an existing one."""
    if file.exists():
        return file
    if name == "tiny":
        save_checkpoint(file, tiny_sam(), TINY_SAM)
    else:
        torch.save(random_sam(name).state_dict(), file)
    return file
