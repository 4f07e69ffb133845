import json
import re
import shlex
from pathlib import Path

import pytest

from sam4mllm.cli.main import main, parse
from sam4mllm.doctor import families
from sam4mllm.doctor.families import FAMILY_CHECKS
from sam4mllm.doctor.report import as_markdown, as_text, describe_machine, family_facts_table, missing_packages
from sam4mllm.doctor.result import NotApplicableError, any_failed, expect, is_failure, run_check
from sam4mllm.mllm.families import FAMILIES

DOCS = (Path(__file__).parents[2] / "docs" / "families.md").read_text(encoding="utf-8")
RECORD = {
    "versions": {"torch": "2.0", "bitsandbytes": None},
    "device": {"name": "x86", "torch": "cpu"},
    "families": {
        "qwen2_vl": {"loads": True, "nf4": "n/a: needs bitsandbytes"},
        "gemma3": {"loads": "KeyError: 'a|b'", "nf4": "n/a: needs bitsandbytes"},
    },
    "segmenters": {"sam_vit": {"batch": False}},
}


def raises(error):
    raise error


@pytest.mark.parametrize(
    ("check", "result", "fails"),
    [
        (lambda: None, True, False),
        (lambda: expect(True, "wrong"), True, False),
        (lambda: expect(False, "1 is not 2\nat all"), "1 is not 2", True),
        (lambda: raises(NotApplicableError("needs a GPU")), "n/a: needs a GPU", False),
        (lambda: raises(ValueError("bad\nvery")), "ValueError: bad", True),
        (lambda: raises(ValueError("x" * 1000)), "ValueError: " + "x" * 288, True),
    ],
)
def test_results_of_checks(check, result, fails):
    assert run_check(check) == result
    assert is_failure(run_check(check)) is fails


def test_the_text_has_missing_packages_and_failures():
    text = as_text(RECORD)
    assert "device  cpu (x86)" in text and "bitsandbytes  missing" in text
    assert "missing: bitsandbytes, for model.quantization" in text
    assert "qwen2_vl  1 of 1 checks" in text and "gemma3    0 of 1 checks" in text
    assert "    loads: KeyError: 'a|b'" in text and "    all: False" in text


def test_the_markdown_numbers_results_that_are_not_true():
    lines = as_markdown(RECORD).splitlines()
    assert "| Qwen2-VL | yes | - (1) |" in lines
    assert "| Gemma 3 | NO (2) | - (1) |" in lines
    assert "1. n/a: needs bitsandbytes" in lines and "2. KeyError: 'a|b'" in lines
    assert "| sam_vit | NO (1) |" in lines


def test_a_failure_in_either_table_is_found():
    assert any_failed(RECORD["families"], {}) and any_failed({}, RECORD["segmenters"])
    assert not any_failed({"a": {"b": True, "c": "n/a: no GPU"}}, {})


def test_the_machine_is_described_with_versions_and_device():
    machine = describe_machine("cpu")
    assert machine["versions"]["torch"] and machine["device"]["torch"] == "cpu" and machine["device"]["name"]
    assert missing_packages({"timm": None, "torch": "1"}).keys() == {"timm"}


def test_the_page_of_families_has_the_table_of_facts():
    assert family_facts_table(list(FAMILIES)) in DOCS


def test_the_page_of_families_has_the_table_of_checks_that_all_pass():
    # That every check passes for every family is tested in test_families.py.
    record = {"families": {name: dict.fromkeys(FAMILY_CHECKS, True) for name in FAMILIES}}
    table = as_markdown(record).removeprefix(family_facts_table(list(FAMILIES))).strip()
    assert table.startswith("| family | loads |") and f"\n{table}\n" in DOCS


def test_the_commands_of_the_page_of_families_parse():
    commands = [shlex.split(line, comments=True) for line in re.findall(r"^sam4mllm .*$", DOCS, re.MULTILINE)]
    assert len(commands) == 3 and all(parse(words[1:]).subcommand == "doctor" for words in commands)


@pytest.mark.parametrize("failing", [False, True])
def test_the_subcommand_writes_json_and_its_status_says_whether_a_check_failed(failing, tmp_path, monkeypatch, capsys):
    checks = {"passes": lambda family: None, "may_fail": lambda family: expect(not failing, "it failed")}
    monkeypatch.setattr(families, "FAMILY_CHECKS", checks)
    status = main(["doctor", "--only", "qwen2_vl", "--device", "cpu", "--json", str(tmp_path / "out.json")])
    written = json.loads((tmp_path / "out.json").read_text())
    assert status == int(failing)
    assert written["families"] == {"qwen2_vl": {"passes": True, "may_fail": "it failed" if failing else True}}
    assert written["versions"]["torch"] and written["segmenters"] == {}
    assert "qwen2_vl" in capsys.readouterr().out


def test_the_subcommand_prints_markdown(monkeypatch, capsys):
    monkeypatch.setattr(families, "FAMILY_CHECKS", {"passes": lambda family: None})
    assert main(["doctor", "--only", "qwen2_vl", "--device", "cpu", "--markdown"]) == 0
    assert "| Qwen2-VL | yes |" in capsys.readouterr().out
