"""The exchanges and rows of the embedded MLLM's pre-training."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

import sam4mllm.models
from sam4mllm.geometry import Grid
from sam4mllm.prompts.grammar import AnswerGrammar
from sam4mllm.synthetic.clues import KNOWN_FOR
from sam4mllm.synthetic.scenes import Scene, make_scene
from tests.scripts import load_script

rows, text, pointing, tower = (load_script(name) for name in ("mllm_rows", "mllm_text", "mllm_pointing", "build_tower"))
mllm, evaluation = load_script("mllm_model"), load_script("mllm_held_out")

SCENES = [make_scene(17, index, shared_boxes=0.5) for index in range(12)]
POINT_TEXT = re.compile(r"\((\d{3}),(\d{3})\)")


def about(index: int) -> list[Any]:
    return pointing.exchanges(SCENES[index], np.random.default_rng(index))


EVERY = [(SCENES[index], exchange) for index in range(len(SCENES)) for exchange in about(index)]


def pixels_in(text: str, scene: Scene) -> list[tuple[int, int]]:
    found = [Grid().to_pixels(int(x), int(y), scene.size_wh) for x, y in POINT_TEXT.findall(text)]
    return [(int(y), int(x)) for x, y in found]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(sam4mllm.models.path("mllm"))


def test_points_of_answers_are_on_the_shape_or_near_it_and_off_it() -> None:
    seen = set()
    for scene, exchange in EVERY:
        if not exchange.answer_points:
            continue
        seen.add(exchange.kind)
        per_shape = len(exchange.points_on) // len(exchange.answer_shapes)
        for index, answer in zip(exchange.answer_shapes, exchange.answer.split(";"), strict=True):
            mask, flags = scene.shapes[index].mask, exchange.points_on[:per_shape]
            assert [bool(mask[pixel]) for pixel in pixels_in(answer, scene)] == list(flags)
        assert len(pixels_in(exchange.answer, scene)) == len(exchange.answer_points)
        assert evaluation.score(scene, exchange, exchange.answer) == 1.0
    assert seen == {"point", "places", "near", "mark"}


def test_yes_no_and_content_questions_are_answered_by_the_pixel_that_is_written() -> None:
    answers = set()
    for scene, exchange in EVERY:
        if exchange.kind == "on":
            mask = scene.shapes[exchange.answer_shapes[0]].mask
            texts = ["yes" if mask[pixel] else "no" for pixel in pixels_in(exchange.question, scene)]
            assert exchange.answer == "; ".join(texts)
            answers |= {*texts, len(texts)}
        if exchange.kind == "at":
            (pixel,) = pixels_in(exchange.question, scene)
            there = [f"the {shape.colour} {shape.name}" for shape in scene.shapes if shape.mask[pixel]]
            assert exchange.answer == (there[0] if there else "nothing")
    assert answers >= {"yes", "no", 1, 2, 3}


def test_the_pretraining_holds_neither_the_questions_nor_the_answers_of_ppg_and_pqpp() -> None:
    for scene, exchange in EVERY:
        assert not re.search(r"Box each object, with \d points? (on|off)", exchange.question.removesuffix("."))
        assert "Which points are on" not in exchange.question and "Answer yes or no" not in exchange.question
        if exchange.kind != "copy":
            assert not re.search(r"[+-]\(", exchange.answer)
            assert not any(prompt.points for prompt in AnswerGrammar().parse(exchange.answer, scene.size_wh).prompts)


def test_the_pretraining_leaves_wordings_of_overlaps_and_half_of_the_clues_to_the_fine_tuning() -> None:
    unknown = [clue for clues in KNOWN_FOR.values() for clue in clues if clue not in text.KNOWN_CLUES]
    assert len(unknown) == len(text.KNOWN_CLUES) == 2 * len(KNOWN_FOR)
    for _, exchange in EVERY:
        assert not any(words in exchange.question for words in (*unknown, " in front of ", " around "))


def test_an_interior_point_is_farther_from_the_border_than_most_pixels() -> None:
    for scene in SCENES:
        for shape in scene.shapes:
            x, y = pointing.interior_point(shape)
            row, column = int(y), int(x)
            assert shape.mask[row, column]
            around = shape.mask[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
            assert around.mean() > 0.8


def test_sampled_places_are_sorted_from_left_to_right() -> None:
    rng = np.random.default_rng(0)
    for scene in SCENES:
        for shape in scene.shapes:
            for points in (pointing.places_on(shape, rng, 3), pointing.places_near(scene, shape, rng, 3)):
                assert [x for x, _ in points] == sorted(x for x, _ in points)


def test_attention_targets_are_visible_and_those_of_points_are_the_tokens_at_them(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    packer = rows.Packer(tokenizer)
    prefix = len(packer.prefix)
    for scene, exchange in EVERY:
        packed = packer.pack(scene, [exchange], np.random.default_rng(0))
        if not packed.rows:
            continue
        (row,) = packed.rows
        for _, _, position, attend_to in row.attention_targets:
            assert attend_to and all(target <= prefix + position for target in attend_to)
        points = exchange.answer_points or exchange.question_points
        layer = rows.ANSWER_LAYER if exchange.answer_points else rows.WORD_LAYER
        found = [
            attend_to[0]
            for where, heads, _, attend_to in row.attention_targets
            if (where, heads) == (layer, rows.POINT)
        ]
        expected = []
        for x, y in points:
            width, height = scene.size_wh
            token = packer.first_image + int(y / height * tower.CELLS) * tower.CELLS + int(x / width * tower.CELLS)
            expected += [token] * (2 if exchange.answer_points else 1)
        assert found == expected


def test_the_place_of_a_token_is_on_its_shape_where_the_shape_covers_much_of_it() -> None:
    on, total = 0, 0
    for scene in SCENES:
        facts = tower.targets(scene)
        width, height = scene.size_wh
        for row, column in facts["object"].nonzero().tolist():
            x, y = (facts["place"][row, column] * torch.tensor([width, height])).long().tolist()
            assert (x * tower.CELLS // width, y * tower.CELLS // height) == (column, row)
            on += any(bool(shape.mask[y, x]) for shape in scene.shapes)
            total += 1
    assert on / total > 0.9


def test_numbers_and_places_share_one_code(tokenizer: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(0)
    numbers = [tokenizer.encode(f"{n:03d}")[0] for n in range(1000)]
    model = mllm.build_model(tokenizer)
    mllm.initialize_number_embeddings(model, numbers)
    table = model.get_input_embeddings().weight[numbers].detach()
    for start in (-2 * mllm.CODE, -mllm.CODE):
        codes = table[:, start : start + mllm.CODE or None]
        nearest = (mllm.place_code(torch.tensor([0.123, 0.5, 0.9])) @ codes.T).argmax(-1)
        assert nearest.tolist() == pytest.approx([123, 500, 900], abs=1)


def test_a_saved_model_is_loaded_with_equal_outputs(tokenizer: PreTrainedTokenizerFast) -> None:
    from transformers import AutoModelForImageTextToText

    folder = sam4mllm.models.path("mllm")
    saved = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    model = mllm.build_model(tokenizer).eval()
    with torch.no_grad():
        mllm.initialize_number_embeddings(model, [tokenizer.encode(f"{n:03d}")[0] for n in range(1000)])
        mllm.load_narrower(model, tokenizer, folder)
        ids = torch.tensor([tokenizer.encode("<|im_start|>user\nPoint to the red ring.<|im_end|>\n")])
        torch.testing.assert_close(model(input_ids=ids).logits, saved(input_ids=ids).logits, atol=1e-3, rtol=1e-3)
