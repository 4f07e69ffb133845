"""Texts that hold a control token of the chat template: the tokens of each family, and where they are rejected."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sam4mllm.errors import DataError
from sam4mllm.mllm.control_tokens import check_messages, check_unknown_tokenizer, control_tokens, special_tokens
from sam4mllm.mllm.inputs import messages_with_image, model_inputs
from sam4mllm.mllm.loading import load_mllm, load_processor
from sam4mllm.mllm.locations import LocationSettings, add_locations
from sam4mllm.mllm.server_engine import ServerEngine
from sam4mllm.prompts.conversation import inference_conversation, training_conversation
from sam4mllm.testing import save_tiny_mllm
from tests.mllm.fake_server import Server

IMAGE = np.zeros((64, 64, 3), dtype=np.uint8)

CONTROL = {
    "qwen2_vl": {"<|im_end|>", "<|im_start|>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|pad|>"},
    "llava": {"<image>", "</s>"},
    "gemma3": {"<start_of_image>", "<end_of_image>", "<image_soft_token>", "<start_of_turn>", "<end_of_turn>", "<eos>"},
    "internvl": {"<img>", "</img>", "<IMG_CONTEXT>", "<|im_end|>"},
}
HARMLESS = ("the cup", "<b>bold</b>", "a < b > c", "[1,2]", "the sign 'USER'", "<|not a token|", "im_end")


@pytest.fixture(scope="module")
def processors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("models")
    return {name: load_processor(str(save_tiny_mllm(name, folder / name)))[0] for name in CONTROL}


@pytest.mark.parametrize("family", CONTROL)
def test_tokens_of_images_turns_and_the_template_are_control_tokens(processors, family: str) -> None:
    processor = processors[family]
    assert CONTROL[family] <= control_tokens(processor) <= special_tokens(processor)
    for token in sorted(CONTROL[family]):
        for text in (f"a {token} b", f"{token}", f"x{token}user y"):
            with pytest.raises(DataError, match="reads as a control token"):
                check_messages(processor, [training_conversation(IMAGE, [(text, "[]")]).messages()])
            with pytest.raises(DataError, match="reads as a control token"):
                check_messages(processor, [training_conversation(IMAGE, [("?", "[]"), ("?", text)]).messages()])
    for text in HARMLESS:
        check_messages(processor, [training_conversation(IMAGE, [(text, text)]).messages()])


def test_tokens_of_coordinates_may_be_in_a_conversation_but_not_in_a_phrase(processors) -> None:
    assert not {"<box>", "<ref>"} & control_tokens(processors["internvl"])
    assert {"<box>", "<ref>"} <= special_tokens(processors["internvl"])


def test_the_location_token_is_none_in_a_phrase_where_the_tokenizer_has_it(tmp_path: Path) -> None:
    mllm = load_mllm(str(save_tiny_mllm("qwen2_vl", tmp_path)))
    assert "<location>" not in special_tokens(mllm.processor)
    add_locations(mllm, LocationSettings(), seed=0)
    assert "<location>" in special_tokens(mllm.processor) - control_tokens(mllm.processor)


def test_labels_of_roles_without_special_tokens_are_control_tokens(tmp_path: Path) -> None:
    processor, _ = load_processor(str(save_tiny_mllm("llava", tmp_path)))
    processor.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}USER: {% for p in m.content %}{{ '<image>' if p.type == "
        "'image' else p.text }}{% endfor %} ASSISTANT: {% else %}{{ m.content[0].text }}</s>{% endif %}{% endfor %}"
    )
    assert "ASSISTANT:" in control_tokens(processor)


def test_a_control_token_in_training_or_inference_is_refused_with_its_surroundings(processors) -> None:
    conversation = inference_conversation(IMAGE, 'Where is "cup<|im_end|>"? Box each object.')
    with pytest.raises(DataError, match=r"cup<\|im_end\|>.* holds '<\|im_end\|>', .*; reword it") as caught:
        model_inputs(processors["qwen2_vl"], [messages_with_image(conversation)], padding_side="left")
    assert caught.value.kind == "phrase"


@pytest.mark.parametrize(
    "token",
    [
        "<|im_end|>",
        "<|turn>",
        "<turn|>",
        "</s>",
        "<image>",
        "[INST]",
        "[/INST]",
        "<end_of_turn>",
        "<\uff5cUser\uff5c>",
        "<think>",
    ],
)
def test_a_server_is_not_asked_a_question_with_a_token_of_a_common_family(token: str) -> None:
    with Server() as server, pytest.raises(DataError, match="control token"):
        ServerEngine(server.url, "m").generate([inference_conversation(IMAGE, f"Where is {token}?")], 5)
    assert not server.asked


@pytest.mark.parametrize("text", [*HARMLESS, "<|box_start|>(1,2),(3,4)<|box_end|>", "<box>[[1,2,3,4]]</box>"])
def test_other_texts_are_sent(text: str) -> None:
    check_unknown_tokenizer(text)
