import re
from pathlib import Path

import pytest
import torch

from sam4mllm.doctor import segmenter_checks, segmenters
from sam4mllm.doctor.result import CheckError
from sam4mllm.doctor.segmenter_checks import SegmenterUnderTest
from sam4mllm.doctor.segmenters import check_segmenter, check_segmenters, checks_of
from sam4mllm.errors import ModelError
from sam4mllm.segmenters.base import DecodedMasks, Embeddings
from sam4mllm.segmenters.families import FAMILIES
from sam4mllm.segmenters.frame import InputFrame, SquareFrame
from sam4mllm.segmenters.transformers_sam import TransformersSam
from sam4mllm.testing import SEGMENT_ANYTHING, BoxSegmenter, save_tiny_segmenter

NAMES = [SEGMENT_ANYTHING, *(family.name for family in FAMILIES)]
DOCS = Path(__file__).parents[2] / "docs/segmenters.md"


def test_every_segmenter_passes_every_check() -> None:
    assert check_segmenters() == {name: {check: True for check in checks_of(name)} for name in NAMES}


@pytest.fixture(scope="module")
def sam2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_segmenter("sam2", tmp_path_factory.mktemp("sam2"))


def test_images_in_the_wrong_frame_fail(sam2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SquareFrame, "resized_wh", InputFrame.resized_wh)
    with pytest.raises(CheckError, match=r"the pixels of an image of .* differ from the library's"):
        segmenter_checks.pixels_match_library(SegmenterUnderTest("sam2", sam2))
    with pytest.raises(CheckError, match="logits differ by"):
        segmenter_checks.masks_match_library(SegmenterUnderTest("sam2", sam2))


def test_prompts_that_are_half_a_pixel_off_fail(sam2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = TransformersSam.decode_points

    def decode_points(self: TransformersSam, embeddings: Embeddings, *rest: torch.Tensor | None) -> object:
        index, boxes, points, labels = rest
        scale = SquareFrame(128).scale_xy(embeddings.sizes_wh)[index]
        moved = None if boxes is None else boxes + 0.5 / scale.repeat(1, 2)
        return right(self, embeddings, index, moved, points + 0.5 / scale[:, None], labels)

    monkeypatch.setattr(TransformersSam, "decode_points", decode_points)
    with pytest.raises(CheckError, match="logits differ by"):
        segmenter_checks.masks_match_library(SegmenterUnderTest("sam2", sam2))
    segmenter_checks.batch_equals_singles(SegmenterUnderTest("sam2", sam2))


def test_a_batch_in_another_order_fails(sam2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = TransformersSam.decode_points

    def decode_points(self: TransformersSam, embeddings: Embeddings, index: torch.Tensor, *rest: object) -> object:
        return right(self, embeddings, index.flip(0), *rest)

    monkeypatch.setattr(TransformersSam, "decode_points", decode_points)
    with pytest.raises(CheckError, match=r"differs by .* in the batch"):
        segmenter_checks.batch_equals_singles(SegmenterUnderTest("sam2", sam2))


def test_the_checks_run_on_the_given_device(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = []

    def refuse(checkpoint: Path, device: str = "cpu", dtype: str = "float32") -> None:
        devices.append(device)
        raise ModelError("no such device")

    monkeypatch.setattr(segmenter_checks, "load_segmenter", refuse)
    check_segmenters("cuda")
    assert set(devices) == {"cpu", "cuda"}
    assert devices.count("cuda") >= len(NAMES) * 5


def test_a_segmenter_that_cannot_be_built_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str, folder: Path) -> Path:
        raise ImportError(f"no {name} in this library\nand more")

    monkeypatch.setattr(segmenters, "save_tiny_segmenter", broken)
    assert check_segmenters() == {name: {"builds": f"ImportError: no {name} in this library"} for name in NAMES}


def test_the_docs_list_every_segmenter_and_check() -> None:
    rows = [
        [cell.strip(" `") for cell in line.split("|")[1:-1]] for line in DOCS.read_text().splitlines() if "|" in line
    ]
    header = next(row for row in rows if row[0] == "check")
    table = {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in rows[rows.index(header) + 2 :]}
    assert header[1:] == NAMES
    checks = {
        check: {name: "yes" if check in checks_of(name) else "-" for name in NAMES}
        for check in checks_of(SEGMENT_ANYTHING)
    }
    assert {name: row for name, row in table.items() if re.fullmatch(r"[a-z0-9_]+", name)} == checks


def test_a_segmenter_of_the_users_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_segmenter(BoxSegmenter()) == {"batch_equals_singles": True, "masks_have_image_size": True}

    class Cropping(BoxSegmenter):
        def masks(self, decoded: DecodedMasks) -> list[torch.Tensor]:
            return [mask[1:] for mask in super().masks(decoded)]

    results = check_segmenter(Cropping())
    assert results["batch_equals_singles"] is True
    assert "the mask of an image of (37, 33) is torch.bool (32, 37)" in str(results["masks_have_image_size"])
