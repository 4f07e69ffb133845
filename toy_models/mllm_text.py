"""What the embedded MLLM is pre-trained to say: exchanges about `shapes` scenes, its tokenizer and its chat template.

Boxes in every form of phrase, lists of all boxes, descriptions of a boxed region, and copies of given text: so the
model knows every sign of the answer grammar as a sign, as any real model does, and has never been taught a point
prompt.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sam4mllm.geometry import SamPrompt
from sam4mllm.prompts.grammar import AnswerGrammar
from sam4mllm.prompts.questions import ask_boxes, ask_list, ask_prompts
from sam4mllm.synthetic.phrases import KINDS, phrases_of
from sam4mllm.synthetic.scenes import Scene, make_scene

# `{% generation %}` lets transformers tell which tokens are the assistant's.
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
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"]
_COUNTS = {
    "attribute": 3,
    "position": 2,
    "relation": 2,
    "superlative": 1,
    "plural": 2,
    "pair": 1,
    "nothing": 2,
    "reasoning": 2,
}
_GRAMMAR = AnswerGrammar()
# Words that questions may end with. In pre-training they mean nothing and come in no order, so that a question with
# more to it than was taught does not throw the model.
_FILLERS = ("with", "2", "points", "on", "it", "and", "1", "off", "point", "3", "each", "in", "the", "box", "please")


@dataclass(frozen=True, slots=True)
class Exchange:
    """A question, its answer, and what its words speak of.

    `answer_shapes` are the shapes whose boxes the answer says, in its order; `spans` (start, end, shapes) lie in the
    question.
    """

    kind: str
    question: str
    answer: str
    answer_shapes: tuple[int, ...] = ()
    spans: tuple[tuple[int, int, tuple[int, ...]], ...] = ()


def left_to_right(scene: Scene, shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The order in which answers name several objects."""
    return tuple(sorted(shapes, key=lambda i: (scene.shapes[i].box.x1, scene.shapes[i].box.y1)))


def boxes_answer(scene: Scene, shapes: tuple[int, ...]) -> str:
    return _GRAMMAR.write([SamPrompt(scene.shapes[i].box) for i in shapes], scene.size_wh)


def exchanges(scene: Scene, rng: np.random.Generator) -> list[Exchange]:
    """About a dozen exchanges on one scene; no question twice."""
    found: dict[str, Exchange] = {}
    for kind in KINDS:
        for _ in range(_COUNTS[kind]):
            phrase = phrases_of(scene, rng, kind)
            if phrase is None:
                continue
            question = _with_fillers(ask_boxes(phrase.text), rng)
            shapes = left_to_right(scene, phrase.shapes)
            start = question.index(phrase.text)
            spans = tuple((start + a, start + b, which) for a, b, which in phrase.spans)
            found.setdefault(question, Exchange(kind, question, boxes_answer(scene, shapes), shapes, spans))
    every = left_to_right(scene, tuple(range(len(scene.shapes))))
    found[ask_list()] = Exchange("list", ask_list(), boxes_answer(scene, every), every)
    shape = scene.shapes[int(rng.integers(len(scene.shapes)))]
    region = f"What is in {_GRAMMAR.write([SamPrompt(shape.box)], scene.size_wh)}?"
    found[region] = Exchange("describe", region, f"the {shape.pattern} {shape.colour} {shape.name}")
    if rng.random() < 0.4:
        text = _scribble(rng)
        found[text] = Exchange("copy", f"Repeat: {text}", text)
    return list(found.values())


def _with_fillers(question: str, rng: np.random.Generator) -> str:
    """Half of the questions as they are, the others with a few words behind that change nothing."""
    if rng.random() < 0.5:
        return question
    words = rng.permutation(_FILLERS)[: int(rng.integers(2, 10))]
    return f"{question.removesuffix('.')}, {' '.join(words)}."


def _scribble(rng: np.random.Generator) -> str:
    """Signs and numbers that mean nothing, made of the grammar's pieces in no order of the grammar."""
    signs = [f"({a:03d},{b:03d})" for a, b in rng.integers(1000, size=(3, 2))]
    pieces = [*signs, " +", " -", "; ", "] +(", ") -(", ")(", "]; [", f"{int(rng.integers(1000)):03d}"]
    return "".join(pieces[i] for i in rng.permutation(len(pieces))[: int(rng.integers(3, 8))]).strip() or "+"


def _corpus() -> Iterator[str]:
    numbers = [f"{n:03d}" for n in range(1000)]
    for _ in range(20):
        yield from numbers
    rng = np.random.default_rng(0)
    for index in range(400):
        for exchange in exchanges(make_scene(9_000_003, index), rng):
            yield exchange.question
            yield exchange.answer
        yield ask_prompts("the ring", 2, 1) + ask_prompts("the ring", 3, 2) + ask_prompts("the ring", 1, 0)
        yield "[000,000,000,000] +(000,000)(000,000) -(000,000); [000,000,000,000] +(000,000) -(000,000)"
    yield "user assistant system yes no Yes No point points on off it"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE in which a number of up to three digits is one token, as in Llama 3's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\d{1,3}"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2400,
        min_frequency=4,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        extra_special_tokens={"image_token": "<image>"},
        model_max_length=2048,
        chat_template=CHAT_TEMPLATE,
    )
