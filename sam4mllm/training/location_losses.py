"""LocationLosses: the losses of locations, added to the model's loss of the text inside its forward pass.

Of a batch's locations (`BatchLocations`), with states t from the output layer's input and true boxes b:

    box      2 x L1 + giou_weight x (1 - GIoU) between the decoded boxes and b, in shares of the image
    cycle    L1(b, decode(encode(b))), of regions in questions, too, and MSE(t, encode(decode(t)))
    mask     binary cross-entropy + dice of SAM's masks for the projected prompt tokens, on the coarse grid of SAM's
             decoder without its padding; the box beside the tokens is the decoded one, without gradients

L1 and MSE are means over coordinates and channels. Each loss is the mean over the locations (masks) of an optimizer
step, however the step is divided into batches, parts and processes.

Source: NExT-Chat, arXiv 2311.04498, section 3.3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import nn
from torchvision.ops import generalized_box_iou_loss

from sam4mllm.data.images import as_rgb
from sam4mllm.data.masks import decode
from sam4mllm.errors import ModelError
from sam4mllm.mllm.loading import Mllm
from sam4mllm.mllm.location_heads import LocationHeads, ordered
from sam4mllm.mllm.location_passes import CapturedStates, captured_states, region_inputs
from sam4mllm.recipe.schema import MethodSection
from sam4mllm.segmenters.base import Embeddings, Segmenter
from sam4mllm.segmenters.embedding_cache import EmbeddingCache
from sam4mllm.segmenters.mask_decoder import MaskTrainer
from sam4mllm.training.batch_locations import BatchLocations
from sam4mllm.training.loss_parts import LossParts
from sam4mllm.utils.weight_files import save_weights

LOSS_MODULES = "location_losses.safetensors"
"""The name of the file in a checkpoint with the weights that are trained by these losses alone."""

_MODULE = "location_losses"
_L1_WEIGHT = 2.0
_CACHED_IMAGES = 256
"""Training images whose embeddings by SAM are kept: 1 GiB for SAM's 64 x 64 x 256 float32."""


@dataclass(frozen=True, slots=True)
class LocationWeights:
    """The weights of the losses beside that of the text, which is 1, and what SAM is prompted with.

    `in_text` is True for boxes that are written as text: a box decoder of its own is then trained on the states of the
    tokens that open them, and there are no other losses.
    """

    box: float = 1.0
    giou: float = 0.8
    cycle: float = 1.0
    mask: float = 1.0
    prompt: Literal["both", "embedding", "box"] = "both"
    train_mask_decoder: bool = False
    in_text: bool = False

    @classmethod
    def of(cls, method: MethodSection) -> LocationWeights | None:
        """Return the weights of a recipe's method; None if it has no losses of locations."""
        if method.name == "ppg" and method.box_loss:
            return cls(method.box_loss, method.giou_weight, cycle=0, mask=0, prompt="box", in_text=True)
        if method.name != "pix2emb":
            return None
        return cls(
            method.box_weight,
            method.giou_weight,
            method.cycle_weight if method.cycle else 0,
            0 if method.prompt == "box" else method.mask_weight,
            method.prompt,
            method.train_mask_decoder,
        )


@dataclass(frozen=True, slots=True)
class _Masks:
    """The known masks of a batch: the location, image, covered cells and cells on the image of each."""

    locations: torch.Tensor
    embeddings: Embeddings
    index: torch.Tensor
    shares: torch.Tensor
    inside: torch.Tensor


@dataclass(frozen=True, slots=True)
class _Pass:
    """A forward pass: its locations, the factors of the sums over locations, boxes and masks, and the states."""

    batch: BatchLocations
    masks: _Masks | None
    scales: tuple[float, ...]
    factor: float
    captured: CapturedStates


class LocationLosses(nn.Module):
    """The losses of locations, as a part of the model that is trained, with the weights that only training has.

    Args:
        mllm: The model, prepared by `attach_lora`; with location heads, unless the weights are `in_text`.
        weights: The weights of the losses.
        segmenter: The segmenter whose mask decoder the loss of masks uses; None if there is none.
        seed: The seed of the initial values of a box decoder for boxes in text.

    Raises:
        ModelError: The model has no location heads, or the segmenter's mask decoder cannot be used (`MaskTrainer`).
    """

    def __init__(self, mllm: Mllm, weights: LocationWeights, segmenter: Segmenter | None, seed: int) -> None:
        super().__init__()
        if mllm.location_heads is None and not weights.in_text:
            raise ModelError("the model has no location heads; attach them by attach_lora(..., locations=...)")
        self.weights = weights
        self.masks: MaskTrainer | None = None
        self.box_decoder: nn.Module | None = None
        embeddings = mllm.model.get_input_embeddings().weight
        self.parts = LossParts(embeddings.device)
        if weights.mask:
            if segmenter is None:
                raise ValueError("the loss of masks needs a segmenter; got None")
            self._cache = EmbeddingCache(segmenter, _CACHED_IMAGES)
            self.masks = MaskTrainer(segmenter, weights.train_mask_decoder)
        if weights.in_text:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.box_decoder = LocationHeads(embeddings.shape[1], sam_width=1).box_decoder
        self.to(embeddings.device)
        # In a tuple: the model has this module, and not the other way round.
        self._mllm = (mllm,)
        self._pass: _Pass | None = None
        mllm.model.add_module(_MODULE, self)
        mllm.model.register_forward_hook(self._add)

    def counts(self, batches: Sequence[BatchLocations | None]) -> torch.Tensor:
        """Return the numbers (3,) float64 of answers' locations, of all boxes and of masks in batches."""
        answers = sum(len(batch.boxes) for batch in batches if batch is not None)
        regions = sum(len(batch.region_boxes) for batch in batches if batch is not None)
        masks = sum(batch.masks for batch in batches if batch is not None)
        return torch.tensor([answers, answers + regions, masks], dtype=torch.float64)

    @contextmanager
    def added(
        self, batch: BatchLocations | None, shape: tuple[int, int], counts: torch.Tensor | None, factor: float = 1.0
    ) -> Iterator[None]:
        """Add the losses of a batch to the model's loss in the forward pass inside the block.

        Args:
            batch: The locations; None for a batch without any, which uses all weights as well.
            shape: The rows and columns of the batch's `input_ids`.
            counts: The `counts` of all batches over which the losses are means; None for this batch alone.
            factor: A factor of the losses, by which a caller that divides the sum of text and locations is undone.
        """
        batch = BatchLocations.of([], []) if batch is None else batch
        counts = self.counts([batch]) if counts is None else counts
        scales = tuple(factor / max(count, 1) for count in counts.tolist())
        mllm = self._mllm[0]
        with region_inputs(mllm, batch.region_grid(*shape)), captured_states(mllm) as captured:
            self._pass = _Pass(batch, self._mask_targets(batch), scales, factor, captured)
            try:
                yield
            finally:
                self._pass = None

    def save(self, folder: Path) -> None:
        """Write the weights that these losses alone train to `folder`, for a checkpoint; nothing without any."""
        weights = self._own_weights()
        if weights:
            save_weights(weights, folder / LOSS_MODULES)

    def load(self, folder: Path) -> None:
        """Read the weights that `save` wrote."""
        if self._own_weights():
            self.load_state_dict(load_file(folder / LOSS_MODULES), strict=False)

    def _own_weights(self) -> dict[str, torch.Tensor]:
        trained = {name for name, weight in self.named_parameters() if weight.requires_grad}
        return {name: weight for name, weight in self.state_dict().items() if name in trained}

    def _mask_targets(self, batch: BatchLocations) -> _Masks | None:
        """Embed the images of the known masks and return the masks on the coarse grid; None without any."""
        if self.masks is None or not batch.masks:
            return None
        known = [number for number, rle in enumerate(batch.rles) if rle is not None]
        rows = batch.positions[known, 0].tolist()
        used = sorted(set(rows))
        embeddings = Embeddings.concat([self._cache.embed([as_rgb(batch.images[row])]) for row in used])
        device = self._cache.device
        shares, inside = self.masks.targets([decode(batch.rles[number]) for number in known], device)  # type: ignore[arg-type]
        index = torch.tensor([used.index(row) for row in rows], device=device)
        return _Masks(torch.tensor(known, device=device), embeddings, index, shares, inside)

    def _add(self, model: Any, args: Any, output: Any) -> Any:
        """Add the losses to the loss in a model's output."""
        if self._pass is None:
            return output
        now, hidden = self._pass, self._pass.captured.states
        assert hidden is not None
        heads = None if self.weights.in_text else self._mllm[0].location_heads
        decoder = self.box_decoder if heads is None else heads.decode_boxes
        assert decoder is not None
        with torch.autocast(hidden.device.type, enabled=False):
            rows, columns = now.batch.positions.to(hidden.device).unbind(dim=1)
            states = hidden[rows, columns].float()
            decoded = decoder(states)
            # All trained weights are used, also where a batch has no locations: processes wait for all gradients.
            loss = self._box_loss(decoded, now) + _zero(self)
            if heads is not None:
                loss = loss + self._cycle_loss(heads, states, decoded, now) + _zero(heads)
                loss = loss + self._mask_loss(heads, states, decoded, now)
        self.parts.add_text(output["loss"] / now.factor)
        output["loss"] = output["loss"] + loss.to(output["loss"].device)
        return output

    def _box_loss(self, decoded: torch.Tensor, now: _Pass) -> torch.Tensor:
        true = now.batch.boxes.to(decoded.device)
        l1 = (decoded - true).abs().mean(dim=1).sum()
        # A box whose corners are out of order has no extent, so that GIoU rewards no box that L1 would turn round.
        extended = torch.cat([decoded[:, :2], torch.maximum(decoded[:, :2], decoded[:, 2:])], dim=1)
        giou = generalized_box_iou_loss(extended, true, reduction="sum")
        self.parts.add(len(true), box_l1=l1, box_giou=giou, box_iou=_iou(ordered(decoded.detach()), true).sum())
        return self.weights.box * now.scales[0] * (_L1_WEIGHT * l1 + self.weights.giou * giou)

    def _cycle_loss(
        self, heads: LocationHeads, states: torch.Tensor, decoded: torch.Tensor, now: _Pass
    ) -> torch.Tensor | float:
        if not self.weights.cycle:
            return 0.0
        boxes = torch.cat([now.batch.boxes, now.batch.region_boxes]).to(states.device)
        of_boxes = (heads.decode_boxes(heads.encode_boxes(boxes)) - boxes).abs().mean(dim=1).sum()
        of_states = (heads.encode_boxes(decoded) - states).square().mean(dim=1).sum()
        self.parts.add(len(boxes), cycle_box=of_boxes)
        self.parts.add(len(states), cycle_state=of_states)
        return self.weights.cycle * (now.scales[1] * of_boxes + now.scales[0] * of_states)

    def _mask_loss(
        self, heads: LocationHeads, states: torch.Tensor, decoded: torch.Tensor, now: _Pass
    ) -> torch.Tensor | float:
        masks = now.masks
        if masks is None or self.masks is None:
            return 0.0
        chosen = masks.locations.to(states.device)
        boxes = None
        if self.weights.prompt == "both":
            sizes_wh = torch.tensor(masks.embeddings.sizes_wh, device=masks.index.device)[masks.index]
            boxes = ordered(decoded.detach()[chosen]).clamp(0, 1).to(masks.index.device) * sizes_wh.repeat(1, 2)
        tokens = heads.sam_tokens(states[chosen]).to(masks.index.device)
        logits = self.masks(masks.embeddings, masks.index, boxes, tokens)
        cross_entropy, dice = _mask_losses(logits, masks.shares, masks.inside)
        self.parts.add(len(chosen), mask_bce=cross_entropy, mask_dice=dice)
        return (self.weights.mask * now.scales[2] * (cross_entropy + dice)).to(states.device)


def _mask_losses(logits: torch.Tensor, shares: torch.Tensor, inside: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sums over masks of binary cross-entropy, as a mean over the cells on the image, and of dice's loss."""
    cells = inside.sum(dim=(1, 2)).clamp(min=1)
    each = nn.functional.binary_cross_entropy_with_logits(logits, shares, reduction="none")
    cross_entropy = (each * inside).sum(dim=(1, 2)) / cells
    predicted = logits.sigmoid() * inside
    overlap, total = (predicted * shares).sum(dim=(1, 2)), (predicted + shares).sum(dim=(1, 2))
    return cross_entropy.sum(), (1 - (2 * overlap + 1) / (total + 1)).sum()


def _iou(boxes: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Return the IoU (N,) of boxes (N, 4) with others (N, 4) of positive area, all with ordered corners."""
    low, high = torch.maximum(boxes[:, :2], others[:, :2]), torch.minimum(boxes[:, 2:], others[:, 2:])
    overlap = (high - low).clamp(min=0).prod(dim=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1) + (others[:, 2:] - others[:, :2]).prod(dim=1)
    return overlap / (areas - overlap).clamp(min=torch.finfo(torch.float32).tiny)


def _zero(module: nn.Module) -> torch.Tensor | float:
    """Return 0, computed from all trained weights of a module."""
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    return sum((weight.sum() * 0 for weight in weights), start=0.0)
