"""Chat questions are asked after the true turns before them, of the tuned model and of its base."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sam4mllm.evaluate.ask_chat import ask_chat

from sam4mllm.data.readers.chat import Dialogue
from sam4mllm.mllm.loading import load_mllm
from sam4mllm.mllm.lora import attach_lora
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


def test_the_true_turns_stand_before_a_question(dialogues: list[Dialogue]) -> None:
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
    monkeypatch.setattr("sam4mllm.evaluate.ask_chat.AT_ONCE", 1)
    many = [Dialogue(f"chat/{n}", each.image, each.exchanges) for n in range(3) for each in dialogues]
    answers = {"red": "yes", "What colour": "Grey!", "grey?": "yes"}
    alone = ask_chat(ScriptedEngine(answers), many)
    engines: list[ScriptedEngine] = []

    def work(processes: DistributedContext) -> dict[str, list[tuple[str, str]]]:
        engines.append(ScriptedEngine(answers))
        return ask_chat(engines[-1], many, processes)

    assert in_threads(2, work) == [alone, alone]
    assert sum(len(engine.asked) for engine in engines) == 9


def test_the_base_answers_as_if_it_had_never_been_tuned(tmp_path: Path, dialogues: list[Dialogue]) -> None:
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
