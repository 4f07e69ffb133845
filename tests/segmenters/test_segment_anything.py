import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor, sam_model_registry

from sam4mllm.errors import ModelError
from sam4mllm.geometry import Box, Point, SamPrompt
from sam4mllm.segmenters.architecture import SamArchitecture
from sam4mllm.segmenters.loading import load_segmenter
from sam4mllm.segmenters.segment_anything import SegmentAnything, save_checkpoint
from sam4mllm.testing import TINY_SAM, tiny_sam

IMAGE = np.random.default_rng(0).integers(0, 256, (75, 100, 3), dtype=np.uint8)


def predictor_arguments(prompt: SamPrompt) -> dict[str, Any]:
    """Return the prompt for SamPredictor, which adds 0.5 to coordinates of its square; ours contain it already."""
    half = 0.5 / (64 / 100)
    box = None if prompt.box is None else np.array(prompt.box) - half
    points = np.array([[point.x, point.y] for point in prompt.points]) - half if prompt.points else None
    labels = np.array([point.label for point in prompt.points]) if prompt.points else None
    return {"box": box, "point_coords": points, "point_labels": labels}


@pytest.mark.parametrize(
    "prompt",
    [
        SamPrompt(Box(10, 5, 60, 50)),
        SamPrompt(Box(10, 5, 60, 50), (Point(20.5, 20.5, 1), Point(50.5, 7.5, 0))),
        SamPrompt(None, (Point(20.5, 20.5, 1),)),
    ],
)
def test_masks_equal_those_of_the_sam_predictor(prompt: SamPrompt) -> None:
    predictor = SamPredictor(tiny_sam())
    predictor.set_image(IMAGE)
    logits, iou, low = predictor.predict(**predictor_arguments(prompt), multimask_output=True, return_logits=True)
    best = int(iou.argmax())

    segmenter = SegmentAnything(tiny_sam())
    decoded = segmenter.decode(segmenter.embed([IMAGE]), [(0, prompt)])

    assert decoded.low_res_logits.shape == (1, 32, 32)
    # The image has 48 of the 64 rows of the square; the row after them is a neighbor in the interpolation.
    logits_of_image = decoded.low_res_logits[0, :25].numpy()
    np.testing.assert_allclose(logits_of_image, low[best, :25], atol=1e-3, rtol=1e-3)
    assert not decoded.low_res_logits[0, 25:].any()
    np.testing.assert_allclose(decoded.iou[0].numpy(), iou[best], atol=1e-3, rtol=1e-3)
    mask = segmenter.masks(decoded)[0].numpy()
    assert mask.shape == (75, 100)
    assert (mask != (logits[best] > 0)).mean() < 0.002


def test_logits_do_not_depend_on_the_other_images_of_a_batch() -> None:
    segmenter = SegmentAnything(tiny_sam())
    images = [IMAGE, np.ascontiguousarray(IMAGE.transpose(1, 0, 2)), IMAGE[:, :75]]
    prompt = SamPrompt(Box(10, 5, 60, 50), (Point(20.5, 20.5, 1),))
    together = segmenter.decode(segmenter.embed(images), [(number, prompt) for number in range(3)])
    for number, image in enumerate(images):
        alone = segmenter.decode(segmenter.embed([image]), [(0, prompt)]).low_res_logits[0]
        torch.testing.assert_close(together.low_res_logits[number], alone, atol=1e-4, rtol=1e-4)


def test_different_prompts_give_different_logits() -> None:
    segmenter = SegmentAnything(tiny_sam())
    prompts = [SamPrompt(Box(10, 5, 60, 50)), SamPrompt(Box(70, 40, 99, 70))]
    decoded = segmenter.decode(segmenter.embed([IMAGE]), [(0, prompt) for prompt in prompts])
    assert (decoded.low_res_logits[0] - decoded.low_res_logits[1]).abs().max() > 0.01


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)])
def test_an_array_that_is_not_an_image_raises_an_error(image: Any) -> None:
    with pytest.raises(ValueError, match=r"an image is \(H, W, 3\) uint8"):
        SegmentAnything(tiny_sam()).embed([image])


def test_embedding_no_images_raises_an_error() -> None:
    with pytest.raises(ValueError, match="no images"):
        SegmentAnything(tiny_sam()).embed([])


def test_upsamplings_are_cached_up_to_a_limit() -> None:
    segmenter = SegmentAnything(tiny_sam())
    kept = segmenter.upsampling((10, 20))
    assert segmenter.upsampling((10, 20)) is kept
    for width in range(30, 95):
        segmenter.upsampling((width, 20))
    assert segmenter.upsampling((10, 20)) is not kept


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_the_architectures_of_metas_checkpoints_are_inferred_from_shapes(name: str) -> None:
    with torch.device("meta"):
        theirs = sam_model_registry[name]()
        inferred = SamArchitecture.infer(theirs.state_dict(), {})
        ours = inferred.build()
    assert inferred.num_heads == theirs.image_encoder.blocks[0].attn.num_heads
    assert [block.window_size for block in ours.image_encoder.blocks] == [
        block.window_size for block in theirs.image_encoder.blocks
    ]
    assert {name: tensor.shape for name, tensor in ours.state_dict().items()} == {
        name: tensor.shape for name, tensor in theirs.state_dict().items()
    }


def checkpoint(path: Path, content: Any) -> Path:
    torch.save(content, path / "sam.pth")
    return path / "sam.pth"


def test_a_plain_state_dict_and_one_with_its_architecture_load_alike(tmp_path: Path) -> None:
    plain = load_segmenter(checkpoint(tmp_path, tiny_sam().state_dict()), "cpu", "float32")
    # Shapes do not determine the decoder's heads; segment_anything's default is 8.
    save_checkpoint(tmp_path / "with.pth", tiny_sam(), TINY_SAM)
    complete = load_segmenter(tmp_path / "with.pth")
    assert complete.fingerprint == SegmentAnything(tiny_sam()).fingerprint
    assert plain.fingerprint != complete.fingerprint


def test_weights_stored_in_half_precision_compute_in_float32(tmp_path: Path) -> None:
    weights = {name: tensor.half() for name, tensor in tiny_sam().state_dict().items()}
    segmenter = load_segmenter(checkpoint(tmp_path, {"model": weights, "architecture": {"decoder_heads": 2}}))
    assert segmenter.dtype == torch.float32
    assert segmenter.embed([IMAGE]).features[0].dtype == torch.float32


def test_an_encoder_without_relative_positions_needs_its_number_of_heads(tmp_path: Path) -> None:
    architecture = replace(TINY_SAM, use_rel_pos=False, window_size=0, global_attn_indexes=())
    sam = tiny_sam(architecture=architecture)
    fields = {"num_heads": 2, "window_size": 0, "decoder_heads": 2}
    loaded = load_segmenter(checkpoint(tmp_path, {"model": sam.state_dict(), "architecture": fields}))
    assert loaded.fingerprint == SegmentAnything(sam).fingerprint
    with pytest.raises(ModelError, match="heads and windows cannot be inferred"):
        load_segmenter(checkpoint(tmp_path, sam.state_dict()))


def test_the_fingerprint_depends_on_weights_and_dtype() -> None:
    ours = SegmentAnything(tiny_sam()).fingerprint
    assert SegmentAnything(tiny_sam()).fingerprint == ours
    assert SegmentAnything(tiny_sam(seed=1)).fingerprint != ours
    assert SegmentAnything(tiny_sam(), dtype=torch.bfloat16).fingerprint != ours
    changed = tiny_sam()
    with torch.no_grad():
        changed.mask_decoder.iou_token.weight[0, 0] += 1e-6
    assert SegmentAnything(changed).fingerprint != ours


def test_bfloat16_masks_are_close_to_float32() -> None:
    prompt = SamPrompt(Box(10, 5, 60, 50), (Point(20.5, 20.5, 1),))
    decoded = []
    for dtype in (torch.float32, torch.bfloat16):
        segmenter = SegmentAnything(tiny_sam(), dtype=dtype)
        decoded.append(segmenter.decode(segmenter.embed([IMAGE]), [(0, prompt)]))
    assert decoded[1].low_res_logits.dtype == torch.float32
    torch.testing.assert_close(decoded[1].iou, decoded[0].iou, atol=0.3, rtol=0.2)


class Bomb:
    """An object that runs code when it is unpickled: it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_checkpoint_of_another_model_raises_an_error_of_one_line(tmp_path: Path) -> None:
    weights = tiny_sam().state_dict()
    short = {name: tensor for name, tensor in weights.items() if "norm4" not in name}
    cases: list[tuple[Any, str]] = [
        ({"a": 1}, "no state dict"),
        ([1, 2], "no state dict"),
        ({"fc.weight": torch.zeros(2)}, "holds no weights 'image_encoder.patch_embed.proj.weight'"),
        (short, r"missing weights \['mask_decoder.transformer.layers.0.norm4.bias'"),
        (weights | {"head": torch.zeros(1)}, r"unexpected weights \['head'\]"),
        (
            weights | {"mask_decoder.iou_token.weight": torch.zeros(1, 3)},
            r"mismatched weights \['mask_decoder.iou_token",
        ),
        ({"model": weights, "architecture": {"headz": 3}}, r"unknown names \['headz'\]"),
    ]
    for content, message in cases:
        with pytest.raises(ModelError, match=message) as caught:
            load_segmenter(checkpoint(tmp_path, content))
        assert "\n" not in str(caught.value)
        assert str(tmp_path) in str(caught.value)


def test_a_file_without_weights_raises_an_error_and_runs_no_code(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no segmenter checkpoint at"):
        load_segmenter(tmp_path / "none.pth")
    text = tmp_path / "text.pth"
    text.write_text("no weights")
    with pytest.raises(ModelError, match="is not a checkpoint of weights"):
        load_segmenter(text)
    bomb = tmp_path / "bomb.pth"
    bomb.write_bytes(pickle.dumps(Bomb(tmp_path / "ran"), protocol=2))
    with pytest.raises(ModelError, match="is not a checkpoint of weights"):
        load_segmenter(bomb)
    assert not (tmp_path / "ran").exists()


def test_an_unknown_dtype_raises_an_error(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "sam.pth", tiny_sam(), TINY_SAM)
    with pytest.raises(ModelError, match="unknown dtype 'int8'"):
        load_segmenter(tmp_path / "sam.pth", "cpu", "int8")
