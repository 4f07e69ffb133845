"""SamArchitecture: the hyperparameters of a segment_anything Sam, inferred from the shapes of its weights.

The shapes of Meta's `sam_vit_b/l/h` determine even the heads and windows of the image encoder, because its tables of
relative positions have a row per offset and a column per channel of a head. The heads of the mask decoder, the pixel
statistics, and the heads and windows of an encoder without relative positions cannot be inferred: they have
segment_anything's defaults, or the values of the checkpoint's "architecture" entry.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

import torch

from sam4mllm.errors import ModelError


@dataclass(frozen=True, slots=True)
class SamArchitecture:
    """Arguments of segment_anything's classes under their own names, with the defaults of its `build_sam.py`.

    Arguments without a prefix belong to the image encoder.
    """

    image_size: int
    patch_size: int
    embed_dim: int
    depth: int
    num_heads: int
    prompt_embed_dim: int
    mlp_ratio: float = 4.0
    use_rel_pos: bool = True
    qkv_bias: bool = True
    window_size: int = 14
    global_attn_indexes: tuple[int, ...] = ()
    mask_in_chans: int = 16
    decoder_depth: int = 2
    decoder_heads: int = 8
    decoder_mlp_dim: int = 2048
    attention_downsample_rate: int = 2
    num_multimask_outputs: int = 3
    iou_head_depth: int = 3
    iou_head_hidden_dim: int = 256
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)

    def build(self) -> Any:
        """Build a `segment_anything.modeling.Sam` with random weights, in evaluation mode."""
        from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

        grid = self.image_size // self.patch_size
        sam = Sam(
            image_encoder=ImageEncoderViT(
                img_size=self.image_size,
                patch_size=self.patch_size,
                embed_dim=self.embed_dim,
                depth=self.depth,
                num_heads=self.num_heads,
                mlp_ratio=self.mlp_ratio,
                out_chans=self.prompt_embed_dim,
                qkv_bias=self.qkv_bias,
                norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
                use_rel_pos=self.use_rel_pos,
                window_size=self.window_size,
                global_attn_indexes=self.global_attn_indexes,
            ),
            prompt_encoder=PromptEncoder(
                embed_dim=self.prompt_embed_dim,
                image_embedding_size=(grid, grid),
                input_image_size=(self.image_size, self.image_size),
                mask_in_chans=self.mask_in_chans,
            ),
            mask_decoder=MaskDecoder(
                transformer_dim=self.prompt_embed_dim,
                transformer=TwoWayTransformer(
                    depth=self.decoder_depth,
                    embedding_dim=self.prompt_embed_dim,
                    num_heads=self.decoder_heads,
                    mlp_dim=self.decoder_mlp_dim,
                    attention_downsample_rate=self.attention_downsample_rate,
                ),
                num_multimask_outputs=self.num_multimask_outputs,
                iou_head_depth=self.iou_head_depth,
                iou_head_hidden_dim=self.iou_head_hidden_dim,
            ),
            pixel_mean=list(self.pixel_mean),
            pixel_std=list(self.pixel_std),
        )
        return sam.eval()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for the "architecture" entry of a checkpoint."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def infer(cls, weights: Mapping[str, torch.Tensor], overrides: Mapping[str, Any]) -> SamArchitecture:
        """Infer the architecture of `weights`.

        Args:
            weights: The state dict of a Sam.
            overrides: Fields with known values, as in the "architecture" entry of a checkpoint.

        Raises:
            ModelError: The weights belong to another model; an override has an unknown name; the encoder has no
                relative positions and `num_heads` is not given.
        """
        names = [field.name for field in fields(cls)]
        unknown = sorted(set(overrides) - set(names))
        if unknown:
            raise ModelError(f"the checkpoint's architecture holds unknown names {unknown}; known are {names}")
        given = {name: tuple(value) if isinstance(value, list) else value for name, value in overrides.items()}
        try:
            return cls(**(_from_shapes(weights, given) | given))
        except KeyError as error:
            raise ModelError(
                f"the checkpoint holds no weights {error.args[0]!r}; a segment_anything Sam has them"
            ) from None
        except (ValueError, IndexError, ZeroDivisionError) as error:
            raise ModelError(
                f"the checkpoint's weights do not have the shapes of a segment_anything Sam: {error}"
            ) from None


def _from_shapes(weights: Mapping[str, torch.Tensor], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `SamArchitecture` that the shapes of the weights determine."""
    encoder, decoder = "image_encoder.", "mask_decoder."
    width, _, patch, _ = weights[f"{encoder}patch_embed.proj.weight"].shape
    grid = weights[f"{encoder}pos_embed"].shape[1]
    block = f"{encoder}blocks.0."
    layer = f"{decoder}transformer.layers.0."
    prompt_embed_dim = weights["prompt_encoder.no_mask_embed.weight"].shape[1]
    inferred: dict[str, Any] = {
        "image_size": grid * patch,
        "patch_size": patch,
        "embed_dim": width,
        "depth": _count(weights, rf"{encoder}blocks\.(\d+)\."),
        "mlp_ratio": weights[f"{block}mlp.lin1.weight"].shape[0] / width,
        "qkv_bias": f"{block}attn.qkv.bias" in weights,
        "use_rel_pos": f"{block}attn.rel_pos_h" in weights,
        "prompt_embed_dim": prompt_embed_dim,
        "mask_in_chans": weights["prompt_encoder.mask_downscaling.3.weight"].shape[0],
        "decoder_depth": _count(weights, rf"{decoder}transformer\.layers\.(\d+)\."),
        "decoder_mlp_dim": weights[f"{layer}mlp.lin1.weight"].shape[0],
        "attention_downsample_rate": prompt_embed_dim
        // weights[f"{layer}cross_attn_token_to_image.q_proj.bias"].shape[0],
        "num_multimask_outputs": weights[f"{decoder}mask_tokens.weight"].shape[0] - 1,
        "iou_head_depth": _count(weights, rf"{decoder}iou_prediction_head\.layers\.(\d+)\."),
        "iou_head_hidden_dim": weights[f"{decoder}iou_prediction_head.layers.0.weight"].shape[0],
    }
    if inferred["use_rel_pos"]:
        # A table of relative positions is (2 * window - 1, channels of a head); a global block's window is the grid.
        tables = [weights[f"{encoder}blocks.{i}.attn.rel_pos_h"].shape for i in range(inferred["depth"])]
        windows = [(offsets + 1) // 2 for offsets, _ in tables]
        inferred["num_heads"] = width // tables[0][1]
        inferred["global_attn_indexes"] = tuple(i for i, window in enumerate(windows) if window == grid)
        inferred["window_size"] = next((window for window in windows if window != grid), 0)
    elif "num_heads" not in given:
        raise ModelError(
            "the checkpoint's image encoder has no relative positions, so its heads and windows cannot be inferred; "
            "save it as {'model': weights, 'architecture': {'num_heads': ..., 'window_size': ..., ...}}"
        )
    return inferred


def _count(weights: Mapping[str, torch.Tensor], pattern: str) -> int:
    """Count the layers whose numbers `pattern` captures from the names of the weights: the highest number + 1.

    Raises:
        KeyError: No name matches.
    """
    numbers = [int(match[1]) for name in weights if (match := re.match(pattern, name))]
    if not numbers:
        raise KeyError(pattern)
    return max(numbers) + 1
