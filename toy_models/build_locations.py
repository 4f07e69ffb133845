"""Pre-train the embedded MLLM on location tokens: a LoRA adapter, the token's row and the location heads, for pix2emb.

    python toy_models/build_locations.py --work runs/build-locations --seconds 2500 --threads 1

The base's weights do not change; the result is an adapter for them (`sam4mllm/models/mllm_locations`). Besides the
next-token loss, a location token's state has losses of its box (L1, GIoU), of the cycles between box and state, and of
its prompt token for SAM: the squared error to the embedding of a point inside the shape and, from `--masks-from` on,
BCE and dice of the mask through the frozen decoder. In training only, an auxiliary linear head reads the sine/cosine
codes of that point and of the box from the state. Heads are supervised to attend as in `build_mllm.py`. Seeded and
resumable like the other scripts.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from build_mllm import text_loss
from build_segmenter import decode, load_scene, mask_losses
from building import Checkpoint, Log, begin, build_options, learning_rate
from mllm_attention import SupervisedAttention
from mllm_locations import HELD_OUT_SEED, SCENE_SEED, LocationBatch, LocationPacker, make_batch
from mllm_model import WIDTH, place_code
from mllm_rows import ANSWER_LAYER
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.ops import box_iou, generalized_box_iou_loss
from transformers import AttentionInterface

from sam4mllm.mllm.loading import EMBEDDED, Mllm, load_mllm
from sam4mllm.mllm.location_heads import ordered
from sam4mllm.mllm.location_weights import add_rows, add_token
from sam4mllm.mllm.locations import LocationSettings
from sam4mllm.mllm.lora import attach_lora
from sam4mllm.segmenters.loading import load_segmenter
from sam4mllm.utils.hub import ADAPTER_WEIGHTS

RANK = 32
_CODE_VALUES = 6
# Locations in a step whose masks are decoded.
_MASKS = 24
_WEIGHTS = {"point": 4.0, "code": 3.0, "attention": 0.5}


class Pretraining:
    """The model with its adapter and heads, and the loss of a batch."""

    def __init__(self) -> None:
        self.sam = load_segmenter(EMBEDDED, "cpu", "float32").sam  # type: ignore[attr-defined]
        not_a_point = self.sam.prompt_encoder.not_a_point_embed.weight[0]
        mllm = load_mllm(EMBEDDED, dtype="float32")
        tokenizer = mllm.processor.tokenizer
        token = add_token(tokenizer)
        add_rows(mllm.model, token)
        # The location token begins as the bracket of a box, at which the base knows where the object is.
        rows = mllm.model.get_input_embeddings().weight
        with torch.no_grad():
            rows[token] = rows[tokenizer.convert_tokens_to_ids("[")]
        settings = LocationSettings(1, len(not_a_point), not_a_point)
        self.mllm = attach_lora(mllm, {"r": RANK, "lora_alpha": RANK}, 0, locations=settings)
        self.packer = LocationPacker(tokenizer)
        self.codes = nn.Linear(WIDTH, _CODE_VALUES * len(place_code(torch.zeros(1))[0]))
        self._attention = SupervisedAttention()
        AttentionInterface.register("supervised", self._attention)
        self._numbers = torch.tensor([tokenizer.encode(f"{n:03d}")[0] for n in range(1000)])

    @property
    def heads(self) -> Any:
        return self.mllm.location_heads

    def trained(self) -> list[nn.Parameter]:
        """Return the parameters of the adapter (LoRA, the token's row, the heads) that are trained."""
        return [p for p in self.mllm.model.parameters() if p.requires_grad]

    def states(self, located: LocationBatch, attention: bool) -> tuple[Tensor, Tensor]:
        """Return the last hidden states of all tokens (B, T, d), and of the location tokens of answers (N, d)."""
        batch, model = located.batch, self.mllm.model.get_base_model()
        model.set_attn_implementation({"text_config": "supervised"})
        self._attention.layout = batch.layout
        self._attention.targets = batch.attention_targets if attention else {}
        is_region = located.at[:, 2] == 1
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                maps = model.model.vision_tower(batch.images).last_hidden_state
                features = model.model.multi_modal_projector(maps.flatten(2).permute(0, 2, 1))
            embeds = model.get_input_embeddings()(batch.ids)
            is_image = batch.ids == model.config.image_token_id
            embeds = embeds.masked_scatter(is_image[..., None], features.to(embeds.dtype))
            regions = self.heads.encode_boxes(located.boxes[is_region]).to(embeds.dtype)
            embeds = embeds.index_put(tuple(located.at[is_region, :2].T), regions)
            hidden = model.model.language_model(
                inputs_embeds=embeds,
                attention_mask=torch.zeros(1, 1, 1, 1),
                position_ids=batch.positions,
                use_cache=False,
            ).last_hidden_state
        image, position = located.at[~is_region, :2].T
        return hidden, hidden[image, position].float()

    def loss(self, located: LocationBatch, mask_weight: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the total loss of a batch and its parts; no masks are decoded for a `mask_weight` of 0."""
        # 1. The next token.
        batch, heads = located.batch, self.heads
        hidden, states = self.states(located, attention=True)
        on = batch.labels >= 0
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.mllm.model.get_base_model().lm_head(hidden[:, batch.layout[0] :][on]).float()
        text, plain = text_loss(logits, batch.labels[on], batch.weights[on], self._numbers, 1.0)
        # 2. Boxes, and the cycles.
        answered = located.at[:, 2] == 0
        truth, boxes = located.boxes[answered], heads.decode_boxes(states)
        l1 = (boxes - truth).abs().sum(-1).mean()
        giou = generalized_box_iou_loss(ordered(boxes), truth, reduction="mean", eps=1e-6)
        cycle_box = (heads.decode_boxes(heads.encode_boxes(located.boxes)) - located.boxes).abs().sum(-1).mean()
        cycle_state = F.mse_loss(heads.encode_boxes(boxes), states)
        # 3. The prompt token, the codes and the supervised attention.
        tokens = heads.sam_tokens(states)
        point = F.mse_loss(tokens[:, 0], self.point_tokens(located.points_xy[answered]))
        places = torch.cat([located.points[answered], truth], -1)
        code = F.mse_loss(self.codes(states), place_code(places).flatten(1))
        attention = torch.stack(list(self._attention.losses.values())).sum()
        parts = {"text": plain, "l1": l1, "giou": giou, "cycle_box": cycle_box, "cycle_state": cycle_state}
        parts |= {"point": point, "code": code, "attention": attention}
        parts["point_where"] = self._attention.point_losses[ANSWER_LAYER]
        total = text + 2 * l1 + 0.8 * giou + cycle_box + 0.1 * cycle_state
        total = total + sum(_WEIGHTS[name] * parts[name] for name in ("point", "code", "attention"))
        if mask_weight:
            parts["mask"] = self._mask_loss(located, ordered(boxes.detach()).clamp(0, 1), tokens)
            total = total + mask_weight * parts["mask"]
        return total, parts

    def point_tokens(self, points_xy: Tensor) -> Tensor:
        """Return SAM's embeddings (N, C) of points on an object, in pixels; scenes have the size of its input."""
        labels = torch.ones(len(points_xy), 1)
        with torch.no_grad():
            found: Tensor = self.sam.prompt_encoder._embed_points(points_xy[:, None] - 0.5, labels, pad=False)[:, 0]
        return found

    def _mask_loss(self, located: LocationBatch, boxes: Tensor, tokens: Tensor) -> Tensor:
        """Return the loss of the masks that SAM decodes for some locations, prompted with box and token."""
        chosen = torch.randperm(len(boxes))[:_MASKS]
        logits, iou, soft = self.masks(located, chosen, boxes, tokens)
        best = 1 + iou[:, 1:].argmax(1)
        each: Tensor = mask_losses(logits.float(), F.avg_pool2d(soft[:, None], 4)[:, 0])
        return each[torch.arange(len(each)), best].mean()

    def masks(
        self, located: LocationBatch, chosen: Tensor, boxes: Tensor, tokens: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return all masks (n, 4, 64, 64), predicted IoUs (n, 4) and true masks (n, 256, 256) of some locations.

        They are grouped by image: the order is that of the images.
        """
        at, shapes = located.at[located.at[:, 2] == 0], located.shapes[located.at[:, 2] == 0]
        images, truths, _ = zip(*map(load_scene, located.scenes), strict=True)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            embeddings = self.sam.image_encoder(torch.stack(images)).float()
        found = []
        for image in at[chosen, 0].unique().tolist():
            of_image = chosen[at[chosen, 0] == image]
            size = torch.tensor([*located.scenes[image].size_wh] * 2)
            with torch.autocast("cpu", torch.bfloat16):
                prompt = None if tokens is None else tokens[of_image]
                decoded = decode(self.sam, embeddings[image], boxes[of_image] * size, None, None, prompt)
            found.append((*decoded, truths[image][shapes[of_image]]))
        logits, iou, truth = (torch.cat(parts) for parts in zip(*found, strict=True))
        return logits, iou, truth


@torch.no_grad()
def held_out(pretraining: Pretraining, scenes: int) -> dict[str, float]:
    """Return figures on held-out scenes with the true text before each token: boxes, masks, captions, cycle."""
    located = make_batch(pretraining.packer, HELD_OUT_SEED, 0, scenes, former=False)
    hidden, states = pretraining.states(located, attention=False)
    truth = located.boxes[located.at[:, 2] == 0]
    boxes = ordered(pretraining.heads.decode_boxes(states)).clamp(0, 1)
    iou = box_iou(boxes, truth).diagonal()
    cycle = pretraining.heads.decode_boxes(pretraining.heads.encode_boxes(truth)) - truth
    figures = {"box_iou": iou.mean(), "acc_50": (iou > 0.5).float().mean(), "cycle_box": cycle.abs().mean()}
    for name, tokens in (("ciou", pretraining.heads.sam_tokens(states)), ("ciou_box", None)):
        logits, predicted, masks = pretraining.masks(located, torch.arange(len(boxes)), boxes, tokens)
        best = logits.float()[torch.arange(len(logits)), 1 + predicted[:, 1:].argmax(1)]
        on = F.interpolate(best[:, None], masks.shape[1:], mode="bilinear")[:, 0] > 0
        figures[name] = (on & (masks > 0.5)).sum() / (on | (masks > 0.5)).sum()
    labels, prefix = located.batch.labels, located.batch.layout[0]
    right = pretraining.mllm.model.get_base_model().lm_head(hidden[:, prefix:].float()).argmax(-1) == labels
    captions = []
    for image, position, _ in located.at[located.at[:, 2] == 1].tolist():
        start = position - prefix
        while labels[image, start] < 0:
            start += 1
        end = start
        while end < labels.shape[1] and labels[image, end] >= 0:
            end += 1
        captions.append(float(right[image, start:end].all()))
    figures["captions"] = torch.tensor(captions).mean()
    return {name: round(float(value), 4) for name, value in figures.items()}


def save(mllm: Mllm, folder: Path) -> None:
    """Save the adapter, with LoRA in half precision, and config and processor of the base that it makes."""
    model = mllm.model
    model.peft_config["default"].base_model_name_or_path = EMBEDDED
    model.save_pretrained(folder, save_embedding_layers=False)
    # peft's model card; ours is written by hand.
    (folder / "README.md").unlink()
    file = folder / ADAPTER_WEIGHTS
    weights = load_file(file)
    save_file({name: weight.half() if ".lora_" in name else weight for name, weight in weights.items()}, file)
    base = model.get_base_model()
    base.config.save_pretrained(folder)
    base.generation_config.save_pretrained(folder)
    mllm.processor.save_pretrained(folder)


def main() -> None:
    """Parse the options and train, from the last checkpoint if there is one."""
    parser = build_options(__doc__, steps=2000, batch=8, learning_rate=2.5e-3)
    parser.add_argument("--output", type=Path, default=Path("sam4mllm/models/mllm_locations"))
    parser.add_argument("--seconds", type=float, help="the length as time, in place of --steps")
    parser.add_argument("--masks-from", type=float, default=0.5, help="the share of the steps without loss of masks")
    parser.add_argument("--mask-weight", type=float, default=0.3, help="the weight of the loss of masks")
    parser.add_argument("--held-out", type=int, default=24, help="scenes on which the model is tested while it trains")
    options = parser.parse_args()
    begin(options)
    train(options, Pretraining())


def train(options: argparse.Namespace, pretraining: Pretraining) -> None:
    """Train from the last checkpoint, and save the adapter to `options.output`."""
    trained = [*pretraining.trained(), *pretraining.codes.parameters()]
    optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.98), weight_decay=0.0)
    parts = {"model": pretraining.mllm.model, "codes": pretraining.codes, "optimizer": optimizer}
    checkpoint, log = Checkpoint(options.work / "last.pt", parts), Log(options.work)
    step, start = checkpoint.load(), time.time()
    while True:
        progress = (time.time() - start) / options.seconds if options.seconds else step / options.steps
        rate = learning_rate(step, progress, options.learning_rate, warm=60, falling=0.6)
        for group in optimizer.param_groups:
            group["lr"] = rate
        located = make_batch(pretraining.packer, SCENE_SEED, step * options.batch, options.batch)
        loss, losses = pretraining.loss(located, options.mask_weight if progress >= options.masks_from else 0.0)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        step += 1
        log.count(losses)
        last = time.time() - start > options.seconds if options.seconds else step >= options.steps
        if step % 250 == 0 or last:
            checkpoint.save(step)
            log.report(step, rate=rate, held_out=held_out(pretraining, options.held_out))
        elif step % 50 == 0:
            log.report(step, rate=rate)
        if last:
            break
    save(pretraining.mllm, options.output)


if __name__ == "__main__":
    main()
