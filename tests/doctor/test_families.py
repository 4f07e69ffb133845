"""Every family of the table, on a small random model of its real classes; the checks themselves stand in the doctor."""

from importlib.util import find_spec

import pytest

from sam4mllm.doctor import families
from sam4mllm.doctor.families import check_families, chosen_families
from sam4mllm.doctor.family_checks import FAMILY_CHECKS
from sam4mllm.errors import ModelError
from sam4mllm.mllm.families import FAMILIES
from sam4mllm.testing import TINY_MLLMS


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_check_of_the_family_passes(model_type):
    verdicts = check_families([model_type])[model_type]
    assert list(verdicts) == list(FAMILY_CHECKS)
    lacking = [package for package in FAMILIES[model_type].needs if find_spec(package) is None]
    if lacking:
        pytest.skip(f"{', '.join(lacking)} is not installed")
    assert {check: verdict for check, verdict in verdicts.items() if verdict is not True} == {}


def test_every_family_has_a_tiny_model():
    assert TINY_MLLMS.keys() == FAMILIES.keys()


def test_one_broken_check_hides_no_other(monkeypatch):
    def breaks(subject):
        raise KeyError("first\nsecond")

    monkeypatch.setattr(families, "FAMILY_CHECKS", {"breaks": breaks, "loads": FAMILY_CHECKS["loads"]})
    done = []
    verdicts = check_families(["qwen2_vl"], advance=lambda count=1: done.append(count))["qwen2_vl"]
    assert verdicts == {"breaks": r"KeyError: 'first\nsecond'", "loads": True}
    assert sum(done) == 2


def test_a_model_that_cannot_be_built_fails_every_check_with_the_reason(monkeypatch):
    def breaks(folder):
        raise ImportError("no such class")

    monkeypatch.setitem(families.TINY_MLLMS, "qwen2_vl", breaks)
    verdicts = check_families(["qwen2_vl"])["qwen2_vl"]
    assert verdicts == dict.fromkeys(FAMILY_CHECKS, "ImportError: no such class")


def test_a_family_whose_package_is_missing_is_not_applicable(monkeypatch):
    monkeypatch.setattr(families, "find_spec", lambda name: None)
    verdicts = check_families(["smolvlm"])["smolvlm"]
    assert verdicts == dict.fromkeys(FAMILY_CHECKS, "n/a: needs num2words: pip install num2words")


@pytest.mark.parametrize(
    ("only", "count", "segmenters"),
    [
        ([], len(FAMILIES), True),
        (["qwen2_vl", "gemma3"], 2, False),
        (["families"], len(FAMILIES), False),
        (["segmenters"], 0, True),
    ],
)
def test_what_only_chooses(only, count, segmenters):
    chosen, with_segmenters = chosen_families(only)
    assert (len(chosen), with_segmenters) == (count, segmenters)


def test_only_refuses_what_it_does_not_know():
    with pytest.raises(ModelError, match="--only qwen3vl: no such family; did you mean qwen3_vl"):
        chosen_families(["qwen3vl"])
