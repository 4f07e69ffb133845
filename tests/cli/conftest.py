from __future__ import annotations

from pathlib import Path

import pytest

from sam4mllm.pipeline.pipeline import Pipeline
from tests.cli.scripted import scripted_pipeline
from tests.data.tiny_datasets import annotation, image_record, ref, write_image, write_instances, write_refs


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A RefCOCO of one image with two objects and three phrases, in the split val."""
    folder = tmp_path / "data"
    write_instances(folder / "refcoco", [image_record(5)], [annotation(50, 5), annotation(51, 5, x=10)])
    write_refs(folder / "refcoco", [ref(1, 50, 5, "val", "the left one", "left"), ref(2, 51, 5, "val", "right")])
    write_image(folder / "images/mscoco/images/train2014" / image_record(5)["file_name"])
    return folder


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every subcommand that loads a pipeline gets the scripted one."""
    monkeypatch.setattr(Pipeline, "from_pretrained", scripted_pipeline)
