"""The inspect page holds the exact text of the conversations, and escapes everything that comes from the data."""

from __future__ import annotations

from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sam4mllm.data.grounded_caption import GroundedCaption, Mention
from sam4mllm.data.masks import encode
from sam4mllm.data.sample import MaskObject, Sample
from sam4mllm.geometry import Box, Point, SamPrompt
from sam4mllm.methods.registry import method_from_settings
from sam4mllm.recipe.schema import MethodSection
from sam4mllm.targets.store import ObjectTarget
from sam4mllm.training.dataset import spread
from sam4mllm.training.inspect import _chosen, write_page

METHOD = method_from_settings(MethodSection().model_dump())


def make_object(name: str, x: int) -> MaskObject:
    mask = np.zeros((30, 40), dtype=bool)
    mask[5:15, x : x + 10] = True
    return MaskObject(name, encode(mask), Box(x, 5, x + 10, 15))


def make_target(item: MaskObject) -> ObjectTarget:
    points = (Point(item.box.x1 + 2, 8, 1), Point(item.box.x1 + 5, 10, 1), Point(item.box.x1 + 12, 10, 0))
    return ObjectTarget(item.id, "hash", (SamPrompt(item.box, points),), (0.913,), 0.852, 0.871, 0.024)


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    Image.new("RGB", (40, 30), "grey").save(tmp_path / "a.png")
    one, two = make_object("one", 2), make_object("two", 20)
    return [
        Sample("q/1", tmp_path / "a.png", (40, 30), "the <b>left</b> one & only", (one,)),
        Sample("q/2", tmp_path / "a.png", (40, 30), "both", (one, two)),
        Sample("q/3", tmp_path / "a.png", (40, 30), "a dragon", ()),
    ]


def test_the_page_holds_phrases_figures_and_the_exact_text(samples: list[Sample], tmp_path: Path) -> None:
    targets = {item.id: make_target(item) for sample in samples for item in sample.objects}
    drawn: list[int] = []
    page = write_page(samples, targets, METHOD, tmp_path / "out", title="Targets", advance=drawn.append)
    html = page.read_text(encoding="utf-8")
    for sample in samples:
        assert sample.phrase in unescape(html) and sample.id in html
        for conversation in METHOD.training_conversations([sample], targets):
            assert all(turn.text in unescape(html) for turn in conversation.turns)
    assert "No object found." in html
    assert all(figure in html for figure in ("0.913", "0.852", "0.871", "0.024"))
    assert "3 phrases, 2 objects, 0 of them without a target" in html and sum(drawn) == 3


def test_regions_and_captions_are_shown_with_their_text_and_boxes(samples: list[Sample], tmp_path: Path) -> None:
    boxed = MaskObject("cup", None, Box(4, 3, 20, 15))
    caption = GroundedCaption("c/1", samples[0].image, (40, 30), "A <cup>.", (Mention(0, 7, (boxed,)),))
    page = write_page(samples[2:], {}, METHOD, tmp_path / "out", title="x", regions=samples[:1], captions=[caption])
    html = page.read_text(encoding="utf-8")
    assert "1 phrases, 0 objects, 0 of them without a target (left out); 1 regions; 1 grounded captions." in html
    assert "<pre>What is at [050,166,300,500]?</pre>\n<pre>the &lt;b&gt;left" in html
    assert "<pre>A &lt;cup&gt; [100,100,500,500].</pre>" in html
    plain, region, captioned = (
        np.asarray(Image.open(tmp_path / "out/images" / f"{index:04d}.png")) for index in range(3)
    )
    assert not np.array_equal(plain, region) and not np.array_equal(plain, captioned)


@pytest.mark.parametrize("limit", [1, 3, 6, 100])
def test_the_items_shown_are_spread_over_phrases_regions_and_captions(samples: list[Sample], limit: int) -> None:
    captions = [GroundedCaption(f"c/{n}", samples[0].image, (40, 30), "A cup.", ()) for n in range(2)]
    positions = spread(range(6), limit)
    chosen = _chosen(positions, samples, samples[:1], captions)
    assert [item for items in chosen for item in items] == spread([*samples, samples[0], *captions], limit)


def test_phrases_and_titles_are_escaped(samples: list[Sample], tmp_path: Path) -> None:
    page = write_page(samples, {}, METHOD, tmp_path / "out", title="<script>alert(1)</script>")
    assert "<b>left" not in page.read_text() and "<script" not in page.read_text()


def test_every_sample_has_an_image_with_its_boxes_and_chosen_points(samples: list[Sample], tmp_path: Path) -> None:
    targets = {item.id: make_target(item) for sample in samples for item in sample.objects}
    html = write_page(samples, targets, METHOD, tmp_path / "with", title="x").read_text()
    write_page(samples, {}, METHOD, tmp_path / "without", title="x")
    for index in range(3):
        assert f'src="images/{index:04d}.png"' in html
        with_targets, without = (
            np.asarray(Image.open(tmp_path / name / "images" / f"{index:04d}.png")) for name in ("with", "without")
        )
        assert with_targets.shape == (300, 400, 3)
        assert np.array_equal(with_targets, without) == (index == 2)
    assert Image.open(tmp_path / "with" / "sheet.png").width > 400


def test_a_phrase_without_a_target_is_shown_as_left_out_with_the_reason(samples: list[Sample], tmp_path: Path) -> None:
    targets = {"one": make_target(samples[0].objects[0])}
    reasons = {"two": "the mask is empty"}
    html = write_page(samples, targets, METHOD, tmp_path / "out", title="x", reasons=reasons).read_text()
    assert html.count("Left out") == 1 and "the mask is empty" in html
    assert "2 objects, 1 of them without a target" in html


def test_a_page_without_samples_is_written(tmp_path: Path) -> None:
    assert "0 phrases" in write_page([], {}, METHOD, tmp_path / "out", title="x").read_text()


def test_an_object_without_target_points_is_shown_with_its_box_alone(samples: list[Sample], tmp_path: Path) -> None:
    targets = {item.id: make_target(item) for sample in samples for item in sample.objects}
    targets["two"] = replace(targets["two"], prompts=(SamPrompt(targets["two"].prompts[0].box),))
    html = write_page(samples, targets, METHOD, tmp_path / "out", title="x").read_text(encoding="utf-8")
    assert "0 of them without a target (left out), 1 with the box alone as the target." in html
    assert html.count("two: its target is the box alone") == 1 and "one: its target" not in html
