"""LossParts: the means of the parts of a loss since they were logged last."""

from __future__ import annotations

from collections.abc import Callable

import torch

PARTS = ("box_l1", "box_giou", "box_iou", "cycle_box", "cycle_state", "mask_bce", "mask_dice")
"""The parts of the loss of locations, without their weights, and the IoU of the decoded boxes."""

TEXT_LOSS = "text_loss"
"""The loss of the text, which is the total loss without the parts of locations."""

_NAMES = (*PARTS, TEXT_LOSS)


class LossParts:
    """Sums of the parts and the numbers of their terms: of the current optimizer step, and of all since a log.

    The sums stay on their device. An optimizer step that is begun anew, because memory ran out, is discarded.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._step = self._zeros()
        self._total = self._zeros()
        self._begun = False

    def add(self, count: int, **sums: torch.Tensor) -> None:
        """Add the sums over `count` locations or masks of some PARTS."""
        for name, value in sums.items():
            self._step[PARTS.index(name)] += torch.stack([value.detach(), torch.full_like(value, count)]).to(
                self._device
            )

    def add_text(self, loss: torch.Tensor) -> None:
        """Add the loss of the text of one batch, as its share of its optimizer step's mean."""
        self._step[-1, 0] += loss.detach().to(self._device)
        self._begun = True

    def discard_step(self) -> None:
        """Forget the current optimizer step."""
        self._step = self._zeros()
        self._begun = False

    def end_step(self) -> None:
        """End the current optimizer step, if one was computed."""
        if self._begun:
            self._step[-1, 1] = 1
            self._total += self._step
        self.discard_step()

    def means(self, summed: Callable[[torch.Tensor], torch.Tensor], *, text_is_divided: bool) -> dict[str, float]:
        """Return the means since the last call, by their names; parts without terms are left out.

        Args:
            summed: Returns the sum of a tensor over all processes; all of them call this.
            text_is_divided: Whether the text's loss of a process is a share of that of all processes, rather than its
                own mean.
        """
        self.end_step()
        steps = self._total[-1, 1].clone()
        totals = summed(self._total)
        if text_is_divided:
            totals[-1, 1] = steps
        self._total = self._zeros()
        return {name: value / count for name, (value, count) in zip(_NAMES, totals.tolist(), strict=True) if count}

    def _zeros(self) -> torch.Tensor:
        return torch.zeros(len(_NAMES), 2, device=self._device)
