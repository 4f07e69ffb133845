"""Greedy decoding by transformers' `generate`, for weights that are sharded over processes (FSDP, ZeRO-3).

Every pass gathers the weights from all processes, so all of them have to run the same number of passes; transformers'
loop goes on until all answers of all processes are complete.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sam4mllm.mllm.decoding import Generated
from sam4mllm.mllm.engine import TokenConstraint
from sam4mllm.mllm.inputs import messages_with_image, model_inputs
from sam4mllm.mllm.loading import Mllm
from sam4mllm.prompts.conversation import Conversation
from sam4mllm.utils.memory import runs_in_a_process_group

if TYPE_CHECKING:
    import torch


def sharded_over_processes(model: Any) -> bool:
    """Return whether each of several processes holds only a part of the model's weights."""
    if not runs_in_a_process_group():
        return False
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.tensor import DTensor

    # DeepSpeed's ZeRO-3 gives each parameter an id; FSDP 2 makes it a DTensor, and FSDP 1 wraps modules.
    return any(hasattr(weight, "ds_id") or isinstance(weight, DTensor) for weight in model.parameters()) or any(
        isinstance(module, FullyShardedDataParallel) for module in model.modules()
    )


def generate_sharded(
    mllm: Mllm,
    conversations: Sequence[Conversation],
    constraints: Sequence[TokenConstraint | None],
    max_new_tokens: int,
) -> list[Generated]:
    """Return the answers to one batch of conversations, with the log-probability of every token."""
    import torch
    from transformers import GenerationConfig

    # 1. A left-padded batch: every prompt ends in the last column, where generation continues.
    inputs = model_inputs(
        mllm.processor,
        [messages_with_image(conversation) for conversation in conversations],
        padding_side="left",
        add_generation_prompt=True,
    ).to(mllm.device, mllm.dtype)
    # 2. Settings of greedy decoding. Every value that would change it is set here, because transformers takes the
    #    others from the checkpoint's generation_config.json, and some chat models have a repetition penalty in it,
    #    which changes the digits of coordinates.
    settings = GenerationConfig(
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        max_new_tokens=max_new_tokens,
        eos_token_id=mllm.end_ids,
        pad_token_id=mllm.processor.tokenizer.pad_token_id,
        use_cache=True,
    )
    # 3. Log-probabilities are those of the model's distribution, before a constraint changes it.
    answers = [Generated(constraint) for constraint in constraints]

    def restrict(_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.float()
        restricted = scores.clone()
        live = [index for index, answer in enumerate(answers) if answer.tokens[-1:] not in ends]
        for index in live:
            _restrict(answers[index].constraint, restricted[index])
        tokens = restricted.argmax(dim=-1)
        logprobs = scores.log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0].tolist()
        for index in live:
            _append(answers[index], int(tokens[index]), logprobs[index])
        return restricted

    ends = [[token] for token in mllm.end_ids]
    # Not inference mode: weights that FSDP gathers in it could not be used by the next training step.
    with torch.no_grad():
        mllm.model.generate(**inputs, generation_config=settings, logits_processor=[restrict])
    return answers


def _restrict(constraint: TokenConstraint | None, logits: torch.Tensor) -> None:
    """Set the logits (V,) of all tokens that cannot come next to -inf, in place."""
    if constraint is None:
        return
    forced = constraint.forced()
    if forced:
        kept = logits[forced[0]].clone()
        logits.fill_(float("-inf"))
        logits[forced[0]] = kept
    else:
        constraint.restrict(logits)


def _append(answer: Generated, token: int, logprob: float) -> None:
    """Append a token to an answer."""
    answer.tokens.append(token)
    answer.logprobs.append(logprob)
    if answer.constraint is not None:
        answer.constraint.accept(token)
