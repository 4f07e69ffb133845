import re
import warnings

import pytest

from sam4mllm.mllm.families import FAMILIES, OUTSIDE_THE_LANGUAGE_MODEL, family_of


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


@pytest.mark.parametrize(
    ("module", "excluded"),
    [
        ("model.vision_tower.blocks.0.attn.qkv", True),
        ("model.visual.merger.mlp.0", True),
        ("model.multi_modal_projector.linear_1", True),
        ("model.connector.modality_projection.proj", True),
        ("lm_head", True),
        ("model.language_model.layers.0.self_attn.q_proj", False),
        ("model.text_model.layers.3.mlp.down_proj", False),
    ],
)
def test_lora_excludes_the_modules_outside_the_language_model(module, excluded):
    assert (re.fullmatch(OUTSIDE_THE_LANGUAGE_MODEL, module) is not None) is excluded
