"""The tabs "Folder", for all images of a folder, and "Cases", for the evaluations of the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import gradio as gr
from PIL import Image

from sam4mllm.app.answers import Models
from sam4mllm.app.cases import MOST_LINES, Evaluations
from sam4mllm.app.events import DRAWING, shown_errors
from sam4mllm.app.folders import ImageFolders
from sam4mllm.app.limits import Limits, parse_phrases
from sam4mllm.data.predictions import Status

_ROWS = 200
"""Answers in the table; the filters find the others."""
_PRIVATE: Any = {"api_visibility": "private"}


def add_folder_tab(models: Models, folders: ImageFolders, work: Path, limits: Limits) -> None:
    """Add the tab for folders to the current block of gradio.

    Args:
        models: Answers the phrases.
        folders: The folders that may be chosen.
        work: A folder for the files of the jobs.
        limits: The limits of what is accepted.
    """

    def run(name: str | None, text: str, progress: gr.Progress = gr.Progress()) -> tuple[str, str]:  # noqa: B008
        with shown_errors():
            phrases = parse_phrases(text, limits)
            total = len(folders.images(name or "")) * len(phrases)
            done = 0

            def advance(count: int = 1, /) -> None:
                nonlocal done
                done += count
                progress((done, total), unit="phrases")

            answer = folders.answer(models, name or "", phrases, work, advance)
            return answer.text(), str(answer.coco)

    names = folders.names()
    folder = gr.Dropdown(label="Folder", choices=names, value=names[0] if names else None, elem_id="folder")
    text = gr.Textbox(label="Phrases, one per line", lines=4, elem_id="folder-phrases")
    start = gr.Button("Segment all images", variant="primary", elem_id="folder-start")
    counts = gr.Textbox(label="Answers", interactive=False, elem_id="folder-answers")
    file = gr.File(label="COCO", interactive=False, elem_id="folder-coco")
    start.click(run, [folder, text], [counts, file], **_PRIVATE)


def add_cases_tab(evaluations: Evaluations) -> None:
    """Add the tab for evaluations to the current block of gradio."""

    def choose(name: str | None) -> tuple[Any, Any]:
        if name is None:
            return [], []
        with shown_errors():
            drawings = []
            for case in evaluations.cases(name):
                with Image.open(case.file) as image:
                    drawings.append((image.convert("RGB"), case.caption))
            return drawings, table(name, "all", "")

    def table(name: str | None, status: str, text: str) -> list[list[Any]]:
        if name is None:
            return []
        with shown_errors():
            lines = evaluations.lines(name, status, text)[:_ROWS]
            return [[line.id, line.phrase, line.status, len(line.objects), line.score] for line in lines]

    def show(name: str | None, event: gr.SelectData) -> tuple[Any, str]:
        with shown_errors():
            return evaluations.draw(name or "", str(event.row_value[0]))

    def reload() -> Any:
        names = evaluations.names()
        return gr.update(choices=names, value=names[0] if names else None)

    evaluation = gr.Dropdown(label="Evaluation", choices=[], elem_id="evaluation")
    gallery = gr.Gallery(
        label="Worst, median and best cases",
        columns=2,
        format="png",
        buttons=["download", "fullscreen"],
        object_fit="contain",
        elem_id="drawings",
    )
    with gr.Row():
        status = gr.Dropdown(label="Status", choices=["all", *get_args(Status)], value="all", elem_id="status")
        text = gr.Textbox(label="Phrase or id contains", elem_id="contains")
    answers = gr.Dataframe(
        headers=["id", "phrase", "status", "objects", "score"],
        interactive=False,
        label=f"Answers: the first {_ROWS} of those that fit, among the first {MOST_LINES}; click on one",
        elem_id="answers",
    )
    with gr.Row():
        drawing = gr.Image(**DRAWING, label="Answer", elem_id="case")
        generated = gr.Textbox(label="Text of the model", interactive=False, lines=3, elem_id="case-text")
    evaluation.change(choose, evaluation, [gallery, answers], **_PRIVATE)
    for each in (status, text):
        each.change(table, [evaluation, status, text], answers, **_PRIVATE)
    answers.select(show, evaluation, [drawing, generated], **_PRIVATE)
    # The evaluations are listed again whenever the page is loaded.
    blocks = gr.context.Context.root_block
    assert blocks is not None
    blocks.load(reload, None, evaluation, **_PRIVATE)
