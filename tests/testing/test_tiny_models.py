"""Tiny models are saved for every family, and the public names are imported on first use."""

import subprocess
import sys
from pathlib import Path

import pytest

import sam4mllm.testing
from sam4mllm.mllm.families import FAMILIES
from sam4mllm.segmenters.families import FAMILIES as SEGMENTERS
from sam4mllm.segmenters.loading import load_segmenter
from sam4mllm.testing import SEGMENT_ANYTHING, TINY_MLLMS, save_tiny_mllm, save_tiny_sam, save_tiny_segmenter


def test_every_family_has_a_tiny_model() -> None:
    assert TINY_MLLMS.keys() == FAMILIES.keys()


def test_the_seed_decides_the_weights(tmp_path: Path) -> None:
    folders = [save_tiny_mllm("qwen2_vl", tmp_path / str(index), seed=seed) for index, seed in enumerate((1, 1, 2))]
    first, same, other = ((folder / "model.safetensors").read_bytes() for folder in folders)
    assert first == same != other


@pytest.mark.parametrize("name", [SEGMENT_ANYTHING, *(family.name for family in SEGMENTERS)])
def test_a_tiny_segmenter_loads_as_a_checkpoint(name: str, tmp_path: Path) -> None:
    checkpoint = save_tiny_segmenter(name, tmp_path / "one")
    assert load_segmenter(checkpoint).fingerprint == load_segmenter(checkpoint).fingerprint


def test_a_tiny_sam_is_saved_as_a_file(tmp_path: Path) -> None:
    assert save_tiny_sam(tmp_path / "sam.pth") == tmp_path / "sam.pth"
    in_folder = save_tiny_segmenter(SEGMENT_ANYTHING, tmp_path)
    assert in_folder == tmp_path / "sam.pth"


def test_public_names_are_imported_on_first_use() -> None:
    assert all(hasattr(sam4mllm.testing, name) for name in sam4mllm.testing.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = sam4mllm.testing.nothing
    script = "import sys, sam4mllm.testing; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
