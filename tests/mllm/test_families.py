import warnings
from dataclasses import replace

import pytest

from sam4mllm.mllm.families import FAMILIES, family_of


def test_a_known_model_type_has_a_row_and_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert family_of("qwen2_vl").coordinates.frame.bins_wh == (1000, 1000)
    assert all(name == family.model_type for name, family in FAMILIES.items())


def test_an_unknown_model_type_gets_the_defaults_and_a_warning():
    with pytest.warns(UserWarning, match="'my_vlm' is not in the table"):
        family = family_of("my_vlm")
    assert (family.model_type, family.coordinates, family.lora_targets) == ("my_vlm", None, "all-linear")
    assert family.image_size.limits == () and family.projector == ()


@pytest.mark.parametrize(("mixture", "dense"), [("qwen3_vl_moe", "qwen3_vl"), ("qwen3_5_moe", "qwen3_5")])
def test_a_mixture_of_experts_has_the_facts_of_its_dense_family(mixture, dense):
    row = replace(FAMILIES[mixture], model_type=dense, title=FAMILIES[dense].title)
    assert row == FAMILIES[dense]
