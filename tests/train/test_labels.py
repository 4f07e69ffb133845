"""Only the supervised answers, each with the token that ends it, carry loss; whatever the template marks."""

import numpy as np
import pytest

from sam4mllm.chat.conversation import Conversation, Turn, asking, teaching
from sam4mllm.errors import DataError, ModelError
from sam4mllm.mllm.load import load_mllm
from sam4mllm.train.collator import Collator
from sam4mllm.train.labels import IGNORED, marks_answers, spans_of_mask
from tests.mllm import tiny

PICTURES = [np.full((height, width, 3), 90, dtype=np.uint8) for height, width in ((64, 64), (84, 56), (30, 112))]
EXCHANGES = [("Where is a?", "[1,2,3,4]"), ("Where is bb?", "No object found."), ("c", "[5,6,7,8] +(1,1)")]


@pytest.fixture(scope="module", params=["fast_vlm", "fast_vlm without marks", "qwen2_vl"])
def mllm(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mllm")
    if request.param == "qwen2_vl":
        return load_mllm(str(tiny.save_qwen2_vl(folder)))
    return load_mllm(str(tiny.save_fast_vlm(folder, generation=request.param == "fast_vlm")))


def learned(mllm, batch, row: int) -> str:
    labels = batch["labels"][row]
    return mllm.processor.tokenizer.decode(labels[labels != IGNORED])


def test_exactly_the_answers_and_their_ends_are_learned(mllm):
    conversations = [teaching(picture, EXCHANGES[: n + 1]) for n, picture in enumerate(PICTURES)]
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
    batch = Collator(mllm)([Conversation(PICTURES[0], turns)])
    assert learned(mllm, batch, 0) == "new<|im_end|>"


def test_labels_do_not_depend_on_the_rest_of_the_batch(mllm):
    conversations = [teaching(picture, EXCHANGES[n:]) for n, picture in enumerate(PICTURES)]
    collator = Collator(mllm)
    batch = collator(conversations)
    for row, conversation in enumerate(conversations):
        alone = collator([conversation])["labels"][0]
        assert (batch["labels"][row, : len(alone)] == alone).all()


def test_nothing_to_learn_is_an_error(mllm):
    unsupervised = Conversation(PICTURES[0], (Turn("user", "q"), Turn("assistant", "a")))
    with pytest.raises(DataError, match="nothing in this conversation is supervised"):
        Collator(mllm)([teaching(PICTURES[0], EXCHANGES), unsupervised])
    with pytest.raises(DataError, match="nothing in this conversation is supervised"):
        Collator(mllm)([asking(PICTURES[0], "q")])


def test_the_end_of_a_turn_is_learned_even_when_the_template_leaves_it_outside_the_block(tmp_path):
    mllm = load_mllm(str(tiny.save_fast_vlm(tmp_path)))
    mllm.processor.chat_template = mllm.processor.chat_template.replace(
        "<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>"
    )
    batch = Collator(mllm)([teaching(PICTURES[0], EXCHANGES[:2])])
    assert learned(mllm, batch, 0) == "[1,2,3,4]<|im_end|>No object found.<|im_end|>"


def test_a_template_that_ends_no_answer_is_told_of(tmp_path, recwarn):
    mllm = load_mllm(str(tiny.save_fast_vlm(tmp_path, generation=False)))
    Collator(mllm)([teaching(PICTURES[0], EXCHANGES)])
    assert not [warning for warning in recwarn if "learn to stop" in str(warning.message)]
    mllm.processor.chat_template = mllm.processor.chat_template.replace("['text'] }}<|im_end|>", "['text'] }}")
    with pytest.warns(UserWarning, match="may not learn to stop"):
        Collator(mllm)([teaching(PICTURES[0], EXCHANGES[:1])])


def test_a_template_that_forgets_earlier_answers_is_refused(tmp_path):
    mllm = load_mllm(str(tiny.save_fast_vlm(tmp_path, generation=False)))
    mllm.processor.chat_template = mllm.processor.chat_template.replace(
        "{{ message['content'][0]['text'] }}", "{% if loop.last %}{{ message['content'][0]['text'] }}{% endif %}"
    )
    with pytest.raises(ModelError, match=r"method\.phrases=1"):
        Collator(mllm)([teaching(PICTURES[0], EXCHANGES)])
    batch = Collator(mllm)([teaching(PICTURES[0], EXCHANGES[:1])])
    assert learned(mllm, batch, 0) == "[1,2,3,4]<|im_end|>"


def test_a_template_that_marks_only_the_last_answer_is_refused(tmp_path):
    mllm = load_mllm(str(tiny.save_fast_vlm(tmp_path)))
    mllm.processor.chat_template = mllm.processor.chat_template.replace(
        "{% generation %}{{ message['content'][0]['text'] }}<|im_end|>{% endgeneration %}",
        "{% if loop.last %}{% generation %}{{ message['content'][0]['text'] }}<|im_end|>{% endgeneration %}"
        "{% else %}{{ message['content'][0]['text'] }}<|im_end|>{% endif %}",
    )
    with pytest.raises(ModelError, match="marks 1 answers in a conversation of 3"):
        Collator(mllm)([teaching(PICTURES[0], EXCHANGES)])


@pytest.mark.parametrize(
    ("mask", "spans"),
    [
        ([], []),
        ([0, 0], []),
        ([1], [(0, 1)]),
        ([0, 1, 1, 0, 1], [(1, 3), (4, 5)]),
        ([1, 0, 0, 1, 1, 1, 0], [(0, 1), (3, 6)]),
    ],
)
def test_spans_of_a_mask(mask, spans):
    assert spans_of_mask(mask) == spans


@pytest.mark.parametrize(
    ("template", "marked"),
    [
        ("{% generation %}x{% endgeneration %}", True),
        ("{%- generation -%}x{%- endgeneration -%}", True),
        ("{% if add_generation_prompt %}x{% endif %}", False),
        ("", False),
    ],
)
def test_templates_that_mark_answers(template, marked):
    assert marks_answers(template) is marked
