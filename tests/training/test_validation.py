import numpy as np
import pytest
from PIL import Image

from sam4mllm.data.masks import encode
from sam4mllm.data.predictions import Confidence
from sam4mllm.data.sample import MaskObject, Sample
from sam4mllm.errors import DataError
from sam4mllm.geometry import Box
from sam4mllm.methods.ppg import Ppg
from sam4mllm.mllm.engine import Reply
from sam4mllm.mllm.scripted_engine import ScriptedEngine
from sam4mllm.pipeline.pipeline import Pipeline
from sam4mllm.segmenters.fake import BoxSegmenter
from sam4mllm.training.validation import validate
from tests.launch import in_threads

ANSWERS = {"half": "[0,0,4,9]", "none": "No object found.", "broken": "[1,", "all": "[0,0,9,9]"}


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(np.zeros((20, 20, 3), dtype=np.uint8)).save(path)
    return path


def sample(image, phrase: str, columns: int, size: int = 20) -> Sample:
    mask = np.zeros((size, size), dtype=bool)
    mask[:, :columns] = True
    objects = (MaskObject(phrase, encode(mask), Box(0, 0, columns, size)),) if columns else ()
    return Sample(phrase, image, (size, size), phrase, objects)


def pipeline() -> Pipeline:
    return Pipeline(Ppg(0, 0, 10, 5), ScriptedEngine(ANSWERS), BoxSegmenter())


def test_figures_are_those_computed_by_hand(image):
    # Bins are 2 pixels wide and are read as their centers: "[0,0,4,9]" is (1, 1, 9, 19), that is, 8 x 18 pixels.
    samples = [sample(image, "half", 10), sample(image, "none", 0), sample(image, "broken", 5)]
    validation = validate(pipeline(), samples, "val")
    assert validation.ciou == pytest.approx(8 * 18 / (10 * 20 + 0 + 5 * 20))
    assert (validation.malformed, validation.n) == (pytest.approx(1 / 3), 3)
    expected = {"ciou": validation.ciou, "malformed": validation.malformed, "n": 3, "points_on": None}
    assert validation.record() == expected


@pytest.mark.parametrize("count", [1, 2, 3])
def test_points_of_correct_boxes_are_counted_over_all_processes(image, count):
    # Bins are 2 pixels wide; points are at (3, 3), (7, 3) and (15, 3). The box of "wrong" is not that of its object.
    answers = {
        "two": "[0,0,4,9] +(1,1)(3,1) -(7,1)",
        "one": "[0,0,4,9] +(1,1)(7,1) -(3,1)",
        "wrong": "[5,0,9,9] +(1,1)(3,1) -(7,1)",
        "none": "No object found.",
    }
    samples = [sample(image, phrase, 10 if phrase != "none" else 0) for phrase in answers]
    asking = [Pipeline(Ppg(2, 1, 10, 5), ScriptedEngine(answers), BoxSegmenter()) for _ in range(count)]
    validations = in_threads(count, lambda processes: validate(asking[processes.rank], samples, "val", processes))
    assert [each.points_on for each in validations] == [3 / 4] * count


def test_ciou_is_0_where_all_masks_are_empty(image):
    assert validate(pipeline(), [sample(image, "none", 0)], "val").ciou == 0


def test_an_annotation_of_another_size_is_an_error(image):
    with pytest.raises(DataError, match=r"the image is \(20, 20\) \(H, W\).*sample all is \(30, 30\)"):
        validate(pipeline(), [sample(image, "all", 3, size=30)], "val")


def test_the_answers_calibrate_the_scores(image):
    # "[0,0,4,9]" has IoU 0.72 with ten columns and 0.42 with four; "none" is right once of twice.
    samples = [sample(image, "half", 10), sample(image, "half", 4), sample(image, "broken", 5)]
    samples += [sample(image, "none", 0), sample(image, "none", 3)]
    calibration = validate(pipeline(), samples, "val").calibration
    assert (calibration.objects.n, calibration.objects.right) == (2, 1)
    # This engine returns no probabilities, so the probability is how often "no object" was right.
    assert calibration.no_object.probability(Confidence()) == calibration.no_object.probability(Confidence(-3.0)) == 0.5
    assert validate(pipeline(), samples[2:3], "val").calibration is None


@pytest.mark.parametrize("count", [2, 3, 7])
def test_several_processes_return_the_figures_of_one(image, count):
    def asking() -> Pipeline:
        replies = {
            phrase: Reply(text, True, tuple((index + 1, -0.01 * len(phrase) * index) for index in range(len(text))))
            for phrase, text in ANSWERS.items()
        }
        return Pipeline(Ppg(0, 0, 10, 5), ScriptedEngine(replies), BoxSegmenter())

    named = [("half", 10), ("none", 0), ("broken", 5), ("all", 18), ("half", 4), ("all", 16), ("none", 6)]
    samples = [sample(image, phrase, columns) for phrase, columns in named]
    alone = validate(asking(), samples, "val")
    assert alone.calibration.objects.features["text"].weight and alone.calibration.no_object.n == 2
    assert in_threads(count, lambda processes: validate(asking(), samples, "val", processes)) == [alone] * count
