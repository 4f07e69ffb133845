"""The pipeline with a scripted model and a segmenter whose mask is the box."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sam4mllm.data.predictions import Confidence
from sam4mllm.errors import DataError
from sam4mllm.geometry import box_of_mask
from sam4mllm.methods.registry import method_from_settings
from sam4mllm.mllm.engine import Reply
from sam4mllm.mllm.scripted_engine import ScriptedEngine
from sam4mllm.pipeline.pipeline import Pipeline
from sam4mllm.prompts.conversation import Conversation
from sam4mllm.runs.calibration import Calibration, fit_calibration
from sam4mllm.segmenters.fake import BoxSegmenter

SCRIPT = {
    "ring": "[100,200,499,599] +(300,400)(350,400) -(110,210)",
    "all": "[000,000,249,249] +(100,100); [500,500,999,999] +(700,700)",
    "dragon": "No object found.",
    "riddle": "[1,2,3",
}


def make_pipeline(script: object = SCRIPT, **options: object) -> Pipeline:
    method = method_from_settings({"name": "ppg", "positives": 2, "negatives": 1, "grid": 1000, "phrases": 1})
    return Pipeline(method, ScriptedEngine(script), BoxSegmenter(), **options)  # type: ignore[arg-type]


def image(width: int = 100, height: int = 80) -> np.ndarray:
    return np.zeros((height, width, 3), dtype=np.uint8)


def test_one_phrase_gives_one_mask_at_the_images_size() -> None:
    result = make_pipeline()(image(), "the red ring")
    assert result.status == "ok" and result.answer == SCRIPT["ring"] and result.reason is None
    assert result.masks.shape == (1, 80, 100) and result.masks.dtype == torch.bool
    assert result.scores.shape == (1,) and result.scores.dtype == torch.float32
    assert len(result.prompts[0].positives) == 2 and len(result.prompts[0].negatives) == 1
    box = box_of_mask(result.masks[0].numpy())
    assert box is not None and tuple(box) == pytest.approx((10, 16, 50, 48), abs=1)


def test_several_objects_come_in_the_order_of_the_answer_and_their_union_is_the_mask() -> None:
    result = make_pipeline()(image(), "all of them")
    assert result.masks.shape == (2, 80, 100) and len(result.prompts) == 2 and result.scores.shape == (2,)
    assert result.masks[0, 5, 5] and not result.masks[0, 70, 90] and result.masks[1, 70, 90]
    assert torch.equal(result.mask, result.masks[0] | result.masks[1])


@pytest.mark.parametrize(("phrase", "status"), [("a dragon", "no_object"), ("a riddle", "malformed")])
def test_no_object_and_malformed_are_different_and_both_have_no_mask(phrase: str, status: str) -> None:
    result = make_pipeline()(image(), phrase)
    assert result.status == status
    assert result.masks.shape == (0, 80, 100) and result.prompts == [] and result.scores.shape == (0,)
    assert not result.mask.any() and result.mask.shape == (80, 100)
    assert (result.reason is None) == (status == "no_object")


def test_results_of_a_list_are_in_its_order_whatever_the_batch() -> None:
    small, large = image(60, 40), image(200, 120)
    pairs = [(small, "ring"), (large, "all"), (small, "dragon"), (large, "ring"), (small, "riddle"), (small, "all")]
    runs = [make_pipeline(image_batch=size)(pairs) for size in (1, 2, 8)]
    for results in runs:
        assert [result.status for result in results] == ["ok", "ok", "no_object", "ok", "malformed", "ok"]
        assert [tuple(result.masks.shape) for result in results] == [
            (1, 40, 60), (2, 120, 200), (0, 40, 60), (1, 120, 200), (0, 40, 60), (2, 40, 60),
        ]  # fmt: skip
        for result, other in zip(results, runs[0], strict=True):
            assert torch.equal(result.masks, other.masks) and result.prompts == other.prompts


def test_an_image_of_several_phrases_is_embedded_once_and_one_without_prompts_never() -> None:
    seen: list[int] = []

    class Counting(BoxSegmenter):
        def embed(self, images):  # type: ignore[no-untyped-def]
            seen.append(len(images))
            return super().embed(images)

    pipe = make_pipeline()
    pipe.segmenter = Counting()
    one, two = image(), image()
    pipe([(one, "ring"), (one, "all"), (two, "dragon"), (one, "ring of all")])
    assert seen == [1]
    pipe([(two, "dragon")])
    assert seen == [1]


def test_paths_pil_images_and_arrays_are_the_same_image_to_the_model(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    shown: list[np.ndarray] = []

    def answer(conversation: Conversation) -> str:
        shown.append(np.asarray(conversation.image))
        return "No object found."

    pipe = make_pipeline(answer)
    for given in (pixels, Image.fromarray(pixels), tmp_path / "a.png", str(tmp_path / "a.png")):
        pipe(given, "x")
    assert len(shown) == 4 and all(np.array_equal(image, pixels) for image in shown)


def test_the_empty_list_has_no_results() -> None:
    assert make_pipeline()([]) == []


@pytest.mark.parametrize("wrong", ["street.jpg", image(), [("a.jpg",)], [("a.jpg", 3)], 7])
def test_other_arguments_than_pairs_are_refused(wrong: object) -> None:
    with pytest.raises(TypeError, match=r"\(image, phrase\)"):
        make_pipeline()(wrong)  # type: ignore[call-overload]


def test_a_missing_image_is_a_data_error() -> None:
    with pytest.raises(DataError, match="no such file"):
        make_pipeline()("nowhere.jpg", "ring")


def test_a_result_is_drawn_over_its_image() -> None:
    drawn = make_pipeline()(image(), "ring").draw(image(), long_side=300)
    assert drawn.size == (300, 240) and np.asarray(drawn).any()


def test_identity_depends_on_settings_and_models_and_not_on_the_batch_size() -> None:
    assert make_pipeline().identity == make_pipeline(image_batch=3).identity
    assert make_pipeline().identity != make_pipeline(max_new_tokens=7).identity
    assert make_pipeline().identity != make_pipeline(engine_identity={"adapter": "another"}).identity


def test_identity_has_the_keys_with_which_jobs_were_started() -> None:
    pipe = make_pipeline(engine_identity={"adapter": "a"})
    assert pipe.identity == {
        "method": pipe.method.settings(),
        "engine": {"adapter": "a"},
        "segmenter": pipe.segmenter.fingerprint,
        "max_new_tokens": 512,
    }


def calibration() -> Calibration:
    """Return a calibration whose probabilities grow with the IoU, and for "no object" with that of the tokens."""
    objects = [(Confidence(-0.1, None, iou), iou > 0.5) for iou in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0) * 5]
    made = fit_calibration(objects, [(Confidence(text), text > -1) for text in (-3.0, -2.0, -0.2, -0.1) * 5], "val")
    assert made is not None
    return made


def test_without_a_calibration_scores_are_sams_predicted_iou_clipped_to_0_and_1() -> None:
    class Overestimating(BoxSegmenter):
        def decode_points(self, *arguments):  # type: ignore[no-untyped-def]
            decoded = super().decode_points(*arguments)
            return type(decoded)(decoded.low_res_logits, decoded.iou * 1.25, decoded.index, decoded.sizes_wh)

    pipe = make_pipeline()
    pipe.segmenter = Overestimating()
    ring, dragon, riddle = pipe([(image(), phrase) for phrase in ("ring", "dragon", "riddle")])
    assert ring.scores.tolist() == [1.0] and ring.score == 1.0 and ring.confidence[0].iou == 1.25
    assert (dragon.score, riddle.score) == (None, 0.0)


def test_a_calibration_computes_the_scores_and_an_answer_has_the_lowest_of_its_objects() -> None:
    made = calibration()
    logprobs = tuple((place + 1, -0.1) for place in range(len("No object found.")))
    pipe = make_pipeline({**SCRIPT, "dragon": Reply("No object found.", True, logprobs)}, calibration=made)
    results = pipe([(image(), phrase) for phrase in ("all", "dragon", "riddle")])
    assert made.objects is not None and made.no_object is not None
    expected = [made.objects.probability(each) for each in results[0].confidence]
    assert results[0].scores.tolist() == pytest.approx(expected) and results[0].scores.dtype == torch.float32
    assert results[0].score == min(expected)
    assert results[1].score == made.no_object.probability(Confidence(-0.1))
    assert results[2].score == 0


def test_identity_contains_the_calibration_if_there_is_one() -> None:
    plain, calibrated = make_pipeline(), make_pipeline(calibration=calibration())
    assert calibrated.identity == {**plain.identity, "calibration": calibration().to_json()}
    assert calibrated.uncalibrated().identity == plain.identity and calibrated.calibration is not None
    assert calibrated.uncalibrated()(image(), "ring").scores.tolist() == plain(image(), "ring").scores.tolist()
