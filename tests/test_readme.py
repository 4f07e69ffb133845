"""The README and the method's page: every command in them parses, every example is what the code reads and writes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from sam4mllm import Pipeline, load_recipe
from sam4mllm.cli.main import parse
from sam4mllm.data.predictions import read_predictions, read_queries
from sam4mllm.data.reading import read_dataset
from sam4mllm.demo import HELD_OUT_SCENES, TRAINING_SCENES
from sam4mllm.geometry import NEGATIVE, POSITIVE, Box, Point, SamPrompt
from sam4mllm.methods.registry import method_from_settings
from sam4mllm.mllm.scripted_engine import ScriptedEngine
from sam4mllm.prompts.grammar import AnswerGrammar
from sam4mllm.prompts.questions import ask_points, ask_prompts
from sam4mllm.prompts.yes_no import write_answers
from sam4mllm.recipe.schema import MethodSection
from sam4mllm.segmenters.fake import BoxSegmenter
from sam4mllm.synthetic.scenes import make_scene
from tests.data.tiny_datasets import write_image

HOME = Path(__file__).parent.parent
README = (HOME / "README.md").read_text(encoding="utf-8")
METHOD = (HOME / "docs" / "method.md").read_text(encoding="utf-8")
EVALUATION = (HOME / "docs" / "evaluation.md").read_text(encoding="utf-8")
IMAGE_NUMBER = re.compile(r"COCO_train2014_0*(\d+)\.jpg")


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """The words of every shell command, comments left out."""
    lines = [shlex.split(line, comments=True) for block in blocks(text, "sh") for line in block.splitlines()]
    return [words for words in lines if words]


def named(program: str) -> list[list[str]]:
    found = [words[1:] for words in commands(README) if words[0] == program]
    assert found, f"no {program} command in README.md"
    return found


@pytest.mark.parametrize("words", commands(EVALUATION), ids=" ".join)
def test_each_command_of_the_page_on_evaluation_parses(words: list[str]) -> None:
    assert words[0] == "sam4mllm" and parse(words[1:]).subcommand in ("evaluate", "calibrate")


def test_the_readme_has_no_command_of_an_unknown_kind() -> None:
    assert {words[0] for words in commands(README)} == {"make", "sam4mllm", "python", "source"}
    assert not commands(METHOD)


@pytest.mark.parametrize("target", [words[0] for words in named("make")])
def test_make_has_each_target(target: str) -> None:
    assert re.search(rf"^{re.escape(target)}:", (HOME / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("arguments", named("sam4mllm"), ids=" ".join)
def test_each_sam4mllm_command_parses_and_its_recipe_loads(arguments: list[str]) -> None:
    options = parse(arguments)
    if "recipe" in options:
        load_recipe(options.recipe, options.overrides)


@pytest.mark.parametrize("arguments", named("python"), ids=" ".join)
def test_each_tool_is_there_and_knows_its_options(arguments: list[str]) -> None:
    assert arguments[0].startswith(("toy_models/", "ablations/"))
    # The build scripts share the options of building.py.
    scripts = [HOME / arguments[0], HOME / "toy_models" / "building.py"]
    source = "".join(script.read_text(encoding="utf-8") for script in scripts)
    for option in arguments[1:]:
        assert not option.startswith("--") or f'add_argument("{option}"' in source, option


def scripted(*given: object, **also: object) -> Pipeline:
    answers = {
        "the purple star right of the C": "[700,600,800,800] +(750,700)(760,710) -(710,610)",
        "the largest shape": "[100,100,300,300] +(200,200)(210,210) -(110,110)",
        "the white heart": "No object found.",
    }
    return Pipeline(method_from_settings(MethodSection().model_dump()), ScriptedEngine(answers), BoxSegmenter())


def test_the_python_snippet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (snippet,) = blocks(README, "python")
    (place,) = re.findall(r'image = "(.*)"', snippet)
    (tmp_path / place).parent.mkdir(parents=True)
    scene = make_scene(0, 1, int(IMAGE_NUMBER.findall(place)[0]) - TRAINING_SCENES - 1)
    Image.fromarray(scene.image).save(tmp_path / place)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Pipeline, "from_pretrained", scripted)

    names: dict[str, object] = {}
    exec(snippet, names)
    result, results = names["result"], names["results"]
    width, height = scene.size_wh
    assert tuple(result.masks.shape) == (1, height, width) and result.masks.any()
    assert [each.status for each in results] == ["ok", "no_object"]
    assert Image.open(tmp_path / "out.png").size[1] >= height
    # What the snippet asks for is in that image.
    assert any((shape.colour, shape.name) == ("purple", "star") for shape in scene.shapes)


def test_the_images_shown_are_of_the_demo_and_were_not_trained_on() -> None:
    numbers = {int(number) for number in IMAGE_NUMBER.findall(README)}
    assert numbers
    assert all(TRAINING_SCENES < number <= TRAINING_SCENES + 2 * HELD_OUT_SCENES for number in numbers)
    assert f"from number {TRAINING_SCENES + 1} on" in README


def test_the_example_lines_are_read(tmp_path: Path) -> None:
    own, queries, predictions = blocks(README, "jsonl")
    (tmp_path / "own.jsonl").write_text(own, encoding="utf-8")
    write_image(tmp_path / "photos" / "street.jpg", 240, 160)
    assert [len(sample.objects) for sample in read_dataset("jsonl", path=tmp_path / "own.jsonl")] == [1, 0]
    (tmp_path / "queries.jsonl").write_text(queries, encoding="utf-8")
    (tmp_path / "predictions.jsonl").write_text(predictions, encoding="utf-8")
    assert len(read_queries(tmp_path / "queries.jsonl")) == 2
    assert [line.status for line in read_predictions(tmp_path / "predictions.jsonl")] == ["ok", "no_object"]


def test_the_worked_example_is_what_the_code_writes_and_reads() -> None:
    points = Point(128.5, 192.5, POSITIVE), Point(160.5, 197.5, POSITIVE), Point(83.5, 168.5, NEGATIVE)
    written = AnswerGrammar().write([SamPrompt(Box(77, 163, 358, 374), points)], (640, 480))
    asked = ask_prompts("the left cup", 2, 1)
    for text in (README, METHOD):
        lines = [line for block in blocks(text, "text") for line in block.splitlines()]
        assert written in lines and asked in lines
    assert ask_prompts("the left cup", 0, 0) in METHOD
    (read,) = AnswerGrammar().parse(written, (640, 480)).prompts
    assert read.box is not None and f"({', '.join(f'{value:g}' for value in read.box)})" in METHOD


def test_every_answer_shown_can_be_read_and_is_written_the_same() -> None:
    lines = [line for block in blocks(METHOD, "text") for line in block.splitlines()]
    lines = [line for line in lines if re.match(r"\[\d|No object", line)]
    assert len(lines) == 4
    for line in lines:
        answer = AnswerGrammar().parse(line, (1000, 1000))
        assert answer.status != "malformed" and AnswerGrammar().write(answer.prompts, (1000, 1000)) == line


def test_the_questions_about_points_are_those_that_are_asked() -> None:
    shown = "\n".join(blocks(METHOD, "text")) + METHOD
    assert ask_points("[098,351,571,760]", ["(203,402)", "(511,688)", "(333,540)"]) in shown
    assert ask_points("[098,351,571,760]", ["(203,402)"]) in shown
    assert write_answers([True, False, True]) in shown


@pytest.mark.parametrize("place", sorted(set(re.findall(r"(?<!!)\[[^\]]*\]\((?!https:)([^)]+)\)", README))))
def test_every_link_into_the_project_leads_somewhere(place: str) -> None:
    file, _, heading = place.partition("#")
    text = (HOME / file).read_text(encoding="utf-8")
    headings = [line.lstrip("# ").lower().replace(" ", "-") for line in text.splitlines() if line.startswith("#")]
    assert not heading or heading in headings
