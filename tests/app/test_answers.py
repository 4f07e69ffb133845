"""Answers of the page: columns, their tables and legends, and the sessions that keep them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sam4mllm.app.answers import Column, Models, legend_entry
from sam4mllm.app.sessions import Sessions
from sam4mllm.data.predictions import Query
from sam4mllm.methods.registry import method_from_settings
from sam4mllm.mllm.scripted_engine import ScriptedEngine
from sam4mllm.pipeline.pipeline import Pipeline
from sam4mllm.recipe.schema import MethodSection
from sam4mllm.segmenters.fake import BoxSegmenter
from tests.app.pages import grey, scripted_models


def test_each_phrase_has_the_rows_of_its_objects() -> None:
    (column,) = scripted_models().answer(grey(), ["left", "dragon", "riddle"])
    assert column.title == "mine" and column.seconds >= 0
    rows = column.rows()
    assert [row[:2] for row in rows] == [["1", "left"], ["no object", "dragon"], ["malformed", "riddle"]]
    left = rows[0]
    assert left[2:5] == ["1.00", "2, 1, 8, 5", "+(4, 2) +(6, 3) -(18, 9)"] and left[5].startswith("[100,100,399,499]")
    assert rows[1][5] == "No object found." and rows[2][5].startswith("who knows (")


def test_the_drawing_is_enlarged_by_an_integer_factor() -> None:
    (column,) = scripted_models().answer(grey(), ["left"])
    drawing = column.draw(grey())
    assert drawing.size == (26 * 20, 26 * 10)
    # A pixel of the mask is tinted, one of the background is not.
    assert drawing.getpixel((26 * 5 + 3, 26 * 4 + 20)) != (128, 128, 128) == drawing.getpixel((26 * 12, 26 * 8))


def test_large_images_are_drawn_smaller() -> None:
    column = Column("mine", (), (), 0.0)
    assert column.draw(grey(2600, 1300)).size == (1280, 640)


def test_the_legend_is_escaped_and_has_the_color_of_each_object() -> None:
    (column,) = scripted_models().answer(grey(), ["left"])
    column = replace(column, phrases=("<b>left",))
    assert "&lt;b&gt;left, score 1.00" in column.legend() and "rgb(230, 159, 0)" in column.legend()
    assert legend_entry("no object", "a & b", "0.90") == "no object: a &amp; b, score 0.90"
    assert legend_entry("11", "x", "") == legend_entry("1", "x", "").replace("1 x", "11 x")


def cut_models() -> Models:
    """One pipeline whose negative points cut the mask of the box."""
    engine = ScriptedEngine({"left": "[100,100,399,499] +(200,200) -(350,450)"})
    method = method_from_settings(MethodSection().model_dump())
    return Models({"mine": Pipeline(method, engine, BoxSegmenter(points_cut=True))})


def test_boxes_alone_are_beside_the_answers_with_points() -> None:
    column, boxes = cut_models().answer(grey(), ["left"], boxes_alone=True)
    assert boxes.title == "mine, boxes alone" and boxes.rows()[0][4] == ""
    assert int(boxes.results[0].masks.sum()) == 24 > int(column.results[0].masks.sum())


def test_other_runs_are_beside_the_first_when_asked_for() -> None:
    models = scripted_models("other")
    columns = models.answer(grey(), ["left"], boxes_alone=True, all_runs=True)
    assert [column.title for column in columns] == ["mine", "mine, boxes alone", "other"]
    assert [column.title for column in models.answer(grey(), ["left"])] == ["mine"]


def test_the_models_answer_batches_of_queries() -> None:
    models = scripted_models()
    (result,) = models.answer_queries([grey()], [(0, Query("1", Path("a.png"), "dragon"))])
    assert result.status == "no_object" and models.identity == models.pipeline.identity


def test_the_longest_unused_session_is_forgotten() -> None:
    sessions = Sessions(2)
    first = sessions["a"]
    first.ask(Path("a.png"), grey(), [])
    second = sessions["b"]
    assert sessions["a"] is first
    sessions["c"]
    assert len(sessions) == 2 and sessions["a"] is first and sessions["b"] is not second
