"""What every method that is answered in the grammar shares: a reply read back, with what the model's words weigh."""

from __future__ import annotations

from sam4mllm.chat.grammar import AnswerGrammar
from sam4mllm.data.queries import Evidence
from sam4mllm.methods.base import Answer
from sam4mllm.mllm.generate import Reply


def read_reply(grammar: AnswerGrammar, reply: Reply, size_wh: tuple[int, int], max_new_tokens: int) -> Answer:
    """What a reply of at most `max_new_tokens` tokens says about a picture of `size_wh` pixels."""
    # What is left of a cut answer may well read as a shorter one, with an object too few.
    if not reply.finished:
        return Answer("malformed", (), reply.text, f"cut off at max_new_tokens={max_new_tokens}")
    parsed = grammar.parse(reply.text, size_wh)
    spans = {"ok": parsed.box_spans, "no_object": ((0, len(reply.text)),), "malformed": ()}[parsed.status]
    evidence = tuple(Evidence(reply.mean_logprob(start, end)) for start, end in spans)
    return Answer(parsed.status, parsed.prompts, reply.text, parsed.reason, evidence)
