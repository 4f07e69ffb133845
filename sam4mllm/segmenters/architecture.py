"""SamArchitecture: the sizes of a segment_anything Sam, read from the shapes of its weights.

Facebook's `sam_vit_b/l/h` say everything by their shapes, down to the heads and windows of the image encoder, because
relative positions have a row per step and a column per channel of a head. What shapes cannot say (the heads of the mask
decoder; heads and windows of an encoder without relative positions; the pixel statistics) has segment_anything's own
defaults and may stand beside the weights. This module reads no file.
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
    """Arguments of segment_anything's classes under their own names; those without a prefix are the image encoder's.

    Defaults are those of its `build_sam.py`.
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
        """A `segment_anything.modeling.Sam` of these sizes with random weights, in evaluation mode."""
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
        """Plain values, as they may stand beside the weights in a checkpoint."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def infer(cls, weights: Mapping[str, torch.Tensor], beside: Mapping[str, Any]) -> SamArchitecture:
        """The architecture of `weights`; what stands `beside` them holds where it is given.

        Raises:
            ModelError: weights of another kind of model; an unknown name beside them; an encoder without relative
                positions and no `num_heads` beside it.
        """
        names = [field.name for field in fields(cls)]
        unknown = sorted(set(beside) - set(names))
        if unknown:
            raise ModelError(f"the checkpoint's architecture holds unknown names {unknown}; known are {names}")
        given = {name: tuple(value) if isinstance(value, list) else value for name, value in beside.items()}
        try:
            return cls(**(_from_shapes(weights, given) | given))
        except KeyError as error:
            raise ModelError(
                f"the checkpoint holds no weights {error.args[0]!r}; a segment_anything Sam has them"
            ) from None
        except (ValueError, IndexError, ZeroDivisionError) as error:
            raise ModelError(
                f"the checkpoint's weights have shapes that no segment_anything Sam has: {error}"
            ) from None


def _from_shapes(weights: Mapping[str, torch.Tensor], given: Mapping[str, Any]) -> dict[str, Any]:
    """What the shapes say, by the names of `SamArchitecture`."""
    encoder, decoder = "image_encoder.", "mask_decoder."
    width, _, patch, _ = weights[f"{encoder}patch_embed.proj.weight"].shape
    grid = weights[f"{encoder}pos_embed"].shape[1]
    block = f"{encoder}blocks.0."
    layer = f"{decoder}transformer.layers.0."
    prompt_embed_dim = weights["prompt_encoder.no_mask_embed.weight"].shape[1]
    found: dict[str, Any] = {
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
    if found["use_rel_pos"]:
        lengths = [weights[f"{encoder}blocks.{i}.attn.rel_pos_h"].shape for i in range(found["depth"])]
        windows = [(steps + 1) // 2 for steps, _ in lengths]
        found["num_heads"] = width // lengths[0][1]
        found["global_attn_indexes"] = tuple(i for i, window in enumerate(windows) if window == grid)
        found["window_size"] = next((window for window in windows if window != grid), 0)
    elif "num_heads" not in given:
        raise ModelError(
            "the checkpoint's image encoder has no relative positions, so shapes do not tell its heads and windows; "
            "save it as {'model': weights, 'architecture': {'num_heads': ..., 'window_size': ..., ...}}"
        )
    return found


def _count(weights: Mapping[str, torch.Tensor], pattern: str) -> int:
    """How many numbers the group of `pattern` takes among the names: highest + 1.

    Raises:
        KeyError: no name matches.
    """
    numbers = [int(match[1]) for name in weights if (match := re.match(pattern, name))]
    if not numbers:
        raise KeyError(pattern)
    return max(numbers) + 1
