"""Training of tiny models on CPUs, with the weights in one process or sharded over several.

torchrun --nproc-per-node N tests/training/sharding_job.py HOME OUTPUT MODE BATCH STOP

MODE is `unsharded`, `zero2`, `zero3` or `fsdp`. Before step STOP (from 0; -1: never) the process exits. It writes the
run folder OUTPUT/run and OUTPUT/answers.jsonl: the answers of the validations and their yes-no probabilities.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from transformers import TrainerCallback

from sam4mllm.mllm.engine import Reply
from sam4mllm.mllm.transformers_engine import TransformersEngine
from sam4mllm.recipe.loading import load_recipe
from sam4mllm.training import arguments
from sam4mllm.training.trainer import train
from sam4mllm.utils.distributed import join_processes

ZERO = {
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "zero_optimization": {"stage": 2},
}
ZERO_3 = ZERO | {"zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True}}
FSDP = {"version": 2, "reshard_after_forward": True, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}
SETTINGS = {
    "unsharded": [],
    "zero2": [f"training.deepspeed={json.dumps(ZERO)}"],
    "zero3": [f"training.deepspeed={json.dumps(ZERO_3)}"],
    "fsdp": ["training.fsdp=true", f"training.fsdp_config={json.dumps(FSDP)}"],
}


def let_fsdp_run_on_a_cpu() -> None:
    """Torch's FSDP runs on CPUs over gloo, but accelerate does not use it there, so we refuse it; both are patched."""
    arguments.check_fsdp = lambda *_: None
    begin = AcceleratorState.__init__

    def begun(self: AcceleratorState, *given: Any, fsdp_plugin: Any = None, **settings: Any) -> None:
        is_first = not AcceleratorState._shared_state
        begin(self, *given, fsdp_plugin=fsdp_plugin, **settings)
        if is_first and fsdp_plugin is not None:
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin

    AcceleratorState.__init__ = begun


class Watch(TrainerCallback):
    """Checks that the weights are sharded as `mode` requires, and ends the process before step `stop`."""

    def __init__(self, mode: str, stop: int) -> None:
        self._mode, self._stop = mode, stop

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        weights = list(model.parameters())
        in_parts = {
            "zero3": [weight for weight in weights if hasattr(weight, "ds_id")],
            "fsdp": [weight for weight in weights if type(weight).__name__ == "DTensor"],
        }.get(self._mode, [])
        assert len(in_parts) == (len(weights) if self._mode in ("zero3", "fsdp") else 0)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self._stop:
            os._exit(3)


def record_answers(file: Path, *, is_main: bool) -> None:
    """Replace each first answer by a box, which the tiny model never writes, so that the second round is asked."""
    generate, score_answers = TransformersEngine.generate, TransformersEngine.score_answers

    def record(answer: object) -> None:
        if is_main:
            with file.open("a") as lines:
                lines.write(json.dumps(answer) + "\n")

    def generated(self: TransformersEngine, *given: Any, **settings: Any) -> Any:
        replies = generate(self, *given, **settings)
        record([reply.text for reply in replies])
        return [Reply("[10,10,60,70]") for _ in replies]

    def scored(self: TransformersEngine, *given: Any) -> Any:
        scores = score_answers(self, *given)
        record([each.yes for query in scores for question in query for each in question])
        return scores

    TransformersEngine.generate, TransformersEngine.score_answers = generated, scored


if __name__ == "__main__":
    home, output, mode, batch, stop = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4], int(sys.argv[5])
    torch.set_num_threads(1)
    output.mkdir(exist_ok=True)
    if mode == "fsdp":
        let_fsdp_run_on_a_cpu()
    record_answers(output / "answers.jsonl", is_main=os.environ["RANK"] == "0")
    overrides = [f"output={output}/run", "method={name: pqpp, phrases: 1}", *SETTINGS[mode]]
    recipe = load_recipe(home / "recipe.yaml", [*overrides, f"training.per_device_train_batch_size={batch}"])
    with join_processes() as processes:
        train(recipe, device="cpu", processes=processes, callbacks=[Watch(mode, stop)])
