"""The tab "Image": phrases about an uploaded image, their answers, and the correction of an answer by clicks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from sam4mllm.app.answers import Column, Models
from sam4mllm.app.correction import Correction
from sam4mllm.app.events import DRAWING, refuse_addresses, shown_errors
from sam4mllm.app.limits import Limits, load_upload, parse_phrases
from sam4mllm.app.saving import CorrectedData
from sam4mllm.app.sessions import Session, Sessions
from sam4mllm.errors import DataError
from sam4mllm.geometry import SamPrompt

_HEADERS = ["object", "phrase", "score", "box x1, y1, x2, y2", "points", "text of the model"]


class ImageTab:
    """Builds the tab in the current block of gradio, and handles its events.

    Args:
        models: The pipelines that answer.
        data: The data set of corrected answers.
        sessions: The sessions of the users.
        limits: The limits of what is accepted.
    """

    def __init__(self, models: Models, data: CorrectedData, sessions: Sessions, limits: Limits) -> None:
        self._models = models
        self._data = data
        self._sessions = sessions
        self._limits = limits
        self._add_question()
        with gr.Row():
            self._columns = [self._add_column(first=number == 0) for number in range(len(models.pipelines) + 1)]
        self._add_correction()
        self._connect()

    def _add_question(self) -> None:
        with gr.Row():
            self._image = gr.Image(
                type="filepath",
                image_mode=None,
                sources=["upload", "clipboard"],
                label="Image: drop or paste it",
                height=280,
                elem_id="image",
            )
            refuse_addresses(self._image)
            with gr.Column():
                self._text = gr.Textbox(label="Phrases, one per line", lines=4, elem_id="phrases")
                self._boxes_alone = gr.Checkbox(label="Boxes alone, beside boxes and points", elem_id="boxes-alone")
                others = ", ".join(list(self._models.pipelines)[1:])
                self._all_runs = gr.Checkbox(label=f"Beside it: {others}", visible=bool(others), elem_id="all-runs")
                self._ask = gr.Button("Segment", variant="primary", elem_id="segment")

    @staticmethod
    def _add_column(*, first: bool) -> tuple[gr.Column, gr.Image, gr.HTML, gr.Dataframe]:
        with gr.Column(visible=first, min_width=320) as column:
            drawing = gr.Image(**DRAWING, label="Answer", elem_classes="answer")
            legend = gr.HTML(elem_classes="legend")
            table = gr.Dataframe(headers=_HEADERS, interactive=False, wrap=True, elem_classes="objects")
        return column, drawing, legend, table

    def _add_correction(self) -> None:
        with gr.Accordion("Correct an answer by points", open=True):
            with gr.Row():
                self._phrase = gr.Dropdown(label="Phrase", choices=[], elem_id="phrase")
                self._object = gr.Dropdown(label="Object", choices=[], elem_id="object")
                self._label = gr.Radio(
                    [("on the object", True), ("off the object", False)],
                    value=True,
                    label="A click is",
                    elem_id="label",
                )
            self._corrected = gr.Image(**DRAWING, label="Click to add a point", elem_id="corrected")
            self._legend = gr.HTML(elem_id="corrected-legend")
            with gr.Row():
                self._buttons = {
                    name: gr.Button(name, size="sm", elem_id=name.lower().replace(" ", "-"))
                    for name in ("Undo", "Add object", "Remove object", "Remove box", "Remove points")
                }
            with gr.Row():
                self._name = gr.Textbox(label="Name of the image in the data set (optional)", elem_id="name")
                self._save = gr.Button(f"Save to {self._data.file.name}", elem_id="save")
            self._saved = gr.Textbox(label="Saved", interactive=False, elem_id="saved")

    def _connect(self) -> None:
        """Connect the events. Their functions can only be called by the page."""
        corrected = [self._corrected, self._legend, self._object]
        columns = [component for column in self._columns for component in column]
        asked = [self._image, self._text, self._boxes_alone, self._all_runs]
        private: Any = {"api_visibility": "private"}
        self._ask.click(self._on_ask, asked, [*columns, self._phrase, *corrected, self._saved], **private)
        self._phrase.input(self._on_phrase, self._phrase, [*corrected, self._saved], **private)
        self._corrected.select(self._on_click, [self._object, self._label], corrected, **private)
        actions: dict[str, Callable[[Correction, int], object]] = {
            "Undo": lambda correction, index: correction.undo(),
            "Add object": lambda correction, index: correction.add_object(),
            "Remove object": lambda correction, index: correction.remove_object(index),
            "Remove box": lambda correction, index: correction.remove_box(index),
            "Remove points": lambda correction, index: correction.remove_points(index),
        }
        for name, action in actions.items():
            # gradio finds the parameter of the request by its annotation, which a partial would hide.
            self._buttons[name].click(self._on_button(action), self._object, corrected, **private)
        self._save.click(self._on_save, self._name, self._saved, **private)

    def _on_ask(self, file: str | None, text: str, boxes_alone: bool, all_runs: bool, request: gr.Request) -> list[Any]:
        with shown_errors():
            if file is None:
                raise DataError("there is no image; drop or paste one")
            image = load_upload(Path(file), self._limits)
            phrases = parse_phrases(text, self._limits)
            columns = self._models.answer(image, phrases, boxes_alone=boxes_alone, all_runs=all_runs)
            session = self._session(request)
            session.ask(Path(file), image, columns)
            updates = []
            for number in range(len(self._columns)):
                updates += _column_updates(columns[number] if number < len(columns) else None, session)
            choices = [(phrase, index) for index, phrase in enumerate(phrases)]
            self._correct(session, 0)
            return [*updates, gr.update(choices=choices, value=0), *_correction_updates(session, 0), ""]

    def _on_phrase(self, phrase: int, request: gr.Request) -> list[Any]:
        with shown_errors():
            session = self._session(request)
            self._correct(session, phrase)
            return [*_correction_updates(session, 0), ""]

    def _on_click(self, index: int | None, positive: bool, event: gr.SelectData, request: gr.Request) -> list[Any]:
        with shown_errors():
            session = self._session(request)
            correction = _correction_of(session)
            if index is None or not correction.objects:
                index = correction.add_object()
            column, row = event.index
            correction.click(index, int(column), int(row), bool(positive))
            return _correction_updates(session, index)

    def _on_button(self, action: Callable[[Correction, int], object]) -> Callable[..., list[Any]]:
        def handle(index: int | None, request: gr.Request) -> list[Any]:
            with shown_errors():
                session = self._session(request)
                correction = _correction_of(session)
                # An index that no object has gives the error of an answer without objects.
                added = action(correction, -1 if index is None else index)
                return _correction_updates(session, added if isinstance(added, int) else index or 0)

        return handle

    def _on_save(self, name: str, request: gr.Request) -> str:
        with shown_errors():
            session = self._session(request)
            correction = _correction_of(session)
            if session.file is None or not session.file.exists():
                raise DataError("the uploaded image was deleted in the meantime; upload it again")
            masks = correction.masks()
            copy, count = self._data.save(
                session.file, correction.size_wh, correction.phrase, masks, name.strip() or None
            )
            return f"{copy.name}, {correction.phrase}; objects: {len(masks)}; lines of the data set: {count}"

    def _session(self, request: gr.Request) -> Session:
        return self._sessions[str(request.session_hash)]

    def _correct(self, session: Session, phrase: int) -> None:
        """Begin to correct the first pipeline's answer to a phrase, by its index."""
        if session.image is None or not 0 <= phrase < len(session.columns[0].phrases):
            raise DataError("there is no answer to correct; press Segment first")
        column = session.columns[0]
        segment = partial(self._segment, session)
        session.correction = Correction(
            session.image, column.phrases[phrase], column.results[phrase], segment, self._limits.points
        )

    def _segment(self, session: Session, prompt: SamPrompt) -> Any:
        if session.embeddings is None:
            assert session.image is not None
            session.embeddings = self._models.embed(session.image)
        return self._models.segment(session.embeddings, prompt)


def _correction_of(session: Session) -> Correction:
    if session.correction is None:
        raise DataError("there is no answer to correct; press Segment first")
    return session.correction


def _column_updates(column: Column | None, session: Session) -> list[Any]:
    """Return the updates of column, drawing, legend and table; None hides the column."""
    if column is None or session.image is None:
        return [gr.update(visible=False), None, "", []]
    drawing = gr.update(value=column.draw(session.image), label=column.title)
    return [gr.update(visible=True), drawing, column.legend(), column.rows()]


def _correction_updates(session: Session, index: int) -> list[Any]:
    """Return the updates of the corrected drawing, its legend, and the choice of the object."""
    correction = _correction_of(session)
    choices = [(f"object {number + 1}", number) for number in range(len(correction.objects))]
    value = min(index, len(choices) - 1) if choices else None
    return [correction.draw(), correction.legend(), gr.update(choices=choices, value=value)]
