"""Isolated phrases: several branches in one training sequence that share a prefix and do not see each other.

The prefix of a sequence is the longest common beginning of the tokens of its branches: the system's text, the image and
the beginning of the questions. A batch with such sequences has two more tensors (B, T) int64:

    branch_ids   0 in the prefix, 1, 2, ... in the branches, -1 on padding
    positions    the index of each token in the sequence that its branch is without the others

`isolate_branches` prepares a model for them. In each forward pass:

1. Every attention mask that the model makes for its language model, causal, with a sliding window or with images whose
   tokens see each other, is evaluated at `positions` in the place of the indices, and a token sees only the prefix and
   its own branch. This holds for every implementation of attention whose masks transformers makes from a function:
   sdpa, eager and flex_attention.
2. Positions are those that the model itself computes (also M-RoPE's, of which all three grow by one for each token
   after the image), moved back by the lengths of the branches in between.
3. Layers that are not attention (gated delta nets, short convolutions) have a state that no mask divides. They get each
   branch as a row of its own behind a copy of the prefix; their outputs go back into the shared sequence. All other
   layers, the vision tower included, compute the prefix once.

Loss and gradients are therefore those of separate sequences, up to rounding.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from sam4mllm.errors import ModelError

BRANCH_IDS, POSITIONS = "branch_ids", "positions"
"""The names of the tensors of a batch with several branches in a sequence."""

IMPLEMENTATIONS = ("sdpa", "eager", "flex_attention")
"""Implementations of attention, in transformers' names, that can separate branches."""

# The kinds of layers in a config's `layer_types` that a mask separates, and those with a state.
_MASKED = {"full_attention", "sliding_attention", "chunked_attention"}
_RECURRENT = {"linear_attention", "conv"}


@dataclass(frozen=True)
class BranchRows:
    """The rows of a batch in which each branch follows a copy of its prefix; R rows of the longest branch's length L.

    Attributes:
        sequences: The sequence of each row, (R, 1).
        columns: For each row and position the index of its token in the sequence, (R, L); 0 on padding.
        row: For each token of the batch its row, (B, T); a prefix is read from the row of its first branch.
        positions: For each token of the batch its column in that row, (B, T).
    """

    sequences: torch.Tensor
    columns: torch.Tensor
    row: torch.Tensor
    positions: torch.Tensor

    @classmethod
    def of(cls, branch_ids: torch.Tensor, positions: torch.Tensor) -> BranchRows:
        """Return the rows of a batch; both tensors are (B, T) int64."""
        branches = branch_ids.amax(dim=1).clamp(min=1)
        first = branches.cumsum(0) - branches
        row = first[:, None] + (branch_ids - 1).clamp(min=0)
        sequences = torch.arange(len(branches), device=row.device).repeat_interleave(branches)
        columns = torch.zeros(len(sequences), int(positions.max()) + 1, dtype=torch.int64, device=row.device)
        # The prefix goes to each row of its sequence, then each branch to its own.
        in_prefix = (branch_ids == 0)[sequences].nonzero(as_tuple=True)
        columns[in_prefix] = in_prefix[1]
        sequence, token = (branch_ids > 0).nonzero(as_tuple=True)
        columns[row[sequence, token], positions[sequence, token]] = token
        return cls(sequences[:, None], columns, row, positions)

    def divide(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return (R, L, D) from hidden states (B, T, D)."""
        return hidden[self.sequences, self.columns]

    def join(self, rows: torch.Tensor) -> torch.Tensor:
        """Return (B, T, D) from hidden states (R, L, D)."""
        return rows[self.row, self.positions]


def check_isolation(config: Any, attn_implementation: str | None) -> None:
    """Check that branches can be separated in a model, of which only the config is needed.

    Raises:
        ModelError: An attention without mask functions, or layers of a kind that is not known here.
    """
    if attn_implementation is not None and attn_implementation not in IMPLEMENTATIONS:
        raise ModelError(
            f"method.packing=isolated needs an attention mask for each phrase, which {attn_implementation!r} does not "
            f"take; set model.attn_implementation to {', '.join(IMPLEMENTATIONS)} or null, or method.packing=turns"
        )
    kinds = set(getattr(config.get_text_config(), "layer_types", None) or ())
    if unknown := sorted(kinds - _MASKED - _RECURRENT):
        raise ModelError(
            f"method.packing=isolated: the language model of {config.model_type!r} has layers of the kind "
            f"{unknown[0]!r}, which may mix phrases; set method.packing=turns"
        )


def isolate_branches(model: Any) -> None:
    """Prepare a model, with or without an adapter, for batches with `branch_ids`; other batches pass unchanged.

    Raises:
        ModelError: As `check_isolation`.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = base.get_decoder().config
    check_isolation(base.config, config._attn_implementation)
    forward_pass = _ForwardPass(base, config)
    model.register_forward_pre_hook(forward_pass.begin, with_kwargs=True)
    model.register_forward_hook(forward_pass.end, always_call=True)
    # Generation calls the base below the adapter, which hooks on the adapter's model do not notice.
    base.model.register_forward_pre_hook(forward_pass.forget_rows)
    for layer, kind in zip(base.get_decoder().layers, getattr(config, "layer_types", None) or (), strict=False):
        if kind in _RECURRENT:
            mixer = _mixer(layer)
            mixer.register_forward_pre_hook(forward_pass.divide, with_kwargs=True)
            mixer.register_forward_hook(forward_pass.join)


def _mixer(layer: Any) -> Any:
    """Return the module of a recurrent layer that mixes tokens, which alone takes a mask.

    Raises:
        ModelError: There is no such module, or there are several.
    """
    mixers = [
        module
        for module in layer.children()
        if {"hidden_states", "attention_mask"} <= inspect.signature(module.forward).parameters.keys()
    ]
    if len(mixers) != 1:
        raise ModelError(
            f"method.packing=isolated: {len(mixers)} modules of a {type(layer).__name__} mix tokens, and phrases can "
            "be separated in one; set method.packing=turns"
        )
    return mixers[0]


class _ForwardPass:
    """The hooks of one model, and the branches of the batch that it computes.

    The rows are kept after the forward pass, because gradient checkpointing computes layers again in the backward one.
    """

    def __init__(self, base: Any, config: Any) -> None:
        self._base = base
        self._config = config
        self._rows: BranchRows | None = None
        self._is_running = False
        self._masks_made = 0

    def begin(
        self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Take the branches out of a batch, set the position ids, and replace the function that makes masks."""
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

        if kwargs.get(BRANCH_IDS) is None:
            self._rows = None
            return args, kwargs
        kwargs = dict(kwargs)
        branch_ids, positions = kwargs.pop(BRANCH_IDS), kwargs.pop(POSITIONS)
        kwargs["position_ids"] = self._position_ids(kwargs, positions)
        self._rows = BranchRows.of(branch_ids, positions)
        self._is_running, self._masks_made = True, 0
        name = self._config._attn_implementation
        make_mask = ALL_MASK_ATTENTION_FUNCTIONS[name]
        ALL_MASK_ATTENTION_FUNCTIONS[name] = self._masks_of_branches(make_mask, branch_ids, positions)
        return args, kwargs

    def end(self, model: Any, args: Any, output: Any) -> None:
        """Restore the function that makes masks.

        Raises:
            ModelError: The model did not use it, so its branches saw each other.
        """
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

        if not self._is_running:
            return
        self._is_running = False
        del ALL_MASK_ATTENTION_FUNCTIONS[self._config._attn_implementation]
        if output is not None and not self._masks_made:
            raise ModelError(
                f"method.packing=isolated: {type(self._base).__name__} does not make its attention masks by "
                "transformers' functions, so phrases are not separated; set method.packing=turns"
            )

    def forget_rows(self, model: Any, args: Any) -> None:
        """Forget the branches of an earlier batch where the base is called for generation."""
        if not self._is_running:
            self._rows = None

    def divide(self, mixer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Give a recurrent layer its rows; padding is at the end of each, so they need no mask."""
        if self._rows is None:
            return None
        if args:
            args = (self._rows.divide(args[0]), *args[1:])
        else:
            kwargs = {**kwargs, "hidden_states": self._rows.divide(kwargs["hidden_states"])}
        return args, {**kwargs, "attention_mask": None}

    def join(self, mixer: Any, args: Any, output: Any) -> Any:
        """Return the outputs of a recurrent layer to their places in the shared sequences."""
        return output if self._rows is None else self._rows.join(output)

    def _position_ids(self, batch: dict[str, Any], positions: torch.Tensor) -> torch.Tensor:
        """Return position ids (B, T), or M-RoPE's (3, B, T), with each branch right behind its prefix."""
        inner = self._base.model
        if not hasattr(inner, "compute_3d_position_ids"):
            return positions
        names = inspect.signature(inner.compute_3d_position_ids).parameters
        in_sequence = inner.compute_3d_position_ids(**{name: batch.get(name) for name in names})
        if in_sequence is None:
            return positions
        # After the image all positions grow by one for each token.
        moved = torch.arange(positions.shape[1], device=positions.device) - positions
        return torch.as_tensor(in_sequence - moved)

    def _masks_of_branches(
        self, make_mask: Callable[..., Any], branch_ids: torch.Tensor, positions: torch.Tensor
    ) -> Callable[..., Any]:
        """Return a function like transformers' `make_mask` that separates the branches of the language model."""

        def make_branch_mask(**options: Any) -> Any:
            if options.get("config") is not self._config:
                return make_mask(**options)
            self._masks_made += 1
            of_indices = options["mask_function"]

            def of_branches(batch: Any, head: Any, query: Any, key: Any) -> Any:
                key_branch = branch_ids[batch, key]
                is_seen = (key_branch == 0) | (key_branch == branch_ids[batch, query])
                return is_seen & of_indices(batch, head, positions[batch, query], positions[batch, key])

            return make_mask(**{**options, "mask_function": of_branches, "allow_is_causal_skip": False})

        return make_branch_mask
