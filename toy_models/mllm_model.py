"""The embedded MLLM: its configuration, its processor, its evaluation on held-out scenes, and how it is saved."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from build_tower import ARCHITECTURE, CELLS, MEAN, MODEL_ARGS, SIDE, STD
from mllm_rows import IMAGE_TOKENS
from mllm_text import exchanges
from transformers import (
    AutoModelForImageTextToText,
    FastVlmConfig,
    FastVlmForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_clip import CLIPImageProcessor

from sam4mllm.prompts.grammar import AnswerGrammar
from sam4mllm.synthetic.scenes import make_scene

HELD_OUT_SEED = 9_000_002
LAYERS, WIDTH, HEADS, MLP = 5, 192, 6, 512


def build_model(tokenizer: PreTrainedTokenizerFast) -> FastVlmForConditionalGeneration:
    """Return the model with random weights."""
    config = FastVlmConfig(
        vision_config={
            "model_type": "timm_wrapper",
            "architecture": ARCHITECTURE,
            "model_args": MODEL_ARGS,
            "do_pooling": False,
            "hidden_size": MODEL_ARGS["channels"][-1],
            "num_labels": 0,
        },
        text_config={
            "model_type": "qwen2",
            "hidden_size": WIDTH,
            "intermediate_size": MLP,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": HEADS,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 2048,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=IMAGE_TOKENS,
        tie_word_embeddings=True,
    )
    return FastVlmForConditionalGeneration(config)


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """Return the processor, which resizes images to 192 x 192."""
    side = {"height": SIDE, "width": SIDE}
    image_processor = CLIPImageProcessor(
        do_resize=True,
        size=side,
        resample=3,
        do_center_crop=False,
        crop_size=side,
        image_mean=list(MEAN),
        image_std=list(STD),
        do_convert_rgb=True,
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=SIDE // CELLS,
        vision_feature_select_strategy="full",
        chat_template=tokenizer.chat_template,
    )


def initialize_number_embeddings(model: FastVlmForConditionalGeneration, numbers: list[int]) -> None:
    """Initialize the embeddings of the 1000 number tokens by sinusoidal codes of their values."""
    with torch.no_grad():
        table = model.get_input_embeddings().weight
        table.normal_(0, 0.05)
        values = torch.arange(len(numbers)).float()[:, None] / len(numbers)
        waves = torch.arange(1, WIDTH // 2 // 2 + 1).float()
        rates = 2 * math.pi * 0.5 * (120 ** (waves / len(waves)))
        code = torch.cat([torch.sin(values * rates), torch.cos(values * rates)], dim=1)
        table[numbers, : code.shape[1]] += 0.08 * code


@torch.no_grad()
def held_out(
    model: FastVlmForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, scenes: int
) -> dict[str, float]:
    """Return the share of correct answers by kind: all boxes match the true ones at IoU 0.5, or both have none."""
    model.eval()
    model.set_attn_implementation("sdpa")
    grammar, malformed, total = AnswerGrammar(), 0, 0
    correct: dict[str, list[bool]] = {}
    processor = build_processor(tokenizer)
    items = []
    for index in range(scenes):
        scene = make_scene(HELD_OUT_SEED, index)
        for e in exchanges(scene, np.random.default_rng([HELD_OUT_SEED, 1, index])):
            if e.kind not in ("list", "describe", "copy"):
                items.append((scene, e))
    for start in range(0, len(items), 64):
        chunk = items[start : start + 64]
        texts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": e.question}]}],
                add_generation_prompt=True,
                tokenize=False,
            )
            for _, e in chunk
        ]
        inputs = processor(images=[scene.image for scene, _ in chunk], text=texts, padding=True, return_tensors="pt")
        out = model.generate(**inputs, max_new_tokens=48, do_sample=False)
        answers = tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for (scene, e), answer in zip(chunk, answers, strict=True):
            parsed = grammar.parse(answer, scene.size_wh)
            truth = [scene.shapes[i].box for i in e.answer_shapes]
            boxes = [prompt.box for prompt in parsed.prompts if prompt.box is not None]
            ok = parsed.status == ("ok" if truth else "no_object") and len(boxes) == len(truth)
            ok = ok and all(max((t.iou(b) for b in boxes), default=0.0) > 0.5 for t in truth)
            correct.setdefault(e.kind, []).append(ok)
            malformed += parsed.status == "malformed"
            total += 1
    figures = {kind: round(float(np.mean(values)), 3) for kind, values in correct.items()}
    figures["all"] = round(float(np.mean([v for values in correct.values() for v in values])), 3)
    figures["malformed"] = round(malformed / total, 4)
    return figures


def save(model: FastVlmForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save model and processor in half precision to `folder`, and check that they load."""
    model.set_attn_implementation("sdpa")
    # Half precision halves the package's size; it is a copy, as the training continues in full precision. The output
    # layer is tied to the embeddings and therefore not saved, as by transformers itself without `state_dict`.
    half = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder, state_dict=half)
    build_processor(tokenizer).save_pretrained(folder)
    AutoModelForImageTextToText.from_pretrained(folder)
