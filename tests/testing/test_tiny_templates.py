"""The chat templates of the tiny models, with which the doctor runs, render as those of the published checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sam4mllm.mllm.chat_template import patch_chat_template, renders_several_answers, turn_end
from sam4mllm.mllm.families import FAMILIES
from sam4mllm.prompts.conversation import Conversation, training_conversation
from sam4mllm.testing import TINY_MLLMS, tiny_gemma4, tiny_glm, tiny_llava, tiny_mllms, tiny_qwen, tiny_tiled

TALK = training_conversation("x.png", [("Where?", "[1,2]"), ("And this?", "yes")])

SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
NO_THOUGHT = "<think>\n\n</think>\n\n"


def chat_ml(image: str, before: str = "", prompt: str = "", last: str = "") -> tuple[str, str, str]:
    """`prompt` and `last` follow the header of the prompt and of the last answer."""
    return (
        f"{before}<|im_start|>user\n{image}Where?<|im_end|>\n",
        f"<|im_start|>assistant\n{prompt}",
        "<|im_start|>assistant\n[1,2]<|im_end|>\n<|im_start|>user\nAnd this?<|im_end|>\n"
        f"<|im_start|>assistant\n{last}yes<|im_end|>\n",
    )


def gemma4(prompt: str = "") -> tuple[str, str, str]:
    return (
        "<bos><|turn>user\n\n\n<|image|>\n\nWhere?<turn|>\n",
        f"<|turn>model\n{prompt}",
        "<|turn>model\n[1,2]<turn|>\n<|turn>user\nAnd this?<turn|>\n<|turn>model\nyes<turn|>\n",
    )


def split_image(before: str) -> tuple[str, str, str]:
    return (
        f"{before}User:<image>Where?<end_of_utterance>\n",
        "Assistant:",
        "Assistant: [1,2]<end_of_utterance>\nUser: And this?<end_of_utterance>\nAssistant: yes<end_of_utterance>\n",
    )


def glm(thought: str = "") -> tuple[str, str, str]:
    return (
        "[gMASK]<sop><|user|>\n<|begin_of_image|><|image|><|end_of_image|>Where?",
        "<|assistant|>" if thought else "<|assistant|>\n",
        f"<|assistant|>\n{thought}[1,2]<|user|>\nAnd this?<|assistant|>\n{thought}yes",
    )


FORMS: dict[str, tuple[str, str, str]] = {
    "qwen2_5_vl": chat_ml(QWEN_IMAGE, SYSTEM),
    "qwen2_vl": chat_ml(QWEN_IMAGE, SYSTEM),
    "qwen3_vl": chat_ml(QWEN_IMAGE),
    "qwen3_vl_moe": chat_ml(QWEN_IMAGE),
    "qwen3_5": chat_ml(QWEN_IMAGE, prompt="<think>\n", last=NO_THOUGHT),
    "qwen3_5_moe": chat_ml(QWEN_IMAGE, prompt="<think>\n", last=NO_THOUGHT),
    "minicpmv4_6": chat_ml("<|image_pad|>\n", prompt=NO_THOUGHT, last=NO_THOUGHT),
    "internvl": chat_ml("<IMG_CONTEXT>\n"),
    "lfm2_vl": chat_ml("<image>", "<|startoftext|>"),
    "molmo2": chat_ml("<|image|>"),
    "llava_next": (
        "<|start_header_id|>system<|end_header_id|>\n\nYou see images and answer questions.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n<image>\nWhere?<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|start_header_id|>assistant<|end_header_id|>\n\n[1,2]<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nAnd this?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nyes<|eot_id|>",
    ),
    "llava_onevision": (
        "<|im_start|>user <image>\nWhere?<|im_end|>",
        "<|im_start|>assistant\n",
        "<|im_start|>assistant \n[1,2]<|im_end|><|im_start|>user \nAnd this?<|im_end|>"
        "<|im_start|>assistant \nyes<|im_end|>",
    ),
    "llava": ("USER: <image>\nWhere? ", "ASSISTANT:", "ASSISTANT: [1,2] USER: And this? ASSISTANT: yes "),
    "fast_vlm": (
        f"{SYSTEM}<|im_start|>user\n<image>\nWhere?<|im_end|>\n",
        "<|im_start|>assistant\n",
        "<|im_start|>assistant\n\n[1,2]<|im_end|>\n<|im_start|>user\n\nAnd this?<|im_end|>\n"
        "<|im_start|>assistant\n\nyes<|im_end|>\n",
    ),
    "smolvlm": split_image("<|im_start|>"),
    "idefics3": split_image("<|begin_of_text|>"),
    "gemma3": (
        "<bos><start_of_turn>user\n<start_of_image>Where?<end_of_turn>\n",
        "<start_of_turn>model\n",
        "<start_of_turn>model\n[1,2]<end_of_turn>\n<start_of_turn>user\nAnd this?<end_of_turn>\n"
        "<start_of_turn>model\nyes<end_of_turn>\n",
    ),
    "gemma4": gemma4(),
    "gemma4_unified": gemma4("<|channel>thought\n<channel|>"),
    "glm4v": glm(),
    "glm4v_moe": glm("<think></think>\n"),
    "glm46v": glm("<think></think>\n"),
}
"""By model type: the rendered first question, the prompt after it, and the same conversation in training after it."""

ENDS = {
    "llava_next": "<|eot_id|>",
    "llava": "</s>",
    "smolvlm": "<end_of_utterance>",
    "idefics3": "<end_of_utterance>",
    "gemma3": "<end_of_turn>",
    "gemma4": "<turn|>",
    "gemma4_unified": "<turn|>",
    "glm4v": "<|endoftext|>",
    "glm4v_moe": "<|endoftext|>",
    "glm46v": "<|endoftext|>",
}
"""The tokens that end an answer; <|im_end|> for the other families."""


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def processor(family: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The processor of the tiny model, which is not built."""
    processors: list[Any] = []

    def keep_processor(folder: Path, model_class: Any, config: Any, processor: Any, *_: Any) -> None:
        processors.append(processor)

    for module in (tiny_gemma4, tiny_glm, tiny_llava, tiny_mllms, tiny_qwen, tiny_tiled):
        monkeypatch.setattr(module, "save", keep_processor)
    try:
        TINY_MLLMS[family](Path("unused"))
    except ImportError as error:
        pytest.skip(str(error))
    return processors[0]


def render(processor: Any, turns: int, **settings: bool) -> str:
    return processor.apply_chat_template(TALK.messages(turns), tokenize=False, **settings)


def test_the_template_renders_as_the_published_one(family: str, processor: Any) -> None:
    question, prompt, training = FORMS[family]
    assert render(processor, 1) == question
    assert render(processor, 1, add_generation_prompt=True) == question + prompt
    assert render(processor, 4) == question + training


def test_several_answers_can_be_trained_on_with_the_patched_template(family: str, processor: Any) -> None:
    patch_chat_template(processor)
    assert renders_several_answers(processor)
    assert processor.tokenizer.convert_ids_to_tokens(turn_end(processor)) == ENDS.get(family, "<|im_end|>")
    full = processor.tokenizer(render(processor, 4), add_special_tokens=False)["input_ids"]
    for turns in (1, 3):
        text = render(processor, turns, add_generation_prompt=True)
        ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert full[: len(ids)] == ids
    assert Conversation("x.png", TALK.turns[:3]).awaits_answer
