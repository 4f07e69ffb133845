"""The embedded base with location tokens: what is loaded, and that it marks objects and names regions untrained."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sam4mllm.mllm.loading import EMBEDDED, EMBEDDED_LOCATIONS, Mllm, load_mllm
from sam4mllm.mllm.meta_loading import load_meta_mllm
from sam4mllm.pipeline.pipeline import Pipeline
from sam4mllm.prompts.questions import ask_region_caption
from sam4mllm.recipe.licenses import license_lines
from sam4mllm.recipe.loading import load_recipe
from sam4mllm.synthetic.phrases import phrases_of
from sam4mllm.synthetic.scenes import make_scene

SCENES = [make_scene(31, index) for index in range(8)]
METHOD = {"name": "pix2emb", "prompt": "both", "sam_tokens": 1, "phrases": 1}


@pytest.fixture(scope="module")
def located() -> Mllm:
    return load_mllm(EMBEDDED_LOCATIONS)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.from_pretrained(EMBEDDED_LOCATIONS, device="cpu", method=METHOD)


def test_it_is_the_embedded_base_with_merged_weights_heads_and_the_token(located: Mllm) -> None:
    base = load_mllm(EMBEDDED)
    assert base.location_heads is None and base.location_id is None
    assert located.location_id == len(base.processor.tokenizer) == len(located.processor.tokenizer) - 1
    heads = located.location_heads
    assert heads is not None and (heads.sam_token_count, heads.sam_width) == (1, 96)
    assert all(parameter.dtype == torch.float32 for parameter in heads.parameters())
    assert not any("lora" in name for name, _ in located.model.named_parameters())
    theirs, ours = base.model.state_dict(), located.model.state_dict()
    same = {name: ours[name] if weight.ndim == 0 else ours[name][: len(weight)] for name, weight in theirs.items()}
    changed = {name for name, weight in theirs.items() if not torch.equal(weight, same[name])}
    assert changed and all("language_model.layers" in name for name in changed)
    meta = load_meta_mllm(EMBEDDED_LOCATIONS).model
    assert all(ours[name].shape == weight.shape for name, weight in meta.state_dict().items())


def test_it_marks_the_objects_of_phrases_without_training(pipeline: Pipeline) -> None:
    asked = []
    for index, scene in enumerate(SCENES):
        rng = np.random.default_rng(index)
        found = [phrase for kind in ("attribute", "position") if (phrase := phrases_of(scene, rng, kind)) is not None]
        asked += [(scene, phrase) for phrase in found]
    results = pipeline([(scene.image, phrase.text) for scene, phrase in asked])
    ious = []
    for (scene, phrase), result in zip(asked, results, strict=True):
        truth = scene.shapes[phrase.shapes[0]]
        assert result.answer == "<location>"
        ious.append(result.prompts[0].box.iou(truth.box) if result.prompts[0].box else 0.0)
    assert np.mean(np.array(ious) > 0.5) > 0.8


def test_it_names_color_and_silhouette_of_regions_without_training(pipeline: Pipeline) -> None:
    right = []
    for scene in SCENES:
        for shape in scene.shapes:
            answer = pipeline.ask(scene.image, ask_region_caption(), [shape.box]).answer
            right.append(answer == f"the {shape.colour} {shape.name}")
    assert np.mean(right) > 0.75


def test_its_recipe_states_the_license_of_the_package() -> None:
    lines = license_lines(load_recipe("shapes_pix2emb"))
    assert lines[0] == "license of the base shapes-locations: Apache-2.0 (commercial use: yes; this package)"
