"""The text of the embedded MLLM's pre-training: exchanges about scenes, its tokenizer and its chat template.

The exchanges ask for the boxes of phrases, for points on objects and beside them, whether a point is on an object,
what is at a point or in a box, and how many objects there are (`mllm_pointing.py`). The model is therefore trained on
every token of the answers, as real models are, but not on the questions or on the answer format of PPG and PQPP.

Left to the fine-tuning are no-target phrases that state a wrong side ("the ring left of the star"), all but the first
two clues of each silhouette ("reasoning"), and the wordings "in front of" and "around" of relations between shapes that
share a box ("overlap").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sam4mllm.geometry import SamPrompt
from sam4mllm.prompts.grammar import AnswerGrammar
from sam4mllm.prompts.questions import ask_boxes, ask_list, ask_points, ask_prompts
from sam4mllm.synthetic.clues import KNOWN_FOR
from sam4mllm.synthetic.nouns import pick
from sam4mllm.synthetic.phrases import Phrase, phrases_of
from sam4mllm.synthetic.scenes import Scene, make_scene

# `{% generation %}` marks the assistant's tokens for transformers.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{% set parts = [{'type': 'text', 'text': message['content']}] %}"
    "{% else %}{% set parts = message['content'] %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{% generation %}"
    "{% for part in parts %}{{ part['text'] }}{% endfor %}<|im_end|>{% endgeneration %}\n"
    "{% else %}{% for part in parts %}{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# The text between a question and its answer, and between an answer and the next question.
NEXT_ANSWER, NEXT_QUESTION = "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>\n<|im_start|>user\n"
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"]
_COUNTS = {
    "attribute": 2,
    "position": 1,
    "relation": 2,
    "superlative": 1,
    "plural": 2,
    "pair": 1,
    "nothing": 3,
    "reasoning": 3,
    "overlap": 4,
}
# Clues that the pre-training uses; the others are new to the model when it is fine-tuned.
KNOWN_CLUES = tuple(clue for clues in KNOWN_FOR.values() for clue in clues[:2])
# Wordings of phrases about shapes that share a box, which the pre-training does not use.
UNKNOWN_WORDINGS = (" in front of ", " around ")
_GRAMMAR = AnswerGrammar()
# Words at the end of a part of the questions. In pre-training they have no meaning and no order, so that the model can
# still answer questions with more words than those of the pre-training.
_FILLERS = ("please", "now", "here", "in", "this", "image", "carefully", "and", "quickly", "again", "thanks", "each")


@dataclass(frozen=True, slots=True)
class Exchange:
    """A question, which may follow an earlier turn, its answer, and the shapes that they refer to.

    `answer_shapes` are the shapes of the answer's boxes in its order, or the one that is pointed to; `spans` (start,
    end, shapes) are the noun phrases of the question; `answer_points` and `question_points` (x, y) in pixels are the
    points that are written in answer and question, in their order; `points_on` tells for each point of the answer
    whether it is on its shape or off it.
    """

    kind: str
    question: str
    answer: str
    answer_shapes: tuple[int, ...] = ()
    spans: tuple[tuple[int, int, tuple[int, ...]], ...] = ()
    answer_points: tuple[tuple[float, float], ...] = ()
    points_on: tuple[bool, ...] = ()
    question_points: tuple[tuple[float, float], ...] = ()


def left_to_right(scene: Scene, shapes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shapes in the order of an answer with several objects."""
    return tuple(sorted(shapes, key=lambda i: (scene.shapes[i].box.x1, scene.shapes[i].box.y1)))


def boxes_answer(scene: Scene, shapes: tuple[int, ...]) -> str:
    """Return the answer with the boxes of `shapes`."""
    return _GRAMMAR.write([SamPrompt(scene.shapes[i].box) for i in shapes], scene.size_wh)


def spans_in(question: str, phrase: Phrase) -> tuple[tuple[int, int, tuple[int, ...]], ...]:
    """Return the spans of the phrase's nouns in a question that contains the phrase."""
    start = question.index(phrase.text)
    return tuple((start + a, start + b, shapes) for a, b, shapes in phrase.spans)


def known_phrase(scene: Scene, rng: np.random.Generator, kind: str) -> Phrase | None:
    """Return a random phrase of `kind` if its wording is one of the pre-training's; otherwise None."""
    phrase = phrases_of(scene, rng, kind)
    if phrase is None or (kind == "reasoning" and not phrase.text.startswith(KNOWN_CLUES)):
        return None
    # Of no-target phrases about two shapes that the scene has, only those about shapes that share a box are known.
    if kind == "nothing" and phrase.spans[0][2] and not any(words in phrase.text for words in (" on the ", " behind ")):
        return None
    return None if any(words in phrase.text for words in UNKNOWN_WORDINGS) else phrase


def box_exchanges(scene: Scene, rng: np.random.Generator) -> list[Exchange]:
    """Return about a dozen exchanges about one scene whose answers are boxes or text, without repeated questions."""
    by_question: dict[str, Exchange] = {}
    for kind, count in _COUNTS.items():
        for _ in range(count):
            phrase = known_phrase(scene, rng, kind)
            if phrase is None:
                continue
            question = with_fillers(ask_boxes(phrase.text), rng)
            shapes = left_to_right(scene, phrase.shapes)
            spans = spans_in(question, phrase)
            by_question.setdefault(question, Exchange(kind, question, boxes_answer(scene, shapes), shapes, spans))
    every = left_to_right(scene, tuple(range(len(scene.shapes))))
    by_question[ask_list()] = Exchange("list", ask_list(), boxes_answer(scene, every), every)
    shape = scene.shapes[int(rng.integers(len(scene.shapes)))]
    region = f"What is in {_GRAMMAR.write([SamPrompt(shape.box)], scene.size_wh)}?"
    by_question[region] = Exchange("describe", region, f"the {shape.pattern} {shape.colour} {shape.name}")
    if rng.random() < 0.4:
        text = _random_text(rng)
        by_question[text] = Exchange("copy", f"Repeat: {text}", text)
    return list(by_question.values())


def with_fillers(question: str, rng: np.random.Generator) -> str:
    """Return half of the questions unchanged, and the others with a few words that do not change their meaning."""
    if rng.random() < 0.5:
        return question
    words = rng.permutation(_FILLERS)[: int(rng.integers(2, 10))]
    separator = " " if question.endswith("?") else ", "
    return f"{question.removesuffix('.')}{separator}{' '.join(words)}."


def _random_text(rng: np.random.Generator) -> str:
    """Return delimiters and numbers of the grammar in random order."""
    points = [f"({a:03d},{b:03d})" for a, b in rng.integers(1000, size=(3, 2))]
    pieces = [*points, " +", " -", "; ", "] +(", ") -(", ")(", "]; [", f"{int(rng.integers(1000)):03d}"]
    pieces += [pick(rng, ("yes", "no", ", yes", ", no", "yes, no", "No object found.")) for _ in range(3)]
    return "".join(pieces[i] for i in rng.permutation(len(pieces))[: int(rng.integers(3, 8))]).strip() or "+"


def _corpus(all_exchanges: Callable[[Scene, np.random.Generator], list[Exchange]]) -> Iterator[str]:
    numbers = [f"{n:03d}" for n in range(1000)]
    for _ in range(20):
        yield from numbers
    for clues in KNOWN_FOR.values():
        yield from clues * 4
    rng = np.random.default_rng(0)
    for index in range(400):
        scene = make_scene(9_000_003, index, shared_boxes=0.5)
        for exchange in all_exchanges(scene, rng):
            yield exchange.question
            yield exchange.answer
        phrase = phrases_of(scene, rng, "overlap")
        if phrase is not None:
            yield ask_boxes(phrase.text)
        yield ask_points("[000,000,000,000]", ["(000,000)"])
        yield ask_points("[000,000,000,000]", ["(000,000)", "(000,000)"]) + "yes, no, yes, no"
        yield ask_prompts("the ring", 2, 1) + ask_prompts("the ring", 3, 2) + ask_prompts("the ring", 1, 0)
        yield "[000,000,000,000] +(000,000)(000,000) -(000,000); [000,000,000,000] +(000,000) -(000,000)"
    yield "user assistant system yes no Yes No point points on off it"


def build_tokenizer(
    all_exchanges: Callable[[Scene, np.random.Generator], list[Exchange]],
) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer in which a number of up to three digits is one token, as in Llama 3's.

    Brackets are tokens of their own, so that a point begins with the same token in every format.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d{1,3}|[()\[\]]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2400,
        min_frequency=4,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(all_exchanges), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        extra_special_tokens={"image_token": "<image>"},
        model_max_length=2048,
        chat_template=CHAT_TEMPLATE,
    )
