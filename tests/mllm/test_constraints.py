"""The form of answers as an automaton over tokens: it allows what is trained on, and forces only what has no choice."""

from __future__ import annotations

import functools
import json
import random
import re
from collections.abc import Sequence

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sam4mllm.errors import ModelError
from sam4mllm.geometry import NEGATIVE, POSITIVE, Box, Grid, Point, SamPrompt
from sam4mllm.mllm.chat_template import around_answers, turn_end
from sam4mllm.mllm.constraints import AnswerConstraint, AnswerConstraints, answer_constraints
from sam4mllm.mllm.image_size import native_coordinates
from sam4mllm.mllm.loading import load_mllm, load_processor
from sam4mllm.prompts.conversation import inference_conversation, training_conversation
from sam4mllm.prompts.coordinates import PLAIN, Coordinates
from sam4mllm.prompts.grammar import NO_OBJECT, AnswerGrammar
from sam4mllm.testing import save_tiny_mllm

SIZE_WH = (640, 480)
TAGGED = Coordinates(Grid((1000, 1000)), ("[[", "]]"), tags=("<box>", "</box>"), padded=False, far_edge=True)
UNPADDED = Coordinates(Grid((1000, 1000)), separator=", ", padded=False, far_edge=True)


def written_answers(grammar: AnswerGrammar, size_wh: tuple[int, int], count: int = 12) -> list[str]:
    rng = random.Random(0)
    width, height = size_wh

    def prompt() -> SamPrompt:
        (x1, x2), (y1, y2) = (sorted(rng.uniform(0, side) for _ in range(2)) for side in size_wh)
        points = [
            Point(rng.uniform(0, width), rng.uniform(0, height), label)
            for label, limit in ((POSITIVE, 2), (NEGATIVE, 1))
            for _ in range(rng.randint(0, limit))
        ]
        return SamPrompt(Box(x1, y1, x2, y2), tuple(points))

    answers = [grammar.write([prompt() for _ in range(rng.randint(1, 3))], size_wh) for _ in range(count)]
    return [*answers, NO_OBJECT]


def allowed_next(constraint: AnswerConstraint, vocabulary: int) -> list[int]:
    logits = torch.arange(vocabulary, dtype=torch.float32)
    constraint.restrict(logits)
    kept = logits.isfinite()
    assert torch.equal(logits[kept], torch.arange(vocabulary, dtype=torch.float32)[kept])
    return kept.nonzero()[:, 0].tolist()


def forced_count(constraint: AnswerConstraint, ids: Sequence[int], vocabulary: int) -> int:
    """Accept the tokens of an answer; return how many were forced. Each of them is forced alone or allowed."""
    position = count = 0
    while position < len(ids):
        forced = constraint.forced()
        if forced:
            assert list(ids[position : position + len(forced)]) == forced
        else:
            assert ids[position] in allowed_next(constraint, vocabulary)
        for token in forced or [ids[position]]:
            constraint.accept(token)
        position += len(forced) or 1
        count += len(forced)
    return count


@pytest.mark.parametrize("family", ["shapes", "qwen2_5_vl", "internvl", "llava", "glm46v", "gemma4"])
def test_the_tokens_of_training_are_allowed_and_the_forced_ones_are_those_of_training(family: str, tmp_path) -> None:
    # With the text between prompt and answer that LLaVA (a space) and GLM (a newline) have.
    base = family if family == "shapes" else str(save_tiny_mllm(family, tmp_path / family))
    processor, facts = load_processor(base)
    tokenizer, end = processor.tokenizer, turn_end(processor)
    coordinates = native_coordinates(facts.coordinates, processor) or PLAIN
    constraints = AnswerConstraints(tokenizer, [end], around_answers(processor))
    asked = inference_conversation("", "?")
    prompt = processor.apply_chat_template(asked.messages(), tokenize=False, add_generation_prompt=True)
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    forced = 0
    for text in written_answers(AnswerGrammar(coordinates), SIZE_WH):
        rendered = processor.apply_chat_template(training_conversation("", [("?", text)]).messages(), tokenize=False)
        ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
        assert ids[: len(prompt_ids)] == prompt_ids
        ids = ids[len(prompt_ids) :]
        form = AnswerGrammar(coordinates).form(2, 1)
        forced += forced_count(constraints(form, SIZE_WH), ids[: ids.index(end) + 1], len(tokenizer))
    assert forced > 50


@functools.cache
def trained_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens join digits and delimiters, as those of common models do."""
    answers = [
        text
        for coordinates in (PLAIN, UNPADDED, TAGGED)
        for text in written_answers(AnswerGrammar(coordinates), SIZE_WH, 40)
    ]
    tokenizer = Tokenizer(models.BPE())
    if kind == "sentencepiece":
        # As Llama 2 and Gemma: a space is a character of its own, and bytes are tokens for what is no character.
        alphabet = [*(chr(code) for code in range(33, 127)), "\u2581"]
        tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
    else:
        # As Qwen (single digits), as Llama 3 (up to three), and without any division into words.
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        digits = {"single": r"\p{N}", "triple": r"\p{N}{1,3}", "joined": r"[\s\S]+"}[kind]
        words = rf"[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s+(?!\S)|\s+"
        split = pre_tokenizers.Split(Regex(digits if kind == "joined" else words), "isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
        tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        initial_alphabet=alphabet,
        special_tokens=["<unk>", "<end>", "<stop>", "<box>"],
        max_token_length=6,
        show_progress=False,
    )
    tokenizer.train_from_iterator(answers, trainer)
    if kind == "sentencepiece":
        content = json.loads(tokenizer.to_str())
        vocabulary = content["model"]["vocab"]
        vocabulary |= {f"<0x{byte:02X}>": len(vocabulary) + byte for byte in range(256)}
        content["model"] |= {"unk_token": "<unk>", "byte_fallback": True, "fuse_unk": True}
        tokenizer = Tokenizer.from_str(json.dumps(content))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", unk_token="<unk>")


@pytest.mark.parametrize("coordinates", [PLAIN, UNPADDED, TAGGED], ids=["plain", "unpadded", "tagged"])
@pytest.mark.parametrize("kind", ["single", "triple", "joined", "sentencepiece"])
def test_forced_tokens_are_those_of_tokenizers_that_join_digits_and_delimiters(
    kind: str, coordinates: Coordinates
) -> None:
    tokenizer = trained_tokenizer(kind)
    ends = tokenizer.convert_tokens_to_ids(["<end>", "<stop>"])
    constraints = AnswerConstraints(tokenizer, ends)
    grammar = AnswerGrammar(coordinates)
    for text in written_answers(grammar, SIZE_WH):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        constraint = constraints(grammar.form(2, 1), SIZE_WH)
        forced_count(constraint, ids, len(tokenizer))
        # Both end tokens are allowed where the answer is complete.
        assert set(ends) <= set(allowed_next(constraint, len(tokenizer)))


def random_answer(constraint: AnswerConstraint, ends: Sequence[int], vocabulary: int, rng: random.Random) -> list[int]:
    """The tokens of an answer whose choices are random."""
    tokens: list[int] = []
    while not tokens or tokens[-1] not in ends:
        chosen = constraint.forced() or [rng.choice(allowed_next(constraint, vocabulary))]
        for token in chosen:
            constraint.accept(token)
        tokens += chosen
    return tokens


@pytest.mark.parametrize("coordinates", [PLAIN, UNPADDED, TAGGED], ids=["plain", "unpadded", "tagged"])
@pytest.mark.parametrize("kind", ["single", "joined", "sentencepiece"])
def test_random_choices_give_an_answer_that_is_parsed_and_the_end_comes_where_it_is_complete(
    kind: str, coordinates: Coordinates
) -> None:
    tokenizer, rng = trained_tokenizer(kind), random.Random(1)
    ends = tokenizer.convert_tokens_to_ids(["<end>", "<stop>"])
    constraints, grammar = AnswerConstraints(tokenizer, ends), AnswerGrammar(coordinates)
    form = grammar.form(2, 1)
    pattern = re.compile(form.regex(SIZE_WH))
    for _ in range(12):
        tokens = random_answer(constraints(form, SIZE_WH), ends, len(tokenizer), rng)
        text = tokenizer.decode(tokens[:-1])
        assert pattern.fullmatch(text)
        # A special token for the tag is not in the text of a reply.
        parsed = grammar.parse(tokenizer.decode(tokens, skip_special_tokens=True), SIZE_WH)
        assert parsed.status == ("no_object" if text == NO_OBJECT else "ok")
        # The end token is allowed at no other place.
        constraint = constraints(form, SIZE_WH)
        for position, token in enumerate(tokens):
            is_complete = pattern.fullmatch(tokenizer.decode(tokens[:position])) is not None
            assert (ends[0] in allowed_next(constraint, len(tokenizer))) == is_complete
            constraint.accept(token)


def test_logits_beyond_the_tokenizers_vocabulary_are_never_allowed() -> None:
    tokenizer = trained_tokenizer("single")
    constraint = AnswerConstraints(tokenizer, [1])(AnswerGrammar().form(0, 0), SIZE_WH)
    allowed = allowed_next(constraint, len(tokenizer) + 100)
    assert {tokenizer.decode([token])[0] for token in allowed} == {"[", "N"}


def test_a_token_that_cannot_come_next_is_refused() -> None:
    tokenizer = trained_tokenizer("single")
    constraint = AnswerConstraints(tokenizer, [1])(AnswerGrammar().form(0, 0), SIZE_WH)
    with pytest.raises(ValueError, match="cannot continue the answer"):
        constraint.accept(tokenizer.convert_tokens_to_ids(","))


def test_answers_do_not_share_their_state_and_a_grammar_is_compiled_once() -> None:
    tokenizer = trained_tokenizer("single")
    constraints = AnswerConstraints(tokenizer, [1])
    form = AnswerGrammar().form(0, 0)
    first, second = constraints(form, SIZE_WH), constraints(form, (10, 10))
    first.accept(tokenizer.convert_tokens_to_ids("["))
    assert {tokenizer.decode([token])[0] for token in allowed_next(second, len(tokenizer))} == {"[", "N"}
    assert constraints._matcher.cache_info().misses == 1


def test_the_automaton_of_a_tokenizer_is_built_once() -> None:
    mllm = load_mllm("shapes")
    assert answer_constraints(mllm) is answer_constraints(mllm)


def test_a_tokenizer_without_a_fast_form_is_refused() -> None:
    class Slow:
        def get_vocab(self) -> dict[str, int]:
            return {}

    with pytest.raises(ModelError, match="does not support the tokenizer Slow"):
        AnswerConstraints(Slow(), [1])


def test_a_token_that_the_model_does_not_have_is_not_allowed() -> None:
    tokenizer = trained_tokenizer("single")
    constraint = AnswerConstraints(tokenizer, [1])(AnswerGrammar().form(0, 0), SIZE_WH)
    first = tokenizer.convert_tokens_to_ids("N")
    assert first < tokenizer.convert_tokens_to_ids("[")
    assert allowed_next(constraint, first + 1) == [first]


@pytest.mark.parametrize(
    "coordinates",
    [
        Coordinates(box=('{ "box": [', "]}"), point=("/", "/")),
        Coordinates(box=("[\n", "\n]"), tags=('<"box">', "\\end"), separator=",\t"),
        Coordinates(Grid((1, 7)), point=("|", "|"), padded=False, far_edge=True, axis_order="yx"),
    ],
    ids=["quotes", "newlines", "bars"],
)
def test_delimiters_may_be_any_text(coordinates: Coordinates) -> None:
    tokenizer, grammar = trained_tokenizer("joined"), AnswerGrammar(coordinates)
    constraints = AnswerConstraints(tokenizer, [1])
    for text in written_answers(grammar, SIZE_WH):
        ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], 1]
        forced_count(constraints(grammar.form(2, 1), SIZE_WH), ids, len(tokenizer))


def test_constraints_are_made_again_once_tokens_are_added(tmp_path) -> None:
    mllm = load_mllm(str(save_tiny_mllm("fast_vlm", tmp_path)))
    before = answer_constraints(mllm)
    assert answer_constraints(mllm) is before
    mllm.processor.tokenizer.add_tokens(["<mark>"])
    after = answer_constraints(mllm)
    assert after is not before and after is answer_constraints(mllm)
    # An ordinary token that becomes a special one is written by its id in grammars.
    mllm.processor.tokenizer.add_special_tokens({"additional_special_tokens": ["<mark>"]})
    assert answer_constraints(mllm) is not after
