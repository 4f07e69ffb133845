"""Reader of POPE and RePOPE: yes/no questions about whether an object is in an image of COCO's val2014.

The files (POPE, arXiv 2305.10355: `coco_pope_{random,popular,adversarial}.json`; RePOPE, arXiv 2504.15707:
`coco_repope_*.json`) are JSON lines:

    {"question_id": number, "image": "COCO_val2014_000000310196.jpg", "text": question, "label": "yes" | "no"}

An older random file has 2910 lines in place of 3000; RePOPE has fewer, because ambiguous questions are left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from sam4mllm.data.problems import SKIP_ADVICE
from sam4mllm.data.readers.chat import Dialogue
from sam4mllm.data.readers.instances import image_path
from sam4mllm.data.records import Record, Text, file_exists, parse_record, raise_problems, read_lines, record_problem
from sam4mllm.data.registry import DatasetRow
from sam4mllm.errors import DataError


class _Question(Record):
    question_id: int
    image: Text
    text: Text
    label: Literal["yes", "no"]


def read(row: DatasetRow, *, path: Path, images: Path | None = None, limit: int | None = None) -> list[Dialogue]:
    """Read the questions with their labels as answers, in the file's order; ids are `pope/{file stem}/{question_id}`.

    Args:
        row: The data set's row of the table.
        path: The file.
        images: The folder of COCO's val2014; None for the file's folder.
        limit: The maximum number of questions, from the beginning.

    Raises:
        DataError: No such file, no question in it, or bad lines: a field that is missing or invalid, an image that
            does not exist, or a question_id that an earlier line has (all are counted, the first ten listed).
    """
    folder = path.parent if images is None else images
    dialogues: list[Dialogue] = []
    problems: list[DataError] = []
    first_lines: dict[int, int] = {}
    for number, value in read_lines(path, lambda line: parse_record(_Question, line), problems):
        try:
            first = first_lines.setdefault(value.question_id, number)
            if first != number:
                raise DataError(f"the question_id {value.question_id} is also in line {first}", "duplicate")
            image = image_path(folder, value.image, f"question {value.question_id}")
            if not file_exists(image):
                raise DataError(f"{image}: no such image; set images to the folder of COCO's val2014", "image")
        except DataError as error:
            problems.append(record_problem("line", number, error))
            continue
        dialogue_id = f"pope/{path.stem}/{value.question_id}"
        dialogues.append(Dialogue(dialogue_id, image, ((value.text, value.label),), f"{path}, line {number}"))
        if len(dialogues) == limit:
            break
    raise_problems(path, problems, advice=SKIP_ADVICE)
    if not dialogues and not problems:
        raise DataError(f'{path}: no question in it; a line is {{"question_id", "image", "text", "label": "yes"}}')
    return dialogues
