"""The checks of a family, each a function of a subject that ends, or raises what it found.

The order of `FAMILY_CHECKS` is that of the table. This module knows no report.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.util import find_spec
from itertools import pairwise, product
from typing import Any

from sam4mllm.doctor.probabilities import yes_and_no_weighed_together
from sam4mllm.doctor.subject import Subject, images
from sam4mllm.doctor.supervision import answers_alone_carry_loss, asks_as_it_teaches
from sam4mllm.doctor.verdict import NotApplicableError, expect
from sam4mllm.geometry import POSITIVE, Box, Point, ResizedGrid, SamPrompt
from sam4mllm.mllm.families import FAMILIES
from sam4mllm.mllm.image_size import native_coordinates
from sam4mllm.mllm.inputs import messages_with_image, model_inputs
from sam4mllm.mllm.loading import Mllm, Quantization, load_mllm
from sam4mllm.mllm.lora import adapted_modules, attach_lora
from sam4mllm.mllm.transformers_engine import TransformersEngine
from sam4mllm.prompts.conversation import inference_conversation
from sam4mllm.prompts.coordinates import PLAIN
from sam4mllm.prompts.grammar import AnswerGrammar
from sam4mllm.runs.run_folder import ADAPTER_WEIGHTS

Check = Callable[[Subject], None]

_CLOSE = 1e-4


def loads(subject: Subject) -> None:
    """Model and processor load, under their own row of the table, with weights that are all there."""
    found = subject.mllm.family.model_type
    expect(found == subject.model_type and found in FAMILIES, f"its config says {found!r}")


def loss_falls(subject: Subject) -> None:
    """After some steps the loss is below three quarters of what it was."""
    _falls(subject.training.losses)


def batch_equals_singles(subject: Subject) -> None:
    """What a left-padded batch generates is what each question gets alone."""
    alone = TransformersEngine(subject.mllm, 1).generate(subject.questions, 8)
    together = TransformersEngine(subject.mllm, len(subject.questions)).generate(subject.questions, 8)
    expect(len(set(alone)) > 1, "every question gets the same answer, so nothing is shown")
    expect(together == alone, f"a batch answers {together}, singles {alone}")


def lora_in_language_model_alone(subject: Subject) -> None:
    """LoRA reaches linear layers of the language model and no others; with another exclusion it reaches further."""
    mllm = attach_lora(subject.load(), {"r": 2}, 0)
    outside = _adapted_outside(mllm)
    expect(len(adapted_modules(mllm)) >= 2, "no layer is adapted")
    expect(not outside, f"{len(outside)} layers beside the language model are adapted, such as {outside[:1]}")
    trained = [name for name, p in mllm.model.named_parameters() if p.requires_grad and "lora_" not in name]
    expect(not trained, f"{len(trained)} weights of the base are trained, such as {trained[:1]}")
    asked = attach_lora(subject.load(), {"r": 2, "target_modules": "all-linear", "exclude_modules": ["lm_head"]}, 0)
    # FastVLM's eyes are convolutions, which peft's all-linear leaves alone; its projector is linear.
    expect(bool(_adapted_outside(asked)), "lora.exclude_modules does not reach beyond the language model")


def loads_with_peft(subject: Subject) -> None:
    """The run folder loads as an adapter with peft and transformers alone, and computes what was trained."""
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    base = AutoModelForImageTextToText.from_pretrained(subject.base).to(subject.device)
    model = PeftModel.from_pretrained(base, str(subject.training.run.path)).eval()
    trained = subject.logits(subject.training.mllm.model)
    _same(subject.logits(model), trained, "logits of the trained model and the loaded one")
    moved = _apart(trained, subject.logits(subject.mllm.model))
    expect(moved > 10 * _CLOSE, f"training moved the logits by {moved:.1e} only")


def merges(subject: Subject) -> None:
    """The adapter merged into the base computes what both compute side by side."""
    tuned = load_mllm(subject.base, subject.training.run.path, device=subject.device)
    before = subject.logits(tuned.model)
    _same(subject.logits(tuned.model.merge_and_unload()), before, "logits before and after merging")


def projector_tuned_whole(subject: Subject) -> None:
    """With `model.tune_projector` the projector learns, is saved with the adapter, loads with it and merges."""
    from safetensors.torch import load_file

    training = subject.train("projector", 2, tune_projector=True)
    names = [name for name in load_file(training.run.path / ADAPTER_WEIGHTS) if "lora_" not in name]
    family = subject.mllm.family
    expect(bool(names), "the adapter's file holds no projector")
    expect(all(any(part in name for part in family.projector) for name in names), f"the file holds {names}")
    tuned = load_mllm(subject.base, training.run.path, device=subject.device)
    base = dict(subject.mllm.model.named_parameters())
    merged_model = load_mllm(subject.base, training.run.path, device=subject.device).model.merge_and_unload()
    same = [name for name, p in merged_model.named_parameters() if _of(family.projector, name) and p.equal(base[name])]
    expect(not same, f"training left {same[:1]} of the projector as it was")
    trained = subject.logits(training.mllm.model)
    _same(subject.logits(tuned.model), trained, "logits of the trained model and the loaded one")
    _same(subject.logits(merged_model), trained, "logits before and after merging")


def coordinates_round_trip(subject: Subject) -> None:
    """Places survive pixel -> text -> pixel within half a bin, on the very grid that the processor makes."""
    coordinates = native_coordinates(subject.mllm.family.coordinates, subject.mllm.processor) or PLAIN
    grammar = AnswerGrammar(coordinates)
    for size_wh in [(640, 480), (37, 211), (333, 1001), (1, 1), (29, 31)]:
        grid = coordinates.frame.of_image(size_wh)
        if isinstance(coordinates.frame, ResizedGrid):
            seen = _resized_wh(subject.mllm.processor, size_wh)
            expect(grid.bins_wh == seen, f"{size_wh} pixels become {seen}, not {grid.bins_wh}")
        half_wh = [size / bins / 2 + 1e-6 for size, bins in zip(size_wh, grid.bins_wh, strict=True)]
        ticks = [[side * share for share in (0, 0.2, 0.4999, 0.77, 1)] for side in size_wh]
        for (x1, x2), (y1, y2) in product(pairwise(ticks[0]), pairwise(ticks[1])):
            text = grammar.write([SamPrompt(Box(x1, y1, x2, y2), (Point(x2, y1, POSITIVE),))], size_wh)
            read = grammar.parse(text, size_wh)
            expect(len(read.prompts) == 1, f"{text!r} is not read back: {read.reason}")
            (prompt,) = read.prompts
            places = [*(prompt.box or ()), *prompt.points[0][:2]]
            off = max(
                abs(was - now) / half_wh[index % 2]
                for index, (was, now) in enumerate(zip([x1, y1, x2, y2, x2, y1], places, strict=True))
            )
            expect(off <= 1, f"{text!r} is {off / 2:.2f} bins off in an image of {size_wh}")


def images_shrink(subject: Subject) -> None:
    """However large an image is, the model sees no more of it than the recipe's limit, and answers."""
    rule = subject.mllm.family.image_size
    small, large, huge = images([(300, 400), (900, 1200), (1800, 2400)])
    processor = subject.mllm.processor
    seen = [_numbers(processor, image) for image in (large, huge)]
    expect(seen[0] == seen[1], f"an image of 2400 x 1800 costs {seen[1]} numbers, one of 1200 x 900 {seen[0]}")
    if not rule.limits:
        expect(_numbers(processor, small) == seen[0], "an image of 400 x 300 has another size")
        return
    limits = {"max_pixels": 64 * 32} if "max_pixels" in rule.limits else {"longest_side": 32}
    limited = subject.load(image_size=limits)
    expect(_numbers(limited.processor, huge) < seen[0], f"{limits} changes nothing")
    limited.processor.save_pretrained(subject.folder / "limited")
    saved = type(limited.processor).from_pretrained(subject.folder / "limited")
    expect(_numbers(saved, huge) == _numbers(limited.processor, huge), "the limit is lost when the processor is saved")
    TransformersEngine(limited, 1).generate([inference_conversation(huge, "Where is it?")], 2)


def images_seen_whole(subject: Subject) -> None:
    """The ends of a long image reach the model, lying or standing."""
    import numpy as np

    for size_hw in ((40, 160), (160, 40)):
        black = np.zeros((*size_hw, 3), np.uint8)
        for corner in (np.s_[:20, :20], np.s_[-20:, -20:]):
            marked = black.copy()
            marked[corner] = 255
            same = _seen(subject.mllm.processor, marked).equal(_seen(subject.mllm.processor, black))
            expect(not same, f"a corner of an image of {size_hw[1]} x {size_hw[0]} is not seen")


def nf4(subject: Subject) -> None:
    """Quantised to four bits it trains and answers."""
    _quantised(subject, "4bit", "Linear4bit")


def int8(subject: Subject) -> None:
    """Quantised to eight bits it trains and answers."""
    _quantised(subject, "8bit", "Linear8bitLt")


def gradient_checkpointing(subject: Subject) -> None:
    """With gradient checkpointing the losses are those without."""
    losses = subject.train("checkpointed", 3, gradient_checkpointing=True).losses
    plain = subject.training.losses[:3]
    apart = max(abs(a - b) for a, b in zip(losses, plain, strict=True))
    expect(apart < 1e-3, f"losses are {losses}, and without {plain}")


def optimiser_8bit(subject: Subject) -> None:
    """`training.optim: adamw_bnb_8bit` keeps its moments in eight bits, and the loss falls."""
    _need("bitsandbytes", "quantization")
    # bitsandbytes leaves tensors of fewer than 4096 numbers in 32 bits.
    training = subject.train("optimiser", 6, optim="adamw_bnb_8bit", lora={"r": 64, "lora_alpha": 64})
    states = training.optimiser.state.values()
    kinds = {str(value.dtype) for state in states for value in state.values() if hasattr(value, "dtype")}
    expect("torch.uint8" in kinds, f"the moments are {sorted(kinds)}")
    _falls(training.losses)


FAMILY_CHECKS: dict[str, Check] = {
    check.__name__: check
    for check in (
        loads,
        answers_alone_carry_loss,
        asks_as_it_teaches,
        loss_falls,
        batch_equals_singles,
        yes_and_no_weighed_together,
        lora_in_language_model_alone,
        loads_with_peft,
        merges,
        projector_tuned_whole,
        coordinates_round_trip,
        images_shrink,
        images_seen_whole,
        gradient_checkpointing,
        optimiser_8bit,
        nf4,
        int8,
    )
}


def _need(package: str, extra: str) -> None:
    if find_spec(package) is None:
        raise NotApplicableError(f"needs {package}: pip install sam4mllm[{extra}]")


def _falls(losses: list[float]) -> None:
    expect(all(map(math.isfinite, losses)), f"the losses are {losses}")
    first, last = losses[0], min(losses[-2:])
    expect(last < 0.75 * first, f"the loss goes from {first:.2f} to {last:.2f} in {len(losses)} steps")


def _quantised(subject: Subject, quantization: Quantization, kind: str) -> None:
    _need("bitsandbytes", "quantization")
    training = subject.train(quantization, 3, quantization=quantization)
    kinds = {type(module).__name__ for module in training.mllm.model.modules()}
    expect(kind in kinds, f"no layer is a {kind}")
    expect(all(map(math.isfinite, training.losses)), f"the losses are {training.losses}")
    TransformersEngine(training.mllm, 2).generate(subject.questions[:2], 2)


def _adapted_outside(mllm: Mllm) -> list[str]:
    """The adapted modules that are no part of the language model, by the model's own account of it."""
    inside = {id(module) for module in mllm.model.get_base_model().get_decoder().modules()}
    modules = dict(mllm.model.named_modules())
    return [name for name in adapted_modules(mllm) if id(modules[name]) not in inside]


def _of(projector: tuple[str, ...], name: str) -> bool:
    return any(f".{part}." in f".{name}" for part in projector)


def _apart(a: Any, b: Any) -> float:
    return float((a - b).abs().max())


def _same(a: Any, b: Any, what: str) -> None:
    apart = _apart(a, b)
    expect(apart < _CLOSE, f"{what} are {apart:.1e} apart")


def _resized_wh(processor: Any, size_wh: tuple[int, int]) -> tuple[int, int]:
    """The size that the processor really brings an image to."""
    from PIL import Image

    (image,) = images([(size_wh[1], size_wh[0])])
    _, rows, columns = processor.image_processor(Image.fromarray(image), return_tensors="pt")["image_grid_thw"][
        0
    ].tolist()
    patch = processor.image_processor.patch_size
    return columns * patch, rows * patch


def _numbers(processor: Any, image: Any) -> int:
    """How many numbers of an image the model gets."""
    return _seen(processor, image).numel()


def _seen(processor: Any, image: Any) -> Any:
    messages = [messages_with_image(inference_conversation(image, "?"))]
    return model_inputs(processor, messages, padding_side="left")["pixel_values"]
