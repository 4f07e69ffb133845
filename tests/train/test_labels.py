"""Only the supervised answers, each with the token that ends it, carry loss, from where the question for it ends."""

import numpy as np
import pytest

from sam4mllm.errors import DataError, ModelError
from sam4mllm.mllm.loading import load_mllm
from sam4mllm.prompts.conversation import Conversation, Turn, asking, teaching
from sam4mllm.train.collator import Collator
from sam4mllm.train.labels import IGNORED
from tests.mllm import tiny

IMAGES = [np.full((height, width, 3), 90, dtype=np.uint8) for height, width in ((64, 64), (84, 56), (30, 112))]
EXCHANGES = [("Where is a?", "[1,2,3,4]"), ("Where is bb?", "No object found."), ("c", "[5,6,7,8] +(1,1)")]


@pytest.fixture(scope="module", params=["fast_vlm", "qwen2_vl", "llava_onevision"])
def mllm(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mllm")
    return load_mllm(str(getattr(tiny, f"save_{request.param}")(folder)))


def learned(mllm, batch, row: int) -> str:
    labels = batch["labels"][row]
    return mllm.processor.tokenizer.decode(labels[labels != IGNORED])


def test_exactly_the_answers_and_their_ends_are_learned(mllm):
    conversations = [teaching(image, EXCHANGES[: n + 1]) for n, image in enumerate(IMAGES)]
    batch = Collator(mllm)(conversations)
    for row in range(3):
        assert learned(mllm, batch, row) == "".join(answer + "<|im_end|>" for _, answer in EXCHANGES[: row + 1])
    supervised = batch["labels"] != IGNORED
    assert (batch["labels"][supervised] == batch["input_ids"][supervised]).all()
    assert not supervised[batch["attention_mask"] == 0].any()


def test_a_turn_that_is_not_supervised_is_only_read(mllm):
    turns = (
        Turn("user", "first?"),
        Turn("assistant", "known"),
        Turn("user", "second?"),
        Turn("assistant", "new", supervised=True),
    )
    batch = Collator(mllm)([Conversation(IMAGES[0], turns)])
    assert learned(mllm, batch, 0) == "new<|im_end|>"


def test_labels_do_not_depend_on_the_rest_of_the_batch(mllm):
    conversations = [teaching(image, EXCHANGES[n:]) for n, image in enumerate(IMAGES)]
    collator = Collator(mllm)
    batch = collator(conversations)
    for row, conversation in enumerate(conversations):
        alone = collator([conversation])["labels"][0]
        assert (batch["labels"][row, : len(alone)] == alone).all()


def test_nothing_to_learn_is_an_error(mllm):
    unsupervised = Conversation(IMAGES[0], (Turn("user", "q"), Turn("assistant", "a")))
    with pytest.raises(DataError, match="nothing in this conversation is supervised"):
        Collator(mllm)([teaching(IMAGES[0], EXCHANGES), unsupervised])
    with pytest.raises(DataError, match="nothing in this conversation is supervised"):
        Collator(mllm)([asking(IMAGES[0], "q")])


def test_an_answer_that_the_template_leaves_open_learns_the_tokenizers_end_and_nothing_of_the_next_turn(tmp_path):
    mllm = load_mllm(str(tiny.save_llava(tmp_path)))
    batch = Collator(mllm)([teaching(IMAGES[0], EXCHANGES[:2])])
    assert learned(mllm, batch, 0) == " [1,2,3,4]</s> No object found.</s>"


def test_a_template_that_ends_no_answer_is_refused(tmp_path):
    mllm = load_mllm(str(tiny.save_qwen2_vl(tmp_path)))
    mllm.processor.chat_template = mllm.processor.chat_template.replace("{% endfor %}<|im_end|>", "{% endfor %}")
    with pytest.raises(ModelError, match="would not learn to stop"):
        Collator(mllm)([teaching(IMAGES[0], EXCHANGES[:1])])


def test_a_template_that_forgets_earlier_answers_is_refused(tmp_path):
    mllm = load_mllm(str(tiny.save_qwen2_vl(tmp_path)))
    mllm.processor.chat_template = mllm.processor.chat_template.replace(
        "{% for part", "{% set said = loop.last or message['role'] == 'user' %}{% for part"
    ).replace("{{ part['text'] }}", "{{ part['text'] if said }}")
    with pytest.raises(ModelError, match=r"method\.phrases=1"):
        Collator(mllm)([teaching(IMAGES[0], EXCHANGES)])
    batch = Collator(mllm)([teaching(IMAGES[0], EXCHANGES[:1])])
    assert learned(mllm, batch, 0) == "[1,2,3,4]<|im_end|>"
