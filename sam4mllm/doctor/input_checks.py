"""Checks of a family's inputs: which tokens are trained on and asked with, coordinates, and image sizes."""

from __future__ import annotations

import math
import re
from itertools import pairwise, product
from typing import Any

import numpy as np

from sam4mllm.doctor.family_under_test import FamilyUnderTest, random_images
from sam4mllm.doctor.result import expect
from sam4mllm.geometry import NEGATIVE, POSITIVE, Box, Point, ResizedGrid, SamPrompt
from sam4mllm.mllm.constraints import answer_constraints
from sam4mllm.mllm.families import FAMILIES
from sam4mllm.mllm.image_size import native_coordinates
from sam4mllm.mllm.inputs import messages_with_image, model_inputs
from sam4mllm.mllm.loading import Mllm
from sam4mllm.mllm.shared_prefix import token_ids
from sam4mllm.mllm.transformers_engine import TransformersEngine
from sam4mllm.prompts.conversation import Conversation, Turn, inference_conversation, training_conversation
from sam4mllm.prompts.coordinates import PLAIN
from sam4mllm.prompts.grammar import AnswerGrammar
from sam4mllm.prompts.yes_no import YesNoQuery, YesNoQuestion, write_answers
from sam4mllm.training.collator import IGNORED, Collator


def loads(family: FamilyUnderTest) -> None:
    """Check that model and processor load with all weights, and that the model type has a row in the table."""
    model_type = family.mllm.family.model_type
    expect(model_type == family.model_type and model_type in FAMILIES, f"its config has the model type {model_type!r}")


def loss_on_answers_only(family: FamilyUnderTest) -> None:
    """Check that the labels are the tokens of the answers and the end token of each, except for white space."""
    mllm = family.mllm
    labels = Collator(mllm)(family.conversations)["labels"]
    ends = [mllm.processor.tokenizer.decode([token]) for token in mllm.end_ids]
    for row, conversation in zip(labels.tolist(), family.conversations, strict=True):
        supervised = mllm.processor.tokenizer.decode([token for token in row if token != IGNORED])
        answers = [turn.text for turn in conversation.turns if turn.supervised]
        # The space before an answer is often one token with its first character. A checkpoint may have several end
        # tokens, of which its template uses one.
        expected = "".join(f"{re.escape(answer)}({'|'.join(map(re.escape, ends))})" for answer in answers)
        matches = re.fullmatch(expected, "".join(supervised.split())) is not None
        expect(matches, f"{supervised!r} carries loss, not {answers}, each followed by one of the end tokens {ends}")


def prompts_match_training(family: FamilyUnderTest) -> None:
    """Check that the prompt at inference equals the tokens before an answer in training, where the loss begins."""
    mllm = family.mllm
    batch = Collator(mllm)(family.conversations)
    for row, conversation in enumerate(family.conversations):
        ids, labels = batch["input_ids"][row].tolist(), batch["labels"][row].tolist()
        for turn in range(1, len(conversation.turns), 2):
            messages = [messages_with_image(conversation, turn)]
            inputs = model_inputs(mllm.processor, messages, padding_side="left", add_generation_prompt=True)
            (prompt,) = inputs["input_ids"].tolist()
            differing = next((index for index, token in enumerate(prompt) if token != ids[index]), None)
            expect(differing is None, f"token {differing} of the prompt differs from the one trained on")
            end = len(prompt)
            expect(
                labels[end - 1] == IGNORED != labels[end],
                f"the loss does not begin at token {end}, where the answer does",
            )


def batch_equals_singles(family: FamilyUnderTest) -> None:
    """Check that a batch, in which some questions are about the same image, generates the answers of each alone."""
    first, _, third, _ = family.questions
    same_images = [Conversation(each.image, (Turn("user", "What is it?" * 2),)) for each in (first, third, first)]
    questions = [*family.questions, *same_images]
    engine = TransformersEngine(family.mllm, 1)
    singles = [reply for question in questions for reply in engine.generate([question], 8)]
    batch = TransformersEngine(family.mllm, len(questions)).generate(questions, 8)
    expect(len(set(singles)) > 1, "every question gets the same answer, so this check cannot find a difference")
    expect(batch == singles, f"a batch generates {batch}, singles {singles}")


def chat_without_image(family: FamilyUnderTest) -> None:
    """Check that a training batch which mixes rows with and without images has the logits and labels of its rows alone.

    A batch of chat without images alone is compared as well.
    """
    collator, model = Collator(family.mllm), family.mllm.model
    short, long = (training_conversation(None, pairs) for pairs in ([("Why?", "So.")], [("A?", "b"), ("C?", "d")]))
    for conversations in ([short, family.conversations[0], long], [short, long]):
        labels = collator(conversations)["labels"]
        logits = family.logits(model, conversations)
        for row, conversation in enumerate(conversations):
            alone = collator([conversation])["labels"][0]
            expect(labels[row, : len(alone)].equal(alone), f"row {row} of {len(labels)} has other labels alone")
            difference = (logits[row, : len(alone)] - family.logits(model, [conversation])[0]).abs().max().item()
            expect(difference < 1e-3, f"the logits of row {row} of {len(labels)} differ by {difference:.2g} alone")


def yes_no_probabilities(family: FamilyUnderTest) -> None:
    """Check that yes/no probabilities computed in one batch equal those computed answer by answer."""
    mllm = family.mllm
    histories = [Conversation(q.image, (*q.turns, Turn("assistant", "[1,2]"))) for q in family.questions[:2]]
    questions = (YesNoQuestion("On (1,2)(3,4)(5,6)?", 3), YesNoQuestion("And on (7,8)?", 1))
    queries = [YesNoQuery(histories[0], questions), YesNoQuery(histories[1], questions[:1])]
    for query, scored in zip(queries, TransformersEngine(mllm, 3).score_answers(queries), strict=True):
        for question, probabilities in zip(query.questions, scored, strict=True):
            answers: list[bool] = []
            for together in probabilities:
                single = single_yes_no(mllm, query.history, question.text, answers)
                difference = max(abs(math.log(a / b)) for a, b in zip(single, together, strict=True))
                expect(difference < 1e-3, f"after {answers} the probabilities are {together} together, {single} alone")
                answers.append(single[0] > single[1])


def single_yes_no(mllm: Mllm, history: Conversation, question: str, answers: list[bool]) -> tuple[float, float]:
    """Return the probabilities of yes and no for the answer after `answers`, by one pass over the conversation."""
    import torch

    turns = (*history.turns, Turn("user", question))
    rows = []
    for answer in (True, False):
        conversation = Conversation(history.image, (*turns, Turn("assistant", write_answers([*answers, answer]))))
        messages = [messages_with_image(conversation)]
        rows.append(model_inputs(mllm.processor, messages, padding_side="left").to(mllm.device))
    yes, no = (row["input_ids"][0].tolist() for row in rows)
    index = next(index for index, (a, b) in enumerate(zip(yes, no, strict=False)) if a != b)
    with torch.no_grad():
        probabilities = mllm.model(**rows[0].to(mllm.dtype)).logits[0, index - 1].float().softmax(dim=-1)
    return float(probabilities[yes[index]]), float(probabilities[no[index]])


def coordinates_round_trip(family: FamilyUnderTest) -> None:
    """Check that pixels written as text and parsed again differ by at most half a bin of the model's grid."""
    coordinates = native_coordinates(family.mllm.family.coordinates, family.mllm.processor) or PLAIN
    grammar = AnswerGrammar(coordinates)
    for size_wh in [(640, 480), (37, 211), (333, 1001), (1, 1), (29, 31)]:
        grid = coordinates.frame.of_image(size_wh)
        if isinstance(coordinates.frame, ResizedGrid):
            resized_wh = _resized_wh(family.mllm.processor, size_wh)
            expect(grid.bins_wh == resized_wh, f"{size_wh} pixels are resized to {resized_wh}, not {grid.bins_wh}")
        half_wh = [size / bins / 2 + 1e-6 for size, bins in zip(size_wh, grid.bins_wh, strict=True)]
        ticks = [[side * share for share in (0, 0.2, 0.4999, 0.77, 1)] for side in size_wh]
        for (x1, x2), (y1, y2) in product(pairwise(ticks[0]), pairwise(ticks[1])):
            text = grammar.write([SamPrompt(Box(x1, y1, x2, y2), (Point(x2, y1, POSITIVE),))], size_wh)
            parsed = grammar.parse(text, size_wh)
            expect(len(parsed.prompts) == 1, f"{text!r} cannot be parsed: {parsed.reason}")
            (prompt,) = parsed.prompts
            off = max(
                abs(written - read) / half_wh[index % 2]
                for index, (written, read) in enumerate(
                    zip([x1, y1, x2, y2, x2, y1], [*(prompt.box or ()), *prompt.points[0][:2]], strict=True)
                )
            )
            expect(off <= 1, f"{text!r} is {off / 2:.2f} bins off in an image of {size_wh}")


def constrained_decoding(family: FamilyUnderTest) -> None:
    """Check that constrained decoding allows the tokens of answers in training, and forces none but these."""
    import torch

    mllm = family.mllm
    grammar = AnswerGrammar(native_coordinates(mllm.family.coordinates, mllm.processor) or PLAIN)
    constraints, form, size_wh = answer_constraints(mllm), grammar.form(2, 1), (640, 480)
    points = (Point(90, 70, POSITIVE), Point(111, 33, POSITIVE), Point(600, 5, NEGATIVE))
    objects = [SamPrompt(Box(5, 10, 77, 200), points[:1]), SamPrompt(Box(0, 0, 640, 480), points)]
    (prompt,) = token_ids(mllm, [inference_conversation("", "?")], asks=True)
    for prompts in ([], objects[:1], objects[1:], objects):
        text = grammar.write(prompts, size_wh)
        (ids,) = token_ids(mllm, [training_conversation("", [("?", text)])])
        pending = ids[len(prompt) :]
        constraint = constraints(form, size_wh)
        while pending and pending[0] not in mllm.end_ids:
            forced = constraint.forced()
            expect(forced == pending[: len(forced)], f"{text!r} has the tokens {pending}, but {forced} are forced")
            logits = torch.zeros(len(mllm.processor.tokenizer))
            constraint.restrict(logits)
            expect(bool(logits[pending[0]].isfinite()), f"{text!r} has the token {pending[0]}, which is not allowed")
            for token in pending[: len(forced) or 1]:
                constraint.accept(token)
            pending = pending[len(forced) or 1 :]
        logits = torch.zeros(len(mllm.processor.tokenizer))
        constraint.restrict(logits)
        expect(bool(logits[mllm.end_ids].isfinite().all()), f"no end token is allowed after {text!r}")


def image_size_limits(family: FamilyUnderTest) -> None:
    """Check that the recipe's limits bound the input of images of any size, and are saved with the processor."""
    rule = family.mllm.family.image_size
    small, large, huge = random_images([(300, 400), (900, 1200), (1800, 2400)])
    processor = family.mllm.processor
    of_large, of_huge = (_pixel_values(processor, image).numel() for image in (large, huge))
    expect(of_large == of_huge, f"an image of 2400 x 1800 has {of_huge} values, one of 1200 x 900 {of_large}")
    if not rule.limits:
        expect(_pixel_values(processor, small).numel() == of_large, "an image of 400 x 300 has another size")
        return
    limits = {"max_pixels": 64 * 32} if "max_pixels" in rule.limits else {"longest_side": 32}
    limited = family.load(image_size=limits)
    of_limited = _pixel_values(limited.processor, huge).numel()
    expect(of_limited < of_large, f"{limits} has no effect")
    limited.processor.save_pretrained(family.folder / "limited")
    saved = type(limited.processor).from_pretrained(family.folder / "limited")
    expect(_pixel_values(saved, huge).numel() == of_limited, "the limit is lost when the processor is saved")
    TransformersEngine(limited, 1).generate([inference_conversation(huge, "Where is it?")], 2)


def images_not_cropped(family: FamilyUnderTest) -> None:
    """Check that the corners of a long image reach the model, in landscape and portrait format."""
    for size_hw in ((40, 160), (160, 40)):
        black = np.zeros((*size_hw, 3), np.uint8)
        for corner in (np.s_[:20, :20], np.s_[-20:, -20:]):
            marked = black.copy()
            marked[corner] = 255
            processor = family.mllm.processor
            equal = _pixel_values(processor, marked).equal(_pixel_values(processor, black))
            expect(not equal, f"a corner of an image of {size_hw[1]} x {size_hw[0]} is cropped")


def _resized_wh(processor: Any, size_wh: tuple[int, int]) -> tuple[int, int]:
    """Return the size to which the processor resizes an image."""
    from PIL import Image

    (image,) = random_images([(size_wh[1], size_wh[0])])
    grid = processor.image_processor(Image.fromarray(image), return_tensors="pt")["image_grid_thw"]
    _, rows, columns = grid[0].tolist()
    patch = processor.image_processor.patch_size
    return columns * patch, rows * patch


def _pixel_values(processor: Any, image: Any) -> Any:
    """Return the tensor of an image that the model gets."""
    messages = [messages_with_image(inference_conversation(image, "?"))]
    return model_inputs(processor, messages, padding_side="left")["pixel_values"]
