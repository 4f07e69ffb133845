"""Chat questions: asked of the fine-tuned model and of its base after the annotated turns, and scored."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sam4mllm.data.readers.chat import Dialogue
from sam4mllm.evaluation.chat import ChatScores, ask_chat, chat_report, normalized_words, score_chat
from sam4mllm.mllm.loading import load_mllm
from sam4mllm.mllm.lora import attach_lora, merge_for_inference
from sam4mllm.mllm.scripted_engine import ScriptedEngine
from sam4mllm.mllm.transformers_engine import TransformersEngine
from sam4mllm.prompts.conversation import inference_conversation
from sam4mllm.testing import save_tiny_mllm
from sam4mllm.utils.distributed import DistributedContext
from tests.data.tiny_datasets import write_image
from tests.launch import in_threads


@pytest.fixture
def dialogues(tmp_path: Path) -> list[Dialogue]:
    image = write_image(tmp_path / "a.png")
    return [
        Dialogue("chat/1", image, (("Is it red?", "No."), ("What colour is it?", "grey"))),
        Dialogue("chat/2", image, (("Is it grey?", "Yes."),)),
    ]


def test_a_question_is_asked_after_the_annotated_turns_before_it(dialogues: list[Dialogue]) -> None:
    engine = ScriptedEngine({"red": "yes", "What colour": "Grey!", "grey?": "yes"})
    assert ask_chat(engine, dialogues) == {"model": [("yes", "No."), ("Grey!", "grey"), ("yes", "Yes.")]}
    assert [[turn.text for turn in asked.turns] for asked in engine.asked] == [
        ["Is it red?"],
        ["Is it red?", "No.", "What colour is it?"],
        ["Is it grey?"],
    ]


def test_several_processes_share_the_chats_and_all_get_all_answers(
    dialogues: list[Dialogue], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sam4mllm.evaluation.chat.CHATS_PER_PART", 1)
    many = [Dialogue(f"chat/{n}", each.image, each.exchanges) for n in range(3) for each in dialogues]
    answers = {"red": "yes", "What colour": "Grey!", "grey?": "yes"}
    alone = ask_chat(ScriptedEngine(answers), many)
    engines: list[ScriptedEngine] = []

    def work(processes: DistributedContext) -> dict[str, list[tuple[str, str]]]:
        engines.append(ScriptedEngine(answers))
        return ask_chat(engines[-1], many, processes)

    assert in_threads(2, work) == [alone, alone]
    assert sum(len(engine.asked) for engine in engines) == 9


def test_with_its_adapter_disabled_the_model_answers_like_its_base(tmp_path: Path, dialogues: list[Dialogue]) -> None:
    base = load_mllm(str(save_tiny_mllm("fast_vlm", tmp_path / "base", seed=1)))
    untouched = TransformersEngine(base, 2)
    question = [inference_conversation(dialogues[0].image, "Is it red?")]
    before = untouched.generate(question, 8)
    assert list(ask_chat(untouched, dialogues)) == ["base"]

    tuned = attach_lora(base, {"r": 4, "lora_alpha": 64}, seed=0)
    for name, value in tuned.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=1.0, generator=torch.Generator().manual_seed(0))
    engine = TransformersEngine(tuned, 2)
    after = engine.generate(question, 8)
    assert after != before

    def replies(of: TransformersEngine, seen: list[list[str]]) -> None:
        """Note what is generated within `ask_chat`."""
        original = of.generate

        def noting(conversations, max_new_tokens):
            found = original(conversations, 8)
            seen.append([reply.text for reply in found])
            return found

        of.generate = noting

    seen: list[list[str]] = []
    replies(engine, seen)
    assert list(ask_chat(engine, dialogues)) == ["tuned", "base"]
    assert seen[0][0] == after[0].text and seen[1][0] == before[0].text
    assert engine.generate(question, 8) == after
    # The update of a merged adapter is in the weights, so there is no base to ask.
    assert list(ask_chat(TransformersEngine(merge_for_inference(tuned), 2), dialogues)) == ["tuned"]


def test_questions_without_an_image_are_asked_beside_others(tmp_path: Path, dialogues: list[Dialogue]) -> None:
    text_only = Dialogue("chat/3", None, (("Is ice cold?", "Yes."),))
    engine = TransformersEngine(load_mllm(str(save_tiny_mllm("qwen2_vl", tmp_path / "base"))), 4)
    alone = [ask_chat(engine, [each])["base"] for each in (text_only, *dialogues)]
    assert ask_chat(engine, [text_only, *dialogues])["base"] == [pair for pairs in alone for pair in pairs]


@pytest.mark.parametrize(
    ("answer", "truth", "right"),
    [
        ("Yes.", "yes", True),
        ("Yes, there is a cup.", "Yes", True),
        ("There is no cup.", "no", True),
        ("No, although yes would be nice", "no", True),
        ("no", "Yes.", False),
        ("I cannot tell.", "no", False),
        ("Nothing", "no", False),
        ("", "yes", False),
    ],
)
def test_a_yes_no_question_is_scored_by_the_first_yes_or_no(answer: str, truth: str, right: bool) -> None:
    assert score_chat([(answer, truth)]) == ChatScores(1, float(right), 0, None, 0)


@pytest.mark.parametrize(
    ("answer", "truth", "right"),
    [
        ("red", "Red.", True),
        ("The red cup", "a red cup", True),
        ("red cup", "red", False),
        ("3.5", "3.5", True),
        ("35", "3.5", False),
        ("don't know", "Don't know!", True),
        ("", "two", False),
        ("yes, two", "two", False),
        ("Ärmel", "ärmel", True),
    ],
)
def test_a_short_answer_is_compared_after_normalization(answer: str, truth: str, right: bool) -> None:
    assert score_chat([(answer, truth)]) == ChatScores(0, None, 1, float(right), 0)


def test_long_answers_are_counted_and_not_scored() -> None:
    long = "a cup that stands on the left of the table"
    assert score_chat([(long, long), ("yes", "no"), ("yes", "yes")]) == ChatScores(2, 0.5, 0, None, 1)
    assert score_chat([]) == ChatScores(0, None, 0, None, 0)


def test_normalization_removes_case_punctuation_and_articles() -> None:
    assert normalized_words("The RED, an 3.5-inch cup's!") == ["red", "3.5", "inch", "cup's"]


def test_the_report_has_a_row_for_each_model() -> None:
    report = chat_report({"tuned": ChatScores(4, 0.75, 0, None, 2), "base": ChatScores(4, 1.0, 0, None, 2)})
    assert report.splitlines()[0] == "4 yes/no questions, 0 with a short answer, 2 not scored"
    assert [line.split() for line in report.splitlines()[2:]][2:] == [["tuned", "75.0"], ["base", "100.0"]]
