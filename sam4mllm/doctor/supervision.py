"""The checks of what a conversation teaches: which tokens carry loss, and that the model is asked by those before them.

This module knows no images.
"""

from __future__ import annotations

from sam4mllm.doctor.subject import Subject
from sam4mllm.doctor.verdict import expect
from sam4mllm.mllm.inputs import messages_with_image, model_inputs
from sam4mllm.train.collator import IGNORED, Collator


def answers_alone_carry_loss(subject: Subject) -> None:
    """The labels are the answers' tokens and the token that ends each, and nothing else but white space."""
    mllm = subject.mllm
    labels = Collator(mllm)(subject.lessons)["labels"]
    for row, conversation in zip(labels.tolist(), subject.lessons, strict=True):
        spoken = mllm.processor.tokenizer.decode([token for token in row if token != IGNORED])
        end = mllm.processor.tokenizer.decode([mllm.end_ids[0]])
        wanted = "".join(turn.text + end for turn in conversation.turns if turn.supervised)
        # The space before an answer is often one token with its first character.
        expect("".join(spoken.split()) == wanted, f"{spoken!r} carries loss, not {wanted!r}")


def asks_as_it_teaches(subject: Subject) -> None:
    """The tokens that ask for an answer are those in front of the taught one, and its loss begins where they end."""
    mllm = subject.mllm
    batch = Collator(mllm)(subject.lessons)
    for row, conversation in enumerate(subject.lessons):
        ids, labels = batch["input_ids"][row].tolist(), batch["labels"][row].tolist()
        for turn in range(1, len(conversation.turns), 2):
            messages = [messages_with_image(conversation, turn)]
            inputs = model_inputs(mllm.processor, messages, padding_side="left", add_generation_prompt=True)
            (asked,) = inputs["input_ids"].tolist()
            parted = next((place for place, token in enumerate(asked) if token != ids[place]), None)
            expect(parted is None, f"token {parted} is asked otherwise than it is taught")
            end = len(asked)
            expect(labels[end - 1] == IGNORED != labels[end], f"the loss does not begin at token {end}, as the answer")
