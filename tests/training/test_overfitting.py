"""A tiny model that is trained on a few scenes locates their objects when it answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sam4mllm.geometry import Box
from sam4mllm.mllm.loading import load_mllm
from sam4mllm.mllm.transformers_engine import TransformersEngine
from sam4mllm.prompts.conversation import inference_conversation, training_conversation
from tests.training.located import fit_located, marked

SCENES = {
    "Where is the cat?": Box(0.1, 0.1, 0.4, 0.5),
    "old dog": Box(0.5, 0.2, 0.9, 0.6),
    "the red car by the wall": Box(0.2, 0.5, 0.6, 0.95),
    "x": Box(0.55, 0.6, 0.95, 0.9),
}
OPTIONS = (
    "method={name: pix2emb, prompt: box}",
    "training.max_steps=180",
    "training.learning_rate=5e-3",
    "training.per_device_train_batch_size=4",
    "training.logging_steps=20",
    "training.save_steps=1000",
    "lora={r: 16, lora_alpha: 32}",
)


def iou(box: Box, other: Box) -> float:
    width = min(box.x2, other.x2) - max(box.x1, other.x1)
    height = min(box.y2, other.y2) - max(box.y1, other.y1)
    overlap = max(width, 0) * max(height, 0)
    areas = sum((each.x2 - each.x1) * (each.y2 - each.y1) for each in (box, other))
    return overlap / (areas - overlap)


def test_a_few_scenes_are_overfitted_to_an_iou_of_95_percent(tmp_path: Path, fast_vlm: str) -> None:
    images = [np.full((64, 64, 3), 30 + 50 * index, dtype=np.uint8) for index in range(len(SCENES))]
    conversations = [
        training_conversation(image, [(question, marked("*", [box]))])
        for image, (question, box) in zip(images, SCENES.items(), strict=True)
    ]
    run = fit_located(tmp_path, fast_vlm, *OPTIONS, conversations=conversations)
    first, *_, last = run.log.read()
    for part in ("loss", "text_loss", "box_l1", "box_giou", "cycle_box", "cycle_state"):
        assert last[part] < 0.6 * first[part], part
    engine = TransformersEngine(load_mllm(fast_vlm, adapter=run.path), batch_size=4)
    asked = [inference_conversation(image, question) for image, question in zip(images, SCENES, strict=True)]
    replies = engine.generate_located(asked, max_new_tokens=4)
    found = [reply.locations[0].box for reply in replies]
    assert min(map(iou, found, SCENES.values())) >= 0.95
