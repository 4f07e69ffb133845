"""`ask` with scripted answers: what it prints and writes, what it refuses, and its exit statuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from sam4mllm.cli.main import main
from sam4mllm.data.masks import decode
from sam4mllm.geometry import Box
from sam4mllm.methods.pix2emb import Pix2Emb
from sam4mllm.methods.ppg import Ppg
from sam4mllm.mllm.engine import Reply
from sam4mllm.mllm.scripted_engine import ScriptedEngine
from sam4mllm.pipeline.pipeline import Pipeline
from sam4mllm.prompts.conversation import LOCATION_TOKEN, Location
from sam4mllm.segmenters.fake import BoxSegmenter
from tests.data.tiny_datasets import write_image
from tests.simulated import located

LEFT, RIGHT = Box(0, 0, 0.5, 1), Box(0.5, 0, 1, 0.5)


def script(monkeypatch: pytest.MonkeyPatch, name: str, reply: Reply) -> ScriptedEngine:
    """Let `ask` load a pipeline whose model answers every question by `reply`."""
    engine = ScriptedEngine([reply])
    method = Pix2Emb("box", 1, 1) if name == "pix2emb" else Ppg(2, 1, 10, 1)
    monkeypatch.setattr(Pipeline, "from_pretrained", lambda *_, **options: Pipeline(method, engine, BoxSegmenter()))
    return engine


# The image has 20 x 10 pixels.
REPLIES = {
    "pix2emb": located(f"A cup{LOCATION_TOKEN} on a mat{LOCATION_TOKEN}{LOCATION_TOKEN}.", LEFT, RIGHT, LEFT),
    "ppg": Reply("A cup [0,0,4,9] on a mat [5,0,9,4]; [0,0,4,9]."),
}


@pytest.mark.parametrize("name", REPLIES)
def test_a_grounded_answer_is_printed_with_its_boxes_and_drawn(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script(monkeypatch, name, REPLIES[name])
    files = ["-o", str(tmp_path / "o.png"), "--json", str(tmp_path / "a.json")]
    assert main(["ask", "run", str(write_image(tmp_path / "a.png")), "Describe it.", *files]) == 0
    answer, *boxes = capsys.readouterr().out.splitlines()
    assert answer == "A cup [1] on a mat [2][3]."
    numbers = [tuple(float(value) for value in line[4:].split(",")) for line in boxes]
    # Boxes in text are those of bins of 2 x 1 pixels, which are parsed at their centers.
    expected = [(0, 0, 10, 10), (10, 0, 20, 5), (0, 0, 10, 10)]
    assert [line[:4] for line in boxes] == ["[1] ", "[2] ", "[3] "]
    assert numbers == [pytest.approx(box, abs=1) for box in expected]
    assert Image.open(tmp_path / "o.png").size == (400, 200)
    record = json.loads((tmp_path / "a.json").read_text())
    assert (record["answer"], record["finished"], record["question"]) == ("A cup on a mat.", True, "Describe it.")
    assert [mark["end"] for mark in record["marks"]] == [5, 14, 14]
    mask = decode(record["marks"][0]["segmentation"])
    assert mask.shape == (10, 20) and mask[5, 5] and not mask[5, 15]


@pytest.mark.parametrize("name", REPLIES)
def test_a_region_of_the_question_is_in_the_methods_form(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = script(monkeypatch, name, Reply("a red ring"))
    arguments = ["ask", "run", str(write_image(tmp_path / "a.png")), "Is <region> left of <region>?"]
    assert main([*arguments, "--box", "0,0,10,10", "--box", "10,0,20,5"]) == 0
    assert capsys.readouterr().out == "a red ring\n"
    (turn,) = engine.asked[0].turns
    if name == "pix2emb":
        assert turn.text == f"Is {LOCATION_TOKEN} left of {LOCATION_TOKEN}?"
        second = turn.text.rindex(LOCATION_TOKEN)
        assert turn.locations == (Location(LEFT, 3), Location(RIGHT, second))
    else:
        assert turn.text == "Is [0,0,5,9] left of [5,0,9,5]?" and turn.locations == ()


def test_an_answer_that_was_cut_off_ends_with_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script(monkeypatch, "ppg", Reply("A cup and", finished=False))
    image = str(write_image(tmp_path / "a.png"))
    assert main(["ask", "run", image, "Describe it.", "--json", "-"]) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out)["finished"] is False
    assert "cut off at 512 tokens" in printed.err


@pytest.mark.parametrize(
    ("question", "options", "reason"),
    [
        ("What is at <region>?", [], "has <region> 1 times, and 0 boxes are given"),
        ("What is it?", ["--box", "0,0,5,5"], "has <region> 0 times, and 1 boxes are given"),
        (" ", [], "the question is empty"),
        ("What is at <region>?", ["--box", "5,0,5,5"], "the box 5,0,5,5 is not x1,y1,x2,y2 with x1 < x2 and y1 < y2"),
        ("What is at <region>?", ["--box", "0,0,21,5"], "in an image of 20 x 10 pixels"),
        ("What is at <region>?", ["--box", "0,0,nan,5"], "the box 0,0,nan,5 is not"),
        ("What is it?", ["--votes", "3"], "--votes and --constrained are for answers about a phrase"),
        ("What is it?", ["--constrained"], "--votes and --constrained are for answers about a phrase"),
        ("What is it?", ["-o", "x.txt"], ".txt is not an image format"),
    ],
)
def test_bad_arguments_are_refused_before_a_model_is_loaded(
    question: str, options: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ask", "run", str(write_image(tmp_path / "a.png")), question, *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert reason in line


def test_a_box_without_four_numbers_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["ask", "run", "a.png", "What is at <region>?", "--box", "1,2,3"])
    assert ended.value.code == 2
    assert "argument --box: expected x1,y1,x2,y2 in pixels; got '1,2,3'" in capsys.readouterr().err
