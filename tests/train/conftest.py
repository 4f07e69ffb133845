from pathlib import Path

import numpy as np
import pytest
import torch

from sam4mllm.prompts.conversation import Conversation, teaching
from sam4mllm.recipe.loading import Recipe, load_recipe
from tests.mllm import tiny

RECIPE = """
seed: 3
output: {output}
model: {{base: {base}}}
segmenter: {{checkpoint: none.pth}}
data:
  train: [{{dataset: shapes, root: {output}, split: train}}]
lora: {{r: 4, lora_alpha: 8, lora_dropout: 0.1}}
training:
  max_steps: 8
  per_device_train_batch_size: 2
  learning_rate: 1e-2
  lr_scheduler_type: cosine
  warmup_steps: 2
  save_steps: 2
  logging_steps: 1
  validate: {{every_steps: 2}}
"""


@pytest.fixture(scope="session")
def fast_vlm(tmp_path_factory) -> str:
    return str(tiny.save_fast_vlm(tmp_path_factory.mktemp("fast_vlm"), seed=1))


def make_recipe(folder: Path, base: str, *overrides: str) -> Recipe:
    file = folder / "recipe.yaml"
    file.write_text(RECIPE.format(output=folder / "run", base=base))
    return load_recipe(file, overrides)


def make_conversations(count: int = 6) -> list[Conversation]:
    """Images of random pixels, each with one to three phrases, so that rows differ in length."""
    rng = np.random.default_rng(5)
    images = rng.integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)
    return [
        teaching(image, [(f"Where is {index}?", f"[{index},2,{turn},4]") for turn in range(index % 3 + 1)])
        for index, image in enumerate(images)
    ]


def adapter_of(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys() and a
    return max(float((a[name] - b[name]).abs().max()) for name in a)
