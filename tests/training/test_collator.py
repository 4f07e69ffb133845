"""Only the supervised answers and the tokens that end them carry loss."""

import numpy as np
import pytest

from sam4mllm.errors import DataError, ModelError
from sam4mllm.mllm.loading import load_mllm
from sam4mllm.prompts.conversation import Conversation, Turn, inference_conversation, training_conversation
from sam4mllm.testing import save_tiny_mllm
from sam4mllm.training.collator import IGNORED, Collator

IMAGES = [np.full((height, width, 3), 90, dtype=np.uint8) for height, width in ((64, 64), (84, 56), (30, 112))]
EXCHANGES = [("Where is a?", "[1,2,3,4]"), ("Where is bb?", "No object found."), ("c", "[5,6,7,8] +(1,1)")]


@pytest.fixture(scope="module", params=["fast_vlm", "qwen2_vl", "llava_onevision"])
def mllm(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mllm")
    return load_mllm(str(save_tiny_mllm(request.param, folder)))


def supervised_text(mllm, batch, row: int) -> str:
    labels = batch["labels"][row]
    return mllm.processor.tokenizer.decode(labels[labels != IGNORED])


def test_the_answers_and_their_end_tokens_are_supervised(mllm):
    conversations = [training_conversation(image, EXCHANGES[: n + 1]) for n, image in enumerate(IMAGES)]
    batch = Collator(mllm)(conversations)
    for row in range(3):
        assert supervised_text(mllm, batch, row) == "".join(answer + "<|im_end|>" for _, answer in EXCHANGES[: row + 1])
    supervised = batch["labels"] != IGNORED
    assert (batch["labels"][supervised] == batch["input_ids"][supervised]).all()
    assert not supervised[batch["attention_mask"] == 0].any()


def test_an_unsupervised_turn_has_no_labels(mllm):
    turns = (
        Turn("user", "first?"),
        Turn("assistant", "known"),
        Turn("user", "second?"),
        Turn("assistant", "new", supervised=True),
    )
    batch = Collator(mllm)([Conversation(IMAGES[0], turns)])
    assert supervised_text(mllm, batch, 0) == "new<|im_end|>"


def test_labels_do_not_depend_on_the_rest_of_the_batch(mllm):
    conversations = [training_conversation(image, EXCHANGES[n:]) for n, image in enumerate(IMAGES)]
    collator = Collator(mllm)
    batch = collator(conversations)
    for row, conversation in enumerate(conversations):
        alone = collator([conversation])["labels"][0]
        assert (batch["labels"][row, : len(alone)] == alone).all()


def test_a_conversation_without_a_supervised_answer_is_an_error(mllm):
    unsupervised = Conversation(IMAGES[0], (Turn("user", "q"), Turn("assistant", "a")))
    with pytest.raises(DataError, match="no answer in this conversation is supervised"):
        Collator(mllm)([training_conversation(IMAGES[0], EXCHANGES), unsupervised])
    with pytest.raises(DataError, match="no answer in this conversation is supervised"):
        Collator(mllm)([inference_conversation(IMAGES[0], "q")])


def test_where_the_template_does_not_end_an_answer_the_tokenizers_end_token_is_supervised(tmp_path):
    mllm = load_mllm(str(save_tiny_mllm("llava", tmp_path)))
    batch = Collator(mllm)([training_conversation(IMAGES[0], EXCHANGES[:2])])
    assert supervised_text(mllm, batch, 0) == " [1,2,3,4]</s> No object found.</s>"


def test_a_template_without_an_end_token_is_refused(tmp_path):
    mllm = load_mllm(str(save_tiny_mllm("qwen2_vl", tmp_path)))
    mllm.processor.chat_template = mllm.processor.chat_template.replace("{% endfor %}<|im_end|>", "{% endfor %}")
    with pytest.raises(ModelError, match="would not learn to stop"):
        Collator(mllm)([training_conversation(IMAGES[0], EXCHANGES[:1])])


def test_a_template_that_drops_earlier_answers_is_refused(tmp_path):
    mllm = load_mllm(str(save_tiny_mllm("qwen2_vl", tmp_path)))
    mllm.processor.chat_template = mllm.processor.chat_template.replace(
        "{% for part", "{% set kept = loop.last or message['role'] == 'user' %}{% for part"
    ).replace("{{ part['text'] }}", "{{ part['text'] if kept }}")
    with pytest.raises(ModelError, match=r"method\.phrases=1"):
        Collator(mllm)([training_conversation(IMAGES[0], EXCHANGES)])
    batch = Collator(mllm)([training_conversation(IMAGES[0], EXCHANGES[:1])])
    assert supervised_text(mllm, batch, 0) == "[1,2,3,4]<|im_end|>"
