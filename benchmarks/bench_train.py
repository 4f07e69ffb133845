r"""Time training steps on several phrases an image, beside transformers' Trainer with one phrase a sequence.

    python benchmarks/bench_train.py --json runs/bench-train.json
    python benchmarks/bench_train.py --real
    python benchmarks/bench_train.py --base Qwen/Qwen2-VL-2B-Instruct --dtype bfloat16 --device cuda --images 16

Both train a LoRA adapter with equal initial values for one epoch of the same phrases, as many in each optimizer step,
in random order. The baseline is the code of transformers' examples: `Trainer`, and a collator that renders each phrase
with its image and answer, pads, and gives loss to the answers alone. Ours is what `train` runs with
`method.packing: isolated`: the phrases of an image share it and do not see each other. Before they are timed, loss and
gradients of the same phrases are compared. "padding" is the share of padding in batches of 4 of 32 images, "tokens" are
those per phrase without padding. --real uses a random Qwen2.5-VL of 281 million parameters with 272 image tokens.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from questions import images_and_phrases
from real_size import load_cpu_mllm
from script import Figures, add_models, add_phrases, add_size, parser_of, report
from timing import DifferentResultsError, rows_of, take_turns

from sam4mllm.mllm.loading import Mllm, load_mllm
from sam4mllm.mllm.lora import attach_lora
from sam4mllm.prompts.conversation import Conversation, isolated_conversation
from sam4mllm.prompts.questions import ask_prompts
from sam4mllm.training.callbacks import DisableVisionInputGrads
from sam4mllm.training.checked_trainer import CheckedTrainer
from sam4mllm.training.collator import IGNORED, Collator
from sam4mllm.training.isolation import isolate_branches

PADDED_IMAGES, PADDED_BATCH = 32, 4
TOLERANCE = 1e-4
"""The largest relative difference of losses, and of gradients relative to the largest one, in float32."""


Notes = dict[str, str]


@dataclass
class PlainCollator:
    """Makes a batch of conversations with one phrase each, as transformers' examples for image and text do."""

    processor: Any

    def __call__(self, conversations: Sequence[Conversation]) -> dict[str, Any]:
        chats = [conversation.messages() for conversation in conversations]
        images = [[Image.fromarray(np.asarray(conversation.image))] for conversation in conversations]
        texts = [text.rstrip() for text in self.processor.apply_chat_template(chats, tokenize=False)]
        questions = [chat[:1] for chat in chats]
        prompts = self.processor.apply_chat_template(questions, tokenize=False, add_generation_prompt=True)
        batch = self.processor(text=texts, images=images, padding=True, padding_side="right", return_tensors="pt")
        labels = torch.full_like(batch["input_ids"], IGNORED)
        count = [len(ids) for ids in self.processor.tokenizer(texts)["input_ids"]]
        of_prompt = [len(ids) for ids in self.processor.tokenizer(prompts)["input_ids"]]
        for row, end in enumerate(batch["attention_mask"].sum(dim=1).tolist()):
            answer = slice(end - (count[row] - of_prompt[row]), end)
            labels[row, answer] = batch["input_ids"][row, answer]
        return {**batch, "labels": labels}


def conversations_of(images: int, phrases: int, seed: int) -> list[Conversation]:
    """Return a conversation with a branch for each phrase of each scene, with answers of PPG."""
    rng = np.random.default_rng(seed)

    def answer() -> str:
        corners, points = rng.integers(100, 1000, 4), rng.integers(100, 1000, (3, 2)).tolist()
        on, also_on, off = (f"({x},{y})" for x, y in points)
        return f"[{','.join(map(str, corners))}] +{on}{also_on} -{off}"

    return [
        isolated_conversation(image, [[(ask_prompts(text, 2, 1), answer())] for text in texts])
        for image, texts in images_and_phrases(images, phrases, seed)
    ]


def load(options: argparse.Namespace) -> Mllm:
    """Load the model with a new adapter whose gradients are not zero."""
    if options.real:
        mllm = load_cpu_mllm(options.work, options.device)
    else:
        mllm = load_mllm(options.base, device=options.device, dtype=options.dtype)
    return attach_lora(mllm, {"r": 16, "lora_alpha": 32, "init_lora_weights": False}, seed=0)


def loss_and_gradients(
    mllm: Mllm, batches: Sequence[dict[str, Any]], answers: int
) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the mean loss over `answers` supervised tokens, and the gradients of the adapter, summed over batches."""
    mllm.model.zero_grad()
    total = 0.0
    for batch in batches:
        on_device = {name: value.to(mllm.device) for name, value in batch.items()}
        loss = mllm.model(**on_device, num_items_in_batch=torch.tensor(answers)).loss
        loss.backward()
        total += float(loss.detach())
    gradients = {name: each.grad.clone() for name, each in mllm.model.named_parameters() if each.grad is not None}
    mllm.model.zero_grad()
    return total, gradients


def check_equal(plain: Mllm, ours: Mllm, conversations: Sequence[Conversation]) -> float:
    """Return the largest relative difference of loss and gradients between both implementations.

    Raises:
        DifferentResultsError: It is above `TOLERANCE` in float32.
    """
    separate = separated(conversations)
    batch = PlainCollator(plain.processor)(separate)
    answers = int((batch["labels"] != IGNORED).sum())
    expected, expected_gradients = loss_and_gradients(plain, [batch], answers)
    loss, gradients = loss_and_gradients(ours, [Collator(ours)(conversations)], answers)
    scale = max(float(each.abs().max()) for each in expected_gradients.values())
    worst = max(float((expected_gradients[name] - each).abs().max()) / scale for name, each in gradients.items())
    difference = max(worst, abs(loss - expected) / abs(expected))
    if gradients.keys() != expected_gradients.keys() or (difference > TOLERANCE and ours.dtype == torch.float32):
        raise DifferentResultsError(f"loss or gradients differ by {difference:.1e}, relative to the largest")
    return difference


def padding_notes(collator: Callable[..., dict[str, Any]], conversations: Sequence[Conversation], rows: int) -> Notes:
    """Return the share of padding in batches of `rows` conversations, and the tokens per phrase."""
    masks = [collator(conversations[i : i + rows])["attention_mask"] for i in range(0, len(conversations), rows)]
    tokens = sum(int(mask.sum()) for mask in masks)
    phrases = sum(len(conversation.branches) for conversation in conversations)
    share = 1 - tokens / sum(mask.numel() for mask in masks)
    return {"padding": f"{100 * share:.1f} %", "tokens": f"{tokens / phrases:.0f}"}


def train_epoch(
    mllm: Mllm,
    conversations: Sequence[Conversation],
    collator: Any,
    rows: int,
    folder: str,
    ours: bool,
) -> None:
    """Train one epoch with `rows` conversations in a batch and an optimizer step."""
    from transformers import PrinterCallback, ProgressCallback, Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=rows,
        num_train_epochs=1,
        # The weights do not change, so that all turns do the same work.
        learning_rate=0.0,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=mllm.device.type == "cpu",
        bf16=mllm.dtype == torch.bfloat16,
        logging_strategy="no",
    )
    data: Any = list(conversations)
    if ours:
        trainer: Any = CheckedTrainer(
            model=mllm.model,
            args=arguments,
            train_dataset=data,
            collator=collator,
            callbacks=[DisableVisionInputGrads()],
        )
    else:
        trainer = Trainer(model=mllm.model, args=arguments, train_dataset=data, data_collator=collator)
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.train()


def run(options: argparse.Namespace) -> Figures:
    """Return the settings and the rows."""
    phrases = options.phrases
    conversations = conversations_of(options.images, phrases, options.seed)
    plain, ours = load(options), load(options)
    isolate_branches(ours.model)
    collators = PlainCollator(plain.processor), Collator(ours)
    difference = check_equal(plain, ours, conversations[:2])
    names = "transformers' Trainer, one phrase a sequence", f"sam4mllm, {phrases} isolated phrases a sequence"
    padded = conversations_of(PADDED_IMAGES, phrases, options.seed)
    notes = {
        names[0]: padding_notes(collators[0], separated(padded), PADDED_BATCH * phrases),
        names[1]: padding_notes(collators[1], padded, PADDED_BATCH),
    }
    with tempfile.TemporaryDirectory() as folder:
        # Both have the same phrases in a device batch, which is an optimizer step.
        rows, separate = options.batch_images, separated(conversations)
        variants: dict[str, Callable[[], None]] = {
            names[0]: partial(train_epoch, plain, separate, collators[0], rows * phrases, folder, ours=False),
            names[1]: partial(train_epoch, ours, conversations, collators[1], rows, folder, ours=True),
        }
        take_turns(variants, 1, options.device)
        seconds = take_turns(variants, options.repeats, options.device)
    parameters = sum(weight.numel() for weight in plain.model.parameters())
    settings = {
        "base": "random Qwen2.5-VL" if options.real else options.base,
        "parameters": f"{parameters / 1e6:.1f} M",
        "images": options.images,
        "images_per_batch": options.batch_images,
        "difference_of_loss_and_gradients": f"{difference:.1e}",
    }
    return settings, rows_of(f"train, {phrases} phrases an image", seconds, len(separate), "phrase", notes=notes)


def separated(conversations: Sequence[Conversation]) -> list[Conversation]:
    """Return a conversation for each phrase."""
    return [branch for conversation in conversations for branch in conversation.branches]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, and print and write its figures."""
    parser = parser_of(__doc__, real=True)
    add_models(parser, adapter=False)
    add_size(parser, "--images", "images in an epoch", default=16, small=4, real=1)
    add_phrases(parser)
    add_size(parser, "--batch-images", "images whose phrases share a batch", default=4, small=2, real=1)
    report(parser, run, arguments)


if __name__ == "__main__":
    main()
