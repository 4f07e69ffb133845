"""Checkpoints: which of them training resumes from, the best adapter, and records that older versions wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sam4mllm.errors import RecipeError
from sam4mllm.runs.checkpoints import Checkpoints


class Model(torch.nn.Module):
    """Saves its number in place of an adapter."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def save_pretrained(self, folder: Path, state_dict: object = None) -> None:
        folder.mkdir(parents=True)
        (folder / "adapter_model.safetensors").write_text(str(self.number))


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    return Checkpoints(tmp_path / "run")


def save(checkpoints: Checkpoints, step: int, processes: int = 1, state: str = "{}") -> None:
    checkpoint = checkpoints.folder / f"checkpoint-{step}"
    checkpoint.mkdir()
    (checkpoint / "trainer_state.json").write_text(state)
    for rank in range(processes):
        (checkpoint / (f"rng_state_{rank}.pth" if processes > 1 else "rng_state.pth")).touch()


def test_complete_checkpoints_are_found_and_others_removed(checkpoints: Checkpoints) -> None:
    save(checkpoints, 2)
    save(checkpoints, 10)
    save(checkpoints, 12, state="{")
    (checkpoints.folder / "checkpoint-14").mkdir()
    assert [folder.name for folder in checkpoints.complete()] == ["checkpoint-10", "checkpoint-2"]
    assert sorted(folder.name for folder in checkpoints.folder.glob("checkpoint-*")) == [
        "checkpoint-10",
        "checkpoint-2",
    ]


def test_checkpoints_of_another_number_of_processes_are_refused(checkpoints: Checkpoints) -> None:
    assert checkpoints.complete(2) == []
    save(checkpoints, 4, processes=2)
    with pytest.raises(RecipeError, match=r"written by 2 process\(es\), now there are 1"):
        checkpoints.complete(1)
    assert [folder.name for folder in checkpoints.complete(2)] == ["checkpoint-4"]


def test_the_best_adapter_replaces_the_previous_one_and_is_dropped_when_training_rewinds(
    checkpoints: Checkpoints,
) -> None:
    assert checkpoints.best() is None
    for step, ciou in ((2, 0.4), (4, 0.6)):
        checkpoints.save_best(Model(step), step, ciou)
    best = checkpoints.best()
    assert (
        best is not None and best[:2] == (4, 0.6) and [path.name for path in checkpoints.folder.iterdir()] == ["best-4"]
    )
    assert (best[2] / "adapter_model.safetensors").read_text() == "4"
    checkpoints.drop_best_after(4)
    assert checkpoints.best() == best
    checkpoints.drop_best_after(3)
    assert checkpoints.best() is None


def test_only_removed_answers_are_accepted_after_a_checkpoint(checkpoints: Checkpoints) -> None:
    checkpoints.check_resumable("first", {"a", "b"})
    checkpoints.check_resumable("other", {"c", "d", "e"})
    save(checkpoints, 2)
    checkpoints.check_resumable("fewer", {"c", "d"})
    checkpoints.check_resumable("fewer", {"c", "d"})
    # Removed answers do not come back, and changed ones were never trained on.
    for answers in ({"c", "d", "e"}, {"c", "d"}, {"c", "x"}, set()):
        with pytest.raises(RecipeError, match="were trained on other conversations"):
            checkpoints.check_resumable("more", answers)


def test_records_of_older_versions_are_read(checkpoints: Checkpoints) -> None:
    """The files `learnt`, `taught` and `world_size` keep their names, so that interrupted runs can be resumed."""
    save(checkpoints, 2)
    (checkpoints.folder / "best-2").mkdir()
    (checkpoints.folder / "best-2/validation.json").write_text(json.dumps({"step": 2, "ciou": 0.5}) + "\n")
    for name, content in (("learnt", "data"), ("taught", "conversations"), ("world_size", "1")):
        (checkpoints.folder / name).write_text(content)
    checkpoints.record_data_digest("data", is_finished=True)
    checkpoints.check_resumable("conversations")
    assert [folder.name for folder in checkpoints.complete()] == ["checkpoint-2"]
    assert checkpoints.best() == (2, 0.5, checkpoints.folder / "best-2")
    with pytest.raises(RecipeError, match="the data have changed since"):
        checkpoints.record_data_digest("other data", is_finished=True)
    with pytest.raises(RecipeError, match="trained on other conversations"):
        checkpoints.check_resumable("other conversations")
