"""Conversations: the order of the turns, and the messages for a chat template."""

from __future__ import annotations

import pytest

from sam4mllm.prompts.conversation import (
    Conversation,
    Turn,
    inference_conversation,
    isolated_conversation,
    training_conversation,
)

Q1, A1 = Turn("user", "where?"), Turn("assistant", "here", supervised=True)
Q2, A2 = Turn("user", "and there?"), Turn("assistant", "there", supervised=True)


def test_a_training_conversation_supervises_every_answer_and_no_question() -> None:
    conversation = training_conversation("a.jpg", [("where?", "here"), ("and there?", "there")])
    assert conversation == Conversation("a.jpg", (Q1, A1, Q2, A2))
    assert not conversation.awaits_answer


def test_an_inference_conversation_awaits_an_answer() -> None:
    conversation = inference_conversation("a.jpg", "where?")
    assert conversation.turns == (Q1,)
    assert conversation.awaits_answer


def test_messages_begin_with_the_image_and_hold_it_once() -> None:
    assert training_conversation("a.jpg", [("where?", "here"), ("and there?", "there")]).messages() == [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "where?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "here"}]},
        {"role": "user", "content": [{"type": "text", "text": "and there?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "there"}]},
    ]


def test_the_first_messages_are_a_prefix_of_all() -> None:
    conversation = Conversation("a.jpg", (Q1, A1, Q2, A2))
    for count in range(1, 5):
        assert conversation.messages(count) == conversation.messages()[:count]
    with pytest.raises(ValueError, match="at least one turn"):
        conversation.messages(0)


@pytest.mark.parametrize("turns", [(), (A1,), (Q1, Q2), (Q1, A1, A2)])
def test_turns_alternate_and_begin_with_the_users(turns: tuple[Turn, ...]) -> None:
    with pytest.raises(ValueError, match="alternate and begin with the user's"):
        Conversation("a.jpg", turns)


def test_a_training_conversation_without_pairs_is_refused() -> None:
    with pytest.raises(ValueError, match="alternate"):
        training_conversation("a.jpg", [])


def test_only_the_assistant_is_supervised() -> None:
    with pytest.raises(ValueError, match="only the assistant's turns"):
        Turn("user", "where?", supervised=True)


def test_an_unknown_role_is_refused() -> None:
    with pytest.raises(ValueError, match='"user" or "assistant"'):
        Turn("system", "be kind")  # type: ignore[arg-type]


def test_branches_are_conversations_of_their_own() -> None:
    pairs = [[("a?", "1")], [("b?", "2"), ("c?", "3")], [("d?", "4")]]
    conversation = isolated_conversation("image.png", pairs)
    assert conversation.branch_starts == (0, 2, 6)
    assert list(conversation.branches) == [training_conversation("image.png", each) for each in pairs]
    (single,) = conversation.branches[0].branches
    assert single == conversation.branches[0]
    with pytest.raises(ValueError, match="messages are those of one branch; got a conversation of 3"):
        conversation.messages()


@pytest.mark.parametrize("starts", [(), (2,), (0, 1), (0, 2, 2), (0, 4)])
def test_branches_begin_with_turns_of_the_user(starts: tuple[int, ...]) -> None:
    turns = training_conversation("image.png", [("a?", "1"), ("b?", "2")]).turns
    with pytest.raises(ValueError, match="branches begin with turn 0"):
        Conversation("image.png", turns, starts)
