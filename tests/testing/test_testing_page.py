"""The examples of docs/testing.md run in their order, and every public name of sam4mllm.testing is on the page."""

import re
from pathlib import Path

import sam4mllm.testing

PAGE = (Path(__file__).parents[2] / "docs/testing.md").read_text(encoding="utf-8")


def test_the_examples_of_the_page_run() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 4
    variables: dict[str, object] = {}
    for block in blocks:
        exec(block, variables)


def test_the_page_names_every_helper() -> None:
    constants = {"SEGMENT_ANYTHING", "TINY_SAM", "tiny_segmenter_model"}
    assert all(name in PAGE for name in set(sam4mllm.testing.__all__) - constants)
