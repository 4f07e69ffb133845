"""Every check of the doctor passes for every family, and failures are reported one by one."""

from importlib.util import find_spec

import pytest

from sam4mllm.doctor import families, training_checks
from sam4mllm.doctor.examine import choose_checks
from sam4mllm.doctor.families import FAMILY_CHECKS, check_families, check_family
from sam4mllm.doctor.family_under_test import FamilyUnderTest
from sam4mllm.doctor.result import CheckError
from sam4mllm.errors import ModelError
from sam4mllm.mllm.families import FAMILIES
from sam4mllm.testing import save_tiny_mllm


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_check_of_the_family_passes(model_type):
    results = check_families([model_type])[model_type]
    assert list(results) == list(FAMILY_CHECKS)
    missing = [package for package in FAMILIES[model_type].needs if find_spec(package) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} is not installed")
    assert {check: result for check, result in results.items() if result is not True} == {}


def test_an_exception_in_a_check_does_not_stop_the_others(monkeypatch):
    def breaks(family):
        raise KeyError("first\nsecond")

    monkeypatch.setattr(families, "FAMILY_CHECKS", {"breaks": breaks, "loads": FAMILY_CHECKS["loads"]})
    done = []
    results = check_families(["qwen2_vl"], advance=lambda count=1: done.append(count))["qwen2_vl"]
    assert results == {"breaks": r"KeyError: 'first\nsecond'", "loads": True}
    assert sum(done) == 2


def test_a_model_that_cannot_be_built_fails_every_check_with_the_reason(monkeypatch):
    def breaks(folder):
        raise ImportError("no such class")

    monkeypatch.setattr(families, "TINY_MLLMS", {"qwen2_vl": breaks})
    results = check_families(["qwen2_vl"])["qwen2_vl"]
    assert results == dict.fromkeys(FAMILY_CHECKS, "ImportError: no such class")


def test_a_family_whose_package_is_missing_is_not_applicable(monkeypatch):
    monkeypatch.setattr(families, "find_spec", lambda name: None)
    results = check_families(["smolvlm"])["smolvlm"]
    assert results == dict.fromkeys(FAMILY_CHECKS, "n/a: needs num2words: pip install num2words")


@pytest.mark.parametrize(
    ("only", "count", "segmenters"),
    [
        ([], len(FAMILIES), True),
        (["qwen2_vl", "gemma3"], 2, False),
        (["families"], len(FAMILIES), False),
        (["segmenters"], 0, True),
    ],
)
def test_only_chooses_families_and_segmenters(only, count, segmenters):
    chosen, with_segmenters = choose_checks(only)
    assert (len(chosen), with_segmenters) == (count, segmenters)


def test_only_refuses_an_unknown_family():
    with pytest.raises(ModelError, match="--only qwen3vl: no such family; did you mean qwen3_vl"):
        choose_checks(["qwen3vl"])


def test_a_checkpoint_of_the_users_is_checked(tmp_path, monkeypatch):
    checks = {name: FAMILY_CHECKS[name] for name in ("loads", "loss_on_answers_only", "images_not_cropped")}
    monkeypatch.setattr(families, "FAMILY_CHECKS", checks)
    assert check_family(save_tiny_mllm("internvl", tmp_path)) == dict.fromkeys(checks, True)


def test_a_quantized_vision_tower_fails_the_check_of_quantization(monkeypatch, tmp_path):
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr("sam4mllm.mllm.quantization.unquantized_modules", lambda *_, **__: ["lm_head"])
    family = FamilyUnderTest("qwen2_vl", save_tiny_mllm("qwen2_vl", tmp_path / "base"), tmp_path)
    with pytest.raises(CheckError, match="layers outside the language model are quantized, such as"):
        training_checks.nf4(family)
