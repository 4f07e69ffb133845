"""EmbeddingCache: a segmenter that embeds each image once, for stages that prompt the same images again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from sam4mllm.segmenters.base import DecodedMasks, Embeddings, Segmenter
from sam4mllm.segmenters.frame import Upsampling


class EmbeddingCache(Segmenter):
    """A segmenter that keeps the embeddings of the last `size` images that it embedded, on their device.

    Images are compared by their pixels, so two files with the same pixels are embedded once. Everything else is done
    by `segmenter`, whose fingerprint it has: embeddings and masks are those of `segmenter`.

    Raises:
        ValueError: `size` is below 1.
    """

    def __init__(self, segmenter: Segmenter, size: int) -> None:
        if size < 1:
            raise ValueError(f"a cache holds at least one image; got {size=}")
        self.segmenter = segmenter
        self.size = size
        self.device = segmenter.device
        self._embedded: dict[str, Embeddings] = {}

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the segmenter."""
        return self.segmenter.fingerprint

    def embed(self, images: Sequence[npt.NDArray[np.uint8]]) -> Embeddings:
        """Embed the images that the cache lacks in one device batch, and return the embeddings of all of them."""
        keys = [_digest(image) for image in images]
        # 1. Embed each missing image once, even if it is given twice.
        missing = {key: image for key, image in zip(keys, images, strict=True) if key not in self._embedded}
        found = {key: self._embedded[key] for key in keys if key not in missing}
        if missing or not images:
            embedded = self.segmenter.embed(list(missing.values()))
            found |= {key: embedded[index] for index, key in enumerate(missing)}
        # 2. Keep the last ones: the images of this call are the newest.
        for key, embeddings in found.items():
            self._embedded.pop(key, None)
            self._embedded[key] = embeddings
        for key in list(self._embedded)[: -self.size]:
            del self._embedded[key]
        return Embeddings.concat([found[key] for key in keys])

    def decode_points(
        self,
        embeddings: Embeddings,
        index: torch.Tensor,
        boxes_xyxy: torch.Tensor | None,
        points_xy: torch.Tensor,
        labels: torch.Tensor,
    ) -> DecodedMasks:
        """Decode by the segmenter; see `Segmenter.decode_points`."""
        return self.segmenter.decode_points(embeddings, index, boxes_xyxy, points_xy, labels)

    @property
    def not_a_point(self) -> torch.Tensor:
        return self.segmenter.not_a_point

    def decode_embedded(
        self, embeddings: Embeddings, index: torch.Tensor, boxes_xyxy: torch.Tensor | None, tokens: torch.Tensor
    ) -> DecodedMasks:
        """Decode by the segmenter; see `Segmenter.decode_embedded`."""
        return self.segmenter.decode_embedded(embeddings, index, boxes_xyxy, tokens)

    def upsampling(self, size_wh: tuple[int, int]) -> Upsampling:
        """Return the segmenter's interpolation; see `Segmenter.upsampling`."""
        return self.segmenter.upsampling(size_wh)


def _digest(image: npt.NDArray[np.uint8]) -> str:
    return hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest()
