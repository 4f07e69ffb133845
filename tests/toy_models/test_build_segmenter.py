"""The training of the embedded segmenter: its prompts, and that its weights depend on the seed alone."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from sam4mllm.segmenters.loading import load_segmenter
from sam4mllm.synthetic.scenes import make_scene
from tests.scripts import load_script

SCENE = make_scene(3, 1, shared_boxes=1.0)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("build_segmenter")


@pytest.fixture(scope="module")
def prompts() -> ModuleType:
    return load_script("segmenter_prompts")


@pytest.mark.parametrize("points", [(1, 0), (2, 1), (2, 2)])
def test_positive_points_are_on_the_object_and_negative_points_off_it(
    prompts: ModuleType, points: tuple[int, int]
) -> None:
    chosen = np.arange(len(SCENE.shapes)).repeat(5)
    boxes, xy, labels = prompts.sample_prompts(np.random.default_rng(0), SCENE, chosen, points, 0.15)
    assert labels.tolist() == [[1] * points[0] + [0] * points[1]] * len(chosen)
    for index, box, points_xy, row in zip(chosen, boxes, xy, labels, strict=True):
        shape = SCENE.shapes[index]
        assert [bool(shape.mask[int(y), int(x)]) for x, y in points_xy] == row.astype(bool).tolist()
        loose = 0.3 * np.array([shape.box.width, shape.box.height] * 2) + 1e-3
        assert (np.abs(box - np.array(shape.box)) <= loose).all()


def test_an_error_point_is_where_the_mask_is_wrong_and_its_label_is_the_truth(prompts: ModuleType) -> None:
    truth, predicted = np.zeros((2, 64, 64), dtype=bool), np.zeros((2, 64, 64), dtype=bool)
    truth[0, 10, 20] = True  # missed by the first mask
    truth[1, 30, 30] = predicted[1, 30, 30] = predicted[1, 5, 6] = True  # the second mask adds a pixel
    xy, labels = prompts.error_points(np.random.default_rng(0), predicted, truth)
    assert xy.tolist() == [[[82, 42]], [[26, 22]]] and labels.tolist() == [[1], [0]]


def test_shapes_that_share_a_box_are_found(prompts: ModuleType) -> None:
    boxes = [shape.box for shape in SCENE.shapes]
    expected = [max(box.iou(other) for other in boxes if other is not box) > 0.5 for box in boxes]
    assert prompts.shares_box(SCENE).tolist() == expected and any(expected)


def test_two_trainings_and_a_restarted_one_give_the_same_weights(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = torch.get_num_threads()

    def build(work: Path, steps: int) -> None:
        arguments = ["--work", str(work), "--output", str(work), "--steps", str(steps), "--batch", "1"]
        arguments += ["--threads", str(threads)]
        monkeypatch.setattr(sys, "argv", ["build", *arguments])
        monkeypatch.setattr(script, "held_out", lambda sam, scenes: {})
        script.main()

    build(tmp_path / "once", 2)
    build(tmp_path / "twice", 2)
    again = (tmp_path / "twice" / "sam_shapes.pth").read_bytes()
    build(tmp_path / "twice", 2)  # from the checkpoint of the last step
    assert (tmp_path / "twice" / "sam_shapes.pth").read_bytes() == again
    first, second = (load_segmenter(tmp_path / name / "sam_shapes.pth") for name in ("once", "twice"))
    assert first.fingerprint == second.fingerprint


def test_a_training_prompt_has_a_loose_box_points_or_both(prompts: ModuleType) -> None:
    rng = np.random.default_rng(0)
    forms = []
    for _ in range(200):
        chosen, boxes, xy, labels = prompts.training_prompts(rng, SCENE, 16, late=False)
        assert len(chosen) == len(xy) == len(labels) == 16 and labels.shape == xy.shape[:2]
        forms.append((boxes is not None, xy.shape[1] > 0))
    shares = {form: forms.count(form) / len(forms) for form in set(forms)}
    assert shares == pytest.approx({(False, True): 0.35, (True, True): 0.5, (True, False): 0.15}, abs=0.08)


def test_nearly_exact_boxes_are_sampled_in_late_steps_only(prompts: ModuleType) -> None:
    def nearly_exact(late: bool) -> list[bool]:
        rng, found = np.random.default_rng(1), []
        for _ in range(100):
            chosen, boxes, _, _ = prompts.training_prompts(rng, SCENE, 16, late)
            if boxes is not None:
                true = [SCENE.shapes[index].box for index in chosen]
                sides = np.array([[box.width, box.height] * 2 for box in true])
                found.append(bool(np.std((boxes - np.array(true)) / sides) < 0.05))
        return found

    assert not any(nearly_exact(late=False))
    assert np.mean(nearly_exact(late=True)) == pytest.approx(0.4, abs=0.15)


def test_points_beside_the_box_improve_the_masks_of_the_embedded_segmenter(script: ModuleType) -> None:
    ious = script.held_out(load_segmenter("shapes").sam, 6)
    assert ious["all"]["box_best_group"] > ious["all"]["box"] + 0.06
    assert ious["shared"]["box_best_group"] > ious["shared"]["box"] + 0.2
    assert ious["all"]["box_best_group"] > ious["all"]["box_random_group"] + 0.02


def test_the_measurement_lists_each_kind_of_scenes_and_seed_for_shapes_by_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["measure", "--scenes", "4", "--threads", str(torch.get_num_threads())])
    load_script("measure_segmenter").main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines[1:]] == [
        f"shapes, shared_boxes={share}, seed {seed}" for share in (0.0, 0.5) for seed in (771, 772, 773)
    ]
