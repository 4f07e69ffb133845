"""docs/walkthrough.md: its commands run in order on tiny models, with the corrections that a user would make."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sam4mllm.app.saving import CorrectedData
from sam4mllm.cli.main import main, parse
from sam4mllm.data.brush_rle import to_brush
from sam4mllm.data.masks import encode
from sam4mllm.data.reading import read_dataset
from sam4mllm.methods.registry import method_from_settings
from sam4mllm.pipeline.pipeline import Pipeline
from sam4mllm.recipe.loading import load_recipe
from sam4mllm.recipe.schema import MethodSection
from sam4mllm.testing import BoxSegmenter, ScriptedEngine
from tests.test_readme import commands
from tests.tiny_home import tiny_settings

PAGE = (Path(__file__).parent.parent / "docs" / "walkthrough.md").read_text(encoding="utf-8")
COMMANDS = [words[1:] for words in commands(PAGE) if words[0] == "sam4mllm"]
CVAT = """<annotations><version>1.1</version><image id="0" name="{name}" width="{width}" height="{height}">
<box label="object" xtl="10" ytl="20" xbr="50" ybr="60"><attribute name="phrase">the box</attribute></box>
</image></annotations>"""


def scripted_pipeline(*_: object, **__: object) -> Pipeline:
    """A pipeline that finds a shape: tiny models have random answers, of which nothing can be exported."""
    answers = {"largest": "[100,100,399,499] +(200,200)(300,300) -(900,900)", "circles": "No object found."}
    return Pipeline(method_from_settings(MethodSection().model_dump()), ScriptedEngine(answers), BoxSegmenter())


def correct_by_clicks(arguments: list[str], image: Path) -> None:
    """Save an answer as the page does; the page itself is tested in tests/app_page."""
    options = parse(arguments)
    size_wh = Image.open(image).size
    mask = np.zeros(size_wh[::-1], dtype=bool)
    mask[10:60, 20:70] = True
    CorrectedData(options.save).save(image, size_wh, "the largest shape", [mask])


def correct_in_tools(image: Path) -> None:
    """Write what Label Studio and CVAT export."""
    task = next(
        task
        for task in json.loads(Path("for-label-studio/tasks.json").read_text())
        if task["data"]["image"].endswith(image.name)
    )
    width, height = Image.open(image).size
    mask = np.zeros((height, width), dtype=bool)
    mask[5:40, 5:40] = True
    region = {"id": "r", "type": "brushlabels", "original_width": width, "original_height": height}
    region["value"] = {"format": "rle", "rle": to_brush(encode(mask)), "brushlabels": ["the largest shape"]}
    task = {"id": 1, "data": task["data"], "annotations": [{"result": [region]}]}
    Path("label-studio-export.json").write_text(json.dumps([task]))
    Path("annotations.xml").write_text(CVAT.format(name=image.name, width=width, height=height))


def test_from_labeled_images_to_a_training_on_corrections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ((name, recipe),) = re.findall(r"`([\w.-]+)`:\n\n```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    Path(name).write_text(recipe, encoding="utf-8")
    smaller = tiny_settings(tmp_path)
    image = Path("photos/images/mscoco/images/train2014/COCO_train2014_000000000001.jpg")
    for subcommand, *arguments in COMMANDS[1:]:
        if subcommand == "app":
            correct_by_clicks([subcommand, *arguments], image)
            continue
        if subcommand == "convert" and "label-studio-export.json" in arguments:
            correct_in_tools(image)
        if subcommand == "shapes":
            arguments[arguments.index("--scenes") + 1] = "1"
        arguments += smaller if subcommand == "train" else []
        arguments += ["--device", "cpu"] if subcommand in ("train", "evaluate") else []
        with monkeypatch.context() as patched:
            if subcommand in ("segment", "predict"):
                patched.setattr(Pipeline, "from_pretrained", scripted_pipeline)
            assert main([subcommand, *arguments]) == 0, arguments

    corrected = read_dataset("jsonl", path=Path("corrected.jsonl"))
    assert [(each.phrase, len(each.objects)) for each in corrected] == [("the largest shape", 1), ("all circles", 0)]
    second = load_recipe(Path("runs/second/recipe.yaml")).data.train
    assert [str(each.path) for each in second] == ["train.jsonl", "corrected.jsonl", "corrections.jsonl"]
    assert all(Path(f"runs/{run}/evaluate/jsonl-held-out/results.json").is_file() for run in ("first", "second"))
    (boxed,) = read_dataset("jsonl", path=Path("corrected-cvat.jsonl"))
    assert boxed.phrase == "the box" and boxed.objects[0].box is not None
