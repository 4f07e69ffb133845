"""MaskTrainer: SAM's mask decoder with gradients, for the loss of masks; and the files of trained mask decoders.

`SharedDecoder` computes masks for inference and has no gradients. Here the modules of segment_anything compute the same
masks. A trained mask decoder is a copy; it is saved beside the adapter, and `with_mask_decoder` puts it in the place of
the segmenter's own at inference, whose fingerprint therefore depends on it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from sam4mllm.errors import ModelError
from sam4mllm.segmenters.base import Embeddings, Segmenter
from sam4mllm.segmenters.embedding_cache import EmbeddingCache
from sam4mllm.segmenters.segment_anything import SegmentAnything
from sam4mllm.utils.hub import MASK_DECODER
from sam4mllm.utils.weight_files import save_weights


class MaskTrainer(nn.Module):
    """A copy of a segmenter's mask decoder, in float32, whose masks are differentiable by prompt tokens and weights.

    Attributes:
        decoder: The copy. Its weights require gradients only if it `is_trained`.
        side: The rows and columns of its logits.

    Args:
        segmenter: A SegmentAnything, or an EmbeddingCache of one.
        trained: Whether the weights are trained, too.

    Raises:
        ModelError: Another segmenter, whose mask decoder has no gradients here.
    """

    def __init__(self, segmenter: Segmenter, trained: bool = False) -> None:
        super().__init__()
        plain = require_segment_anything(segmenter)
        self.decoder = copy.deepcopy(plain.sam.mask_decoder).float().requires_grad_(trained)
        self.is_trained = trained
        self.side = 4 * int(plain.sam.prompt_encoder.image_embedding_size[0])
        # In a tuple the segmenter's modules are no modules of this one, so that they are neither moved nor saved.
        self._frozen = (plain,)

    def forward(
        self, embeddings: Embeddings, index: torch.Tensor, boxes_xyxy: torch.Tensor | None, tokens: torch.Tensor
    ) -> torch.Tensor:
        """Decode the mask with the highest predicted IoU of each of N prompts.

        Args:
            embeddings: The images, from the segmenter.
            index: (N,) int64, the image of each prompt.
            boxes_xyxy: (N, 4) in pixels of the prompt's image, through which no gradients pass; None for tokens alone.
            tokens: (N, K, C) sparse prompt tokens, after those of the box.

        Returns:
            Logits (N, side, side) float32; those on the padding of the input mean nothing.
        """
        encoder = self._frozen[0].sam.prompt_encoder
        sparse = tokens.float()
        if boxes_xyxy is not None:
            with torch.no_grad():
                of_boxes = self._frozen[0].box_tokens(embeddings, index, boxes_xyxy.float())
            sparse = torch.cat([of_boxes, sparse], dim=1)
        position, no_mask = encoder.get_dense_pe(), encoder.no_mask_embed.weight.detach().reshape(1, -1, 1, 1)
        logits = tokens.new_zeros(len(index), self.side, self.side, dtype=torch.float32)
        for image in torch.unique(index).tolist():
            prompts = (index == image).nonzero()[:, 0]
            # The embeddings were computed in inference mode; a copy may be a part of a graph of gradients.
            features = embeddings.features[0][image : image + 1].clone().float()
            masks, iou = self.decoder(
                image_embeddings=features,
                image_pe=position,
                sparse_prompt_embeddings=sparse[prompts],
                dense_prompt_embeddings=no_mask.expand(len(prompts), -1, *features.shape[-2:]),
                multimask_output=True,
            )
            best = masks[torch.arange(len(prompts), device=masks.device), iou.argmax(dim=1)]
            logits = logits.index_copy(0, prompts, best)
        return logits

    def targets(
        self, masks: Sequence[npt.NDArray[np.bool_]], device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the covered share of each cell of the logits, and which cells are on the image.

        Args:
            masks: N masks (H, W) bool, at the sizes of their images.
            device: The device of the results.

        Returns:
            Shares (N, side, side) float32 from 0 to 1, and (N, side, side) bool, False on the padding.
        """
        shares = torch.zeros(len(masks), self.side, self.side, device=device)
        inside = torch.zeros(len(masks), self.side, self.side, dtype=torch.bool, device=device)
        for number, mask in enumerate(masks):
            rows, columns = self._frozen[0].frame.coverage((mask.shape[1], mask.shape[0]), self.side)
            shares[number] = (rows @ torch.from_numpy(np.ascontiguousarray(mask)).float() @ columns.T).to(device)
            inside[number] = ((rows.sum(dim=1) > 0)[:, None] & (columns.sum(dim=1) > 0)).to(device)
        return shares, inside


def require_segment_anything(segmenter: Segmenter) -> SegmentAnything:
    """Return the segmenter, without its cache, if its mask decoder has gradients here.

    Raises:
        ModelError: It is not one of segment_anything.
    """
    plain = segmenter.segmenter if isinstance(segmenter, EmbeddingCache) else segmenter
    if not isinstance(plain, SegmentAnything):
        raise ModelError(
            f"the loss of masks needs the mask decoder of a segment_anything checkpoint; the segmenter is a "
            f"{plain.name}: give a .pth file, or set method.prompt: box or method.mask_weight: 0"
        )
    return plain


def with_mask_decoder(segmenter: Segmenter, weights: Path | Mapping[str, torch.Tensor]) -> Segmenter:
    """Return a segmenter like `segmenter`, whose image encoder it shares, with the weights of a trained mask decoder.

    `weights` are a file (`MASK_DECODER`) or a state dict of the mask decoder.

    Raises:
        ModelError: The file cannot be read, its weights are not those of the mask decoder, or the segmenter is not one
            of segment_anything.
    """
    if isinstance(segmenter, EmbeddingCache):
        return EmbeddingCache(with_mask_decoder(segmenter.segmenter, weights), segmenter.size)
    source = weights if isinstance(weights, Path) else "the trained mask decoder"
    if not isinstance(segmenter, SegmentAnything):
        raise ModelError(
            f"{source}: was trained for a segment_anything checkpoint, but the segmenter is a {segmenter.name}; give "
            "the checkpoint that it was trained with"
        )
    decoder = copy.deepcopy(segmenter.sam.mask_decoder).float()
    try:
        decoder.load_state_dict(load_file(weights) if isinstance(weights, Path) else dict(weights))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ModelError(
            f"{source}: does not load as the mask decoder of this segmenter ({' '.join(str(error).split())[:200]}); "
            "give the checkpoint that it was trained with, or copy the file again"
        ) from error
    sam: Any = copy.copy(segmenter.sam)
    sam._modules = {**segmenter.sam._modules, "mask_decoder": decoder}
    return SegmentAnything(sam, segmenter.device, segmenter.dtype)


def as_trained(segmenter: Segmenter, model: nn.Module) -> Segmenter:
    """Return the segmenter with the mask decoder that is trained as a part of `model`; itself if there is none."""
    decoder = _trained_decoder(model)
    return segmenter if decoder is None else with_mask_decoder(segmenter, decoder.state_dict())


def save_mask_decoder(model: nn.Module, folder: Path) -> None:
    """Write the mask decoder that is trained as a part of `model` to `folder`; nothing if there is none."""
    decoder = _trained_decoder(model)
    if decoder is not None:
        save_weights(decoder.state_dict(), folder / MASK_DECODER)


def _trained_decoder(model: nn.Module) -> nn.Module | None:
    trained = [module for module in model.modules() if isinstance(module, MaskTrainer) and module.is_trained]
    return trained[0].decoder if trained else None
