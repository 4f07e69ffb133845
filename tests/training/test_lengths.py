"""Batches of similar lengths: less padding, every conversation once an epoch, and a resumed run with the same bytes."""

import numpy as np
import pytest
from PIL import Image

from sam4mllm.mllm.loading import load_mllm
from sam4mllm.prompts.conversation import isolated_conversation, training_conversation
from sam4mllm.testing import save_tiny_mllm
from sam4mllm.training.collator import Collator
from sam4mllm.training.lengths import BatchesOfSimilarLength, conversation_lengths, padding_share
from tests.training.helpers import StopAt, adapter_of, make_recipe, run_fit

GROUPED = ("training.train_sampling_strategy=group_by_length",)


def various_conversations(count: int = 160):
    """Images of many sizes with one to five phrases each."""
    rng = np.random.default_rng(0)
    conversations = []
    for index in range(count):
        image = np.zeros((*rng.integers(40, 400, 2), 3), dtype=np.uint8)
        pairs = [(f"Where is the {'very ' * int(rng.integers(6))}red one?", "[10,20,30,40] +(1,2)")] * (index % 5 + 1)
        conversations.append(isolated_conversation(image, [[pair] for pair in pairs]))
    return conversations


def test_less_than_a_tenth_of_the_tokens_is_padding(tmp_path):
    mllm = load_mllm(str(save_tiny_mllm("qwen3_vl", tmp_path)))
    conversations = various_conversations()
    tokens = [int(Collator(mllm)([each])["attention_mask"].sum()) for each in conversations]
    estimated = conversation_lengths(conversations, mllm.processor)
    grouped = list(BatchesOfSimilarLength(estimated, 4, seed=0))
    assert padding_share(tokens, grouped, 4) < 0.1 < 0.2 < padding_share(tokens, range(len(tokens)), 4)


@pytest.mark.parametrize("count", [1, 7, 8, 1003])
def test_each_epoch_has_every_conversation_once_in_another_order_of_batches(count):
    lengths = np.random.default_rng(1).integers(10, 900, count).tolist()
    order = BatchesOfSimilarLength(lengths, 4, seed=3)
    first = list(order)
    assert sorted(first) == list(range(count)) and len(order) == count
    assert list(order) == first
    order.set_epoch(1)
    second = list(order)
    assert sorted(second) == list(range(count))
    if count == 1003:
        assert second != first and padding_share(lengths, second, 4) < 0.05
        assert list(BatchesOfSimilarLength(lengths, 4, seed=4)) != first
        # Long and short batches alternate.
        means = [np.mean([lengths[index] for index in first[start : start + 4]]) for start in range(0, 200, 4)]
        assert np.corrcoef(means, range(50))[0, 1] == pytest.approx(0, abs=0.4)


@pytest.mark.parametrize("family", ["smolvlm", "qwen2_5_vl", "gemma3"])
def test_lengths_depend_on_text_and_image_size_alone(tmp_path, family):
    processor = load_mllm(str(save_tiny_mllm(family, tmp_path))).processor
    file = tmp_path / "image.png"
    Image.new("RGB", (300, 200)).save(file)
    pairs = [("Where is it?", "[1,2,3,4]")]
    images = [file, Image.new("RGB", (300, 200)), np.zeros((200, 300, 3), np.uint8), None]
    lengths = conversation_lengths([training_conversation(image, pairs) for image in images], processor)
    assert lengths[0] == lengths[1] == lengths[2] > lengths[3] > 0
    (longer,) = conversation_lengths([training_conversation(file, pairs * 2)], processor)
    assert longer > lengths[0]
    # An image that cannot be opened is an error of the training, not of its order.
    assert conversation_lengths([training_conversation(tmp_path / "none.png", pairs)], processor)[0] > 0


@pytest.fixture(scope="module")
def uninterrupted_grouped(tmp_path_factory, fast_vlm):
    return adapter_of(run_fit(make_recipe(tmp_path_factory.mktemp("grouped"), fast_vlm, *GROUPED)).path)


def test_the_order_is_another_than_the_random_one(uninterrupted, uninterrupted_grouped):
    random = adapter_of(uninterrupted.path)
    assert any(not each.equal(random[name]) for name, each in uninterrupted_grouped.items())


# Three steps an epoch and a checkpoint every two: a run resumes within the first epoch, or within the second one.
@pytest.mark.parametrize("stopped_after", [3, 5])
def test_a_resumed_run_continues_the_order(tmp_path, fast_vlm, uninterrupted_grouped, stopped_after):
    recipe = make_recipe(tmp_path, fast_vlm, *GROUPED)
    with pytest.raises(KeyboardInterrupt):
        run_fit(recipe, stop=StopAt(stopped_after))
    resumed = adapter_of(run_fit(recipe).path)
    assert all(each.equal(resumed[name]) for name, each in uninterrupted_grouped.items())
