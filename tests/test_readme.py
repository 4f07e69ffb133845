"""The README, docs/method.md and docs/evaluation.md: their commands parse, and their examples match the code."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from sam4mllm import Pipeline, load_recipe
from sam4mllm.cli.main import parse
from sam4mllm.data.predictions import read_predictions
from sam4mllm.data.query_files import read_queries
from sam4mllm.data.reading import read_dataset
from sam4mllm.data.sample import MaskObject
from sam4mllm.demo import HELD_OUT_SCENES, TRAINING_SCENES
from sam4mllm.geometry import NEGATIVE, POSITIVE, Box, Point, SamPrompt
from sam4mllm.methods.registry import method_from_settings
from sam4mllm.methods.text import mark_text, region_text
from sam4mllm.mllm.scripted_engine import ScriptedEngine
from sam4mllm.prompts.conversation import LOCATION_TOKEN
from sam4mllm.prompts.grammar import AnswerGrammar
from sam4mllm.prompts.questions import (
    ask_grounded_caption,
    ask_locations,
    ask_points,
    ask_prompts,
    ask_region_caption,
)
from sam4mllm.prompts.yes_no import write_answers
from sam4mllm.recipe.schema import MethodSection
from sam4mllm.segmenters.fake import BoxSegmenter
from sam4mllm.synthetic.scenes import make_scene
from sam4mllm.synthetic.writer import SHARED_BOXES
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


def readme_commands(program: str) -> list[list[str]]:
    """The arguments of every call of `program` in the README."""
    arguments = [words[1:] for words in commands(README) if words[0] == program]
    assert arguments, f"no {program} command in README.md"
    return arguments


@pytest.mark.parametrize("words", commands(EVALUATION), ids=" ".join)
def test_each_command_of_docs_evaluation_parses(words: list[str]) -> None:
    assert words[0] == "sam4mllm" and parse(words[1:]).subcommand in ("evaluate", "score", "calibrate")


def test_the_readme_calls_known_programs_only() -> None:
    assert {words[0] for words in commands(README)} == {"make", "sam4mllm", "python", "source"}
    assert not commands(METHOD)


@pytest.mark.parametrize("target", [words[0] for words in readme_commands("make")])
def test_make_has_each_target_that_the_readme_names(target: str) -> None:
    assert re.search(rf"^{re.escape(target)}:", (HOME / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("arguments", readme_commands("sam4mllm"), ids=" ".join)
def test_each_sam4mllm_command_parses_and_its_recipe_loads(arguments: list[str]) -> None:
    options = parse(arguments)
    if "recipe" in options:
        load_recipe(options.recipe, options.overrides)


@pytest.mark.parametrize("arguments", readme_commands("python"), ids=" ".join)
def test_each_script_exists_and_has_the_options_that_the_readme_gives(arguments: list[str]) -> None:
    assert arguments[0].startswith(("toy_models/", "ablations/"))
    # The build scripts share the options of building.py.
    scripts = [HOME / arguments[0], HOME / "toy_models" / "building.py"]
    source = "".join(script.read_text(encoding="utf-8") for script in scripts)
    for option in arguments[1:]:
        assert not option.startswith("--") or f'add_argument("{option}"' in source, option


def scripted_pipeline(*_: object, **__: object) -> Pipeline:
    """The pipeline that the snippet gets instead of the demo's."""
    answers = {
        "the ring on the star": "[700,600,800,800] +(750,700)(760,710) -(710,610)",
        "the largest shape": "[100,100,300,300] +(200,200)(210,210) -(110,110)",
        "the white heart": "No object found.",
    }
    return Pipeline(method_from_settings(MethodSection().model_dump()), ScriptedEngine(answers), BoxSegmenter())


def test_the_python_snippet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (snippet,) = blocks(README, "python")
    (path,) = re.findall(r'image = "(.*)"', snippet)
    (tmp_path / path).parent.mkdir(parents=True)
    index = int(IMAGE_NUMBER.findall(path)[0]) - TRAINING_SCENES - 1
    scene = make_scene(0, 1, index, shared_boxes=SHARED_BOXES)
    Image.fromarray(scene.image).save(tmp_path / path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Pipeline, "from_pretrained", scripted_pipeline)

    names: dict[str, object] = {}
    exec(snippet, names)
    result, results = names["result"], names["results"]
    width, height = scene.size_wh
    assert tuple(result.masks.shape) == (1, height, width) and result.masks.any()
    assert [each.status for each in results] == ["ok", "no_object"]
    assert Image.open(tmp_path / "out.png").size[1] >= height
    # The image shows the object that the snippet refers to.
    assert any((shape.colour, shape.name) == ("black", "ring") for shape in scene.shapes)


def test_the_readme_segments_held_out_images_of_the_demo() -> None:
    numbers = {int(number) for number in IMAGE_NUMBER.findall(README)}
    assert numbers
    assert all(TRAINING_SCENES < number <= TRAINING_SCENES + 2 * HELD_OUT_SCENES for number in numbers)
    assert f"from number {TRAINING_SCENES + 1} on" in README


def test_the_example_lines_are_read(tmp_path: Path) -> None:
    predictions, own, queries = blocks(README, "jsonl")
    (tmp_path / "own.jsonl").write_text(own, encoding="utf-8")
    write_image(tmp_path / "photos" / "street.jpg", 240, 160)
    assert [len(sample.objects) for sample in read_dataset("jsonl", path=tmp_path / "own.jsonl")] == [1, 0]
    (tmp_path / "queries.jsonl").write_text(queries, encoding="utf-8")
    (tmp_path / "predictions.jsonl").write_text(predictions, encoding="utf-8")
    assert len(read_queries(tmp_path / "queries.jsonl")) == 2
    assert [line.status for line in read_predictions(tmp_path / "predictions.jsonl")] == ["ok", "no_object"]


def test_the_code_writes_and_reads_the_worked_example() -> None:
    points = Point(128.5, 192.5, POSITIVE), Point(160.5, 197.5, POSITIVE), Point(83.5, 168.5, NEGATIVE)
    written = AnswerGrammar().write([SamPrompt(Box(77, 163, 358, 374), points)], (640, 480))
    asked = ask_prompts("the left cup", 2, 1)
    for text in (README, METHOD):
        lines = [line for block in blocks(text, "text") for line in block.splitlines()]
        assert written in lines and asked in lines
    assert ask_prompts("the left cup", 0, 0) in METHOD
    (read,) = AnswerGrammar().parse(written, (640, 480)).prompts
    assert read.box is not None and f"({', '.join(f'{value:g}' for value in read.box)})" in METHOD


def test_every_answer_in_docs_method_is_parsed_and_written_unchanged() -> None:
    lines = [line for block in blocks(METHOD, "text") for line in block.splitlines()]
    lines = [line for line in lines if re.match(r"\[\d|No object", line)]
    assert len(lines) == 4
    for line in lines:
        answer = AnswerGrammar().parse(line, (1000, 1000))
        assert answer.status != "malformed" and AnswerGrammar().write(answer.prompts, (1000, 1000)) == line


def test_docs_method_shows_the_questions_about_points() -> None:
    shown = "\n".join(blocks(METHOD, "text")) + METHOD
    assert ask_points("[098,351,571,760]", ["(203,402)", "(511,688)", "(333,540)"]) in shown
    assert ask_points("[098,351,571,760]", ["(203,402)"]) in shown
    assert write_answers([True, False, True]) in shown


def test_docs_method_shows_the_texts_with_locations() -> None:
    lines = [line for block in blocks(METHOD, "text") for line in block.splitlines()]
    assert ask_locations("the left cup") in lines and LOCATION_TOKEN in lines
    sections = [MethodSection(name=name, coordinates="grid") for name in ("pix2emb", "ppg")]
    boxes = {"cup": Box(77, 163, 358, 374), "mat": Box(2, 5, 28.4, 47.6)}
    cup, mat = (MaskObject(name, None, box) for name, box in boxes.items())
    texts = []
    for method in (method_from_settings(section.model_dump()) for section in sections):
        asked = region_text(method, ask_region_caption(), [cup.box], (640, 480))
        marked = mark_text(method, "A cup on a mat.", [(5, [cup]), (14, [mat])], (640, 480))
        texts.append([each if isinstance(each, str) else each.text for each in (asked, marked)])
    for left, right in zip(*texts, strict=True):
        assert any(re.fullmatch(f"{re.escape(left)} +{re.escape(right)}", line) for line in lines), (left, right)
    assert ask_grounded_caption() in lines


def links(page: str) -> list[str]:
    """The links of a page into the repository or into itself."""
    text = (HOME / page).read_text(encoding="utf-8")
    return sorted(set(re.findall(r"(?<!!)\[[^\]]*\]\((?!https?:)([^)]+)\)", text)))


PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *(f"docs/{path.name}" for path in (HOME / "docs").glob("*.md")),
]


@pytest.mark.parametrize(("page", "link"), [(page, link) for page in sorted(PAGES) for link in links(page)])
def test_every_link_into_the_project_has_its_target(page: str, link: str) -> None:
    file, _, heading = link.partition("#")
    path = (HOME / page).parent / file if file else HOME / page
    assert path.exists()
    if heading:
        lines = path.read_text(encoding="utf-8").splitlines()
        titles = [line.lstrip("# ").lower() for line in lines if line.startswith("#")]
        assert heading in [re.sub(r"[^\w -]", "", title).replace(" ", "-") for title in titles]


def test_ci_runs_what_the_readme_documents() -> None:
    script = (HOME / ".ci" / "run").read_text(encoding="utf-8")
    targets = {words[0] for words in readme_commands("make")}
    assert {"demo", "test"} <= targets
    assert re.search(r"^make test\b", script, re.MULTILINE) and re.search(r"^make demo$", script, re.MULTILINE)
    assert "tools/run_readme.py" in script
