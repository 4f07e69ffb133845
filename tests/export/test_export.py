"""Each format is read back by the program's own library, or by its rules, and holds the masks, phrases and scores."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from ruamel.yaml import YAML

from sam4mllm.cli.main import main
from sam4mllm.data.reading import read_dataset
from sam4mllm.errors import ArgumentError, PredictionsError
from sam4mllm.export.export import export_predictions
from sam4mllm.export.formats import FORMATS
from tests.export.answers import DOT, HEIGHT, PARTS, RING, WIDTH, masks, write_predictions

SCORES = [(RING, 0.75), (PARTS, 0.5), (PARTS, 0.25), (RING, 1.0)]
DRAWN = [RING, PARTS, DOT, DOT]
"""The phrase and the score of each mask, and whose mask it is, in the order of images and predictions."""


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    return write_predictions(tmp_path)


@pytest.mark.parametrize("phrase_as", ["category", "attribute"])
@pytest.mark.parametrize("to", ["coco", "fiftyone"])
def test_pycocotools_reads_coco(to: str, phrase_as: str, predictions: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert main(["export", str(predictions), "--to", to, "--output", str(output), "--phrase-as", phrase_as]) == 0
    coco = COCO(output if to == "coco" else output / "labels.json")
    annotations = coco.loadAnns(coco.getAnnIds())
    assert [(each["attributes"]["phrase"], each["score"]) for each in annotations] == SCORES
    names = [coco.loadCats(each["category_id"])[0]["name"] for each in annotations]
    assert names == (["object"] * 4 if phrase_as == "attribute" else [phrase for phrase, _ in SCORES])
    for each, name in zip(annotations, DRAWN, strict=True):
        assert np.array_equal(coco.annToMask(each), masks()[name]) and each["area"] == masks()[name].sum()
    assert annotations[0]["bbox"] == [3, 2, 14, 12]
    images = coco.loadImgs(coco.getImgIds())
    assert [Path(image["file_name"]).name for image in images] == ["a.png", "c.png"]
    assert [image.get("no_object") for image in images] == [None, ["the dragon"]]
    assert all(Path(image["file_name"]).is_absolute() for image in images)


def test_yolo_draws_the_masks(predictions: Path, tmp_path: Path) -> None:
    """As YOLO's data loaders do: shares times the sides, truncated to integers, drawn by cv2.fillPoly."""
    output = tmp_path / "out"
    export_predictions(predictions, "yolo", output)
    names = YAML(typ="safe").load(output / "data.yaml")["names"]
    index = [json.loads(line) for line in (output / "instances.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(each["phrase"], each["score"]) for each in index] == SCORES
    for each, name in zip(index, DRAWN, strict=True):
        line = (output / each["labels"]).read_text().splitlines()[each["line"] - 1].split()
        assert names[int(line[0])] == each["phrase"]
        shares = np.array(line[1:], dtype=float).reshape(-1, 2)
        assert len(shares) >= 3 and shares.min() >= 0 and shares.max() <= 1
        canvas = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
        cv2.fillPoly(canvas, [(shares * (WIDTH, HEIGHT)).astype(np.int32)], color=1)
        drawn, mask = canvas.astype(bool), masks()[name]
        # The line that joins two parts is drawn one pixel wide; a hole's is inside the mask.
        extra = 7 if name == PARTS else 0
        assert (drawn & ~mask).sum() <= extra and not (mask & ~drawn).any()
    for link, image in ((output / "images/a.png", "photos/a.png"), (output / "images/b/c.png", "photos/b/c.png")):
        assert link.samefile(tmp_path / image)
        assert (output / "labels" / link.relative_to(output / "images").with_suffix(".txt")).is_file()


def test_png_masks_are_exact(predictions: Path, tmp_path: Path) -> None:
    export_predictions(predictions, "png", tmp_path / "out")
    index = [json.loads(line) for line in (tmp_path / "out/index.jsonl").read_text(encoding="utf-8").splitlines()]
    written = [each for each in index if each["mask"]]
    assert [(each["phrase"], each["score"]) for each in written] == SCORES
    for each, name in zip(written, DRAWN, strict=True):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / each["mask"])), masks()[name] * 255)
    assert [each["phrase"] for each in index if each["mask"] is None] == ["the dragon"]
    assert written[0]["box_xyxy"] == [3, 2, 17, 14]


def test_cvat_is_read_again(predictions: Path, tmp_path: Path) -> None:
    export_predictions(predictions, "cvat", tmp_path / "out", as_attribute=True)
    samples = read_dataset("cvat", path=tmp_path / "out/annotations.xml", images=tmp_path / "photos")
    assert [sample.phrase for sample in samples] == [RING, PARTS, "the dragon", RING]
    assert [[item.mask().sum() for item in sample.objects] for sample in samples] == [
        [masks()[RING].sum()],
        [masks()[PARTS].sum(), 1],
        [],
        [1],
    ]
    assert np.array_equal(samples[0].mask(), masks()[RING])
    assert [label["name"] for label in json.loads((tmp_path / "out/labels.json").read_text())] == [
        "object",
        "no object",
    ]
    export_predictions(predictions, "cvat", tmp_path / "categories")
    samples = read_dataset("cvat", path=tmp_path / "categories/annotations.xml", images=tmp_path / "photos")
    assert [sample.phrase for sample in samples] == [RING, PARTS, RING]


@pytest.mark.parametrize("as_attribute", [False, True])
def test_accepted_label_studio_predictions_are_read_again(
    as_attribute: bool, predictions: Path, tmp_path: Path
) -> None:
    export_predictions(predictions, "labelstudio", tmp_path / "out", as_attribute=as_attribute)
    tasks = json.loads((tmp_path / "out/tasks.json").read_text(encoding="utf-8"))
    assert [task["data"]["image"] for task in tasks] == ["/data/local-files/?d=a.png", "/data/local-files/?d=b/c.png"]
    assert [region["score"] for region in tasks[0]["predictions"][0]["result"][:: 1 + as_attribute]] == [
        0.75,
        0.5,
        0.25,
    ]
    assert tasks[0]["predictions"][0]["score"] == 0.5
    # What the export of the project holds after the predictions were accepted.
    for task in tasks:
        task["annotations"] = [{"id": 1, "result": task.pop("predictions")[0]["result"], "was_cancelled": False}]
    file = tmp_path / "annotated.json"
    file.write_text(json.dumps(tasks))
    samples = read_dataset("labelstudio", path=file, images=tmp_path / "photos")
    assert [sample.phrase for sample in samples] == [RING, PARTS, "the dragon", RING]
    assert [len(sample.objects) for sample in samples] == [1, 2, 0, 1]
    assert np.array_equal(samples[0].mask(), masks()[RING])
    assert np.array_equal(samples[1].objects[0].mask(), masks()[PARTS])


def test_a_threshold_leaves_objects_out(predictions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["export", str(predictions), "--to", "png", "--output", str(tmp_path / "out"), "--min-score", "0.5"]
    assert main([*arguments, "--json", "-"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {
        "images": 2,
        "phrases": 4,
        "instances": 3,
        "unanswered": 2,
        "below": 1,
        "empty": 0,
    }
    assert "3 masks of 4 phrases about 2 images; 2 unanswered queries left out; 1 objects below" in printed.err


@pytest.mark.parametrize(
    ("line", "arguments", "message"),
    [
        ({"id": "1", "status": "no_object", "phrase": "x"}, [], "'1' has no field 'image'"),
        ({"id": "1", "status": "no_object", "image": "none.png", "phrase": "x"}, [], "its size is unknown"),
        (
            {"id": "1", "status": "ok", "image": "a.png", "phrase": "x", "objects": [{"segmentation": [2, 3]}]},
            ["--min-score", "0.5"],
            "an object has no score",
        ),
        (
            {"id": "1", "status": "ok", "image": "a.png", "phrase": "x", "objects": [{"segmentation": [2, 3]}]},
            [],
            "a.png is (40, 24) (width, height)",
        ),
    ],
)
def test_predictions_that_lack_something_are_refused(
    line: dict[str, object],
    arguments: list[str],
    message: str,
    predictions: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(predictions.parent / "photos")
    for item in line.get("objects", []):  # type: ignore[attr-defined]
        height, width = item["segmentation"]
        item["segmentation"] = {"size": [height, width], "counts": [0, height * width]}
    (tmp_path / "p.jsonl").write_text(json.dumps(line) + "\n")
    output = tmp_path / "out"
    assert main(["export", str(tmp_path / "p.jsonl"), "--to", "png", "--output", str(output), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not output.exists() and not list(tmp_path.glob(".*.tmp"))


def test_an_output_with_content_is_kept(predictions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    assert main(["export", str(predictions), "--to", "yolo", "--output", str(tmp_path / "out")]) == 2
    assert "is not empty; give a new folder with --output" in capsys.readouterr().err
    before = predictions.read_bytes()
    assert main(["export", str(predictions), "--to", "coco", "--output", str(predictions)]) == 2
    assert "is read by this command" in capsys.readouterr().err
    assert predictions.read_bytes() == before


def test_two_images_of_one_name_are_refused(predictions: Path, tmp_path: Path) -> None:
    (tmp_path / "photos/a.jpg").write_bytes((tmp_path / "photos/a.png").read_bytes())
    line = {"id": "9", "status": "no_object", "image": str(tmp_path / "photos/a.jpg"), "phrase": "x"}
    predictions.write_text(predictions.read_text() + json.dumps(line) + "\n")
    with pytest.raises(PredictionsError, match="2 images are called a and differ in the suffix alone"):
        export_predictions(predictions, "yolo", tmp_path / "out")


def test_a_phrase_that_xml_cannot_hold_is_named(predictions: Path, tmp_path: Path) -> None:
    predictions.write_text(predictions.read_text().replace("the dragon", "the\\u0007dragon"))
    with pytest.raises(PredictionsError, match="XML cannot hold the control character"):
        export_predictions(predictions, "cvat", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", FORMATS)
def test_a_file_without_answers_gives_an_empty_export(to: str, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"id": "1", "status": "malformed", "error": "x"}\n')
    counts = export_predictions(tmp_path / "p.jsonl", to, tmp_path / "out")
    assert (counts.images, counts.unanswered) == (0, 1) and (tmp_path / "out").exists()
    with pytest.raises(ArgumentError, match="unknown format 'x'; the formats are coco, yolo"):
        export_predictions(tmp_path / "p.jsonl", "x", tmp_path / "other")
