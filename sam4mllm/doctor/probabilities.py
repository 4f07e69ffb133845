"""The check of what yes and no weigh: many answers read together, beside each one read alone.

This module knows no points.
"""

from __future__ import annotations

import math

from sam4mllm.doctor.subject import Subject
from sam4mllm.doctor.verdict import expect
from sam4mllm.mllm.inputs import messages_with_image, model_inputs
from sam4mllm.mllm.loading import Mllm
from sam4mllm.mllm.transformers_engine import TransformersEngine
from sam4mllm.prompts.conversation import Conversation, Turn
from sam4mllm.prompts.yes_no import YesNoQuery, YesNoQuestion, write_answers


def yes_and_no_weighed_together(subject: Subject) -> None:
    """What yes and no weigh after a shared image is what each weighs alone, in a list after the answers before it."""
    mllm = subject.mllm
    histories = [Conversation(q.image, (*q.turns, Turn("assistant", "[1,2]"))) for q in subject.questions[:2]]
    questions = (YesNoQuestion("On (1,2)(3,4)(5,6)?", 3), YesNoQuestion("And on (7,8)?", 1))
    inquiries = [YesNoQuery(histories[0], questions), YesNoQuery(histories[1], questions[:1])]
    together = TransformersEngine(mllm, 3).score_answers(inquiries)
    for inquiry, answered in zip(inquiries, together, strict=True):
        for question, weights in zip(inquiry.questions, answered, strict=True):
            taken: list[bool] = []
            for weight in weights:
                alone = weighed_alone(mllm, inquiry.history, question.text, taken)
                apart = max(abs(math.log(a / b)) for a, b in zip(alone, weight, strict=True))
                expect(apart < 1e-3, f"after {taken} yes and no weigh {weight} together, {alone} alone")
                taken.append(alone[0] > alone[1])


def weighed_alone(mllm: Mllm, history: Conversation, question: str, taken: list[bool]) -> tuple[float, float]:
    """The probabilities of yes and no for the next answer, by one pass over the whole conversation."""
    import torch

    asked = (*history.turns, Turn("user", question))
    rows = []
    for answer in (True, False):
        said = Conversation(history.image, (*asked, Turn("assistant", write_answers([*taken, answer]))))
        rows.append(model_inputs(mllm.processor, [messages_with_image(said)], padding_side="left").to(mllm.device))
    yes, no = (row["input_ids"][0].tolist() for row in rows)
    place = next(place for place, (a, b) in enumerate(zip(yes, no, strict=False)) if a != b)
    with torch.no_grad():
        likely = mllm.model(**rows[0].to(mllm.dtype)).logits[0, place - 1].float().softmax(dim=-1)
    return float(likely[yes[place]]), float(likely[no[place]])
