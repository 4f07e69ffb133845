"""The comparison of the methods: its table, and the whole of it on tiny random models."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.mllm import tiny
from tests.tiny_sam import save_sam


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    place = Path(__file__).parents[2] / "tools" / "table_methods.py"
    spec = importlib.util.spec_from_file_location("table_methods", place)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look their own module up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_table_is_in_percent_but_for_points_and_seconds(tool: ModuleType) -> None:
    row = tool.Row(0.7, 0.8, 0.6, 0.9, 0.5, 0.01, 2.96, 0.1234, None, 0.042)
    header, rule, line = tool.table({"PPG": row})
    assert header.count("|") == rule.count("|") == line.count("|") == 12
    assert line == "| PPG | 70.0 | 80.0 | 60.0 | 90.0 | 50.0 | 1.0 | 3.0 | 0.123 | - | 4.2 |"


def test_the_whole_table_on_tiny_models_goes_on_where_it_was(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.save_fast_vlm(tmp_path / "base", seed=1)
    save_sam(tmp_path / "sam.pth")
    arguments = ["--work", str(tmp_path / "work"), "--scenes", "2", "--held-out", "2", "--device", "cpu"]
    arguments += ["--steps", "1", "--json", str(tmp_path / "table.json")]
    settings = [f"model.base={tmp_path / 'base'}", f"segmenter.checkpoint={tmp_path / 'sam.pth'}", "lora.r=2"]
    settings += ["targets.groups=2", "training.per_device_train_batch_size=2", "generation.max_new_tokens=4"]
    settings += [f"data.train.{index}.limit=3" for index in range(3)] + ["data.validation.limit=2"]
    tool.main([*arguments, *settings, "--only", "PPG", "--only", "PQPP, lists"])
    printed, record = capsys.readouterr().out, json.loads((tmp_path / "table.json").read_text())
    assert list(record["rows"]) == ["PPG", "PQPP, lists"] and set(record["queries"]) == set(tool.TESTS)
    assert all(row["malformed"] == 1 and row["res_ciou"] == 0 for row in record["rows"].values())
    assert len(printed.splitlines()) == 4

    def refuse(*given: object, **also: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr("sam4mllm.train.trainer.fit", refuse)
    tool.main([*arguments, *settings, "--only", "PPG", "--only", "PQPP, lists"])
    assert capsys.readouterr().out == printed
