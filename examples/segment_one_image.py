"""Segment one image by a phrase.

    python examples/segment_one_image.py                                          # a generated image, embedded models
    python examples/segment_one_image.py --model runs/mine --image street.jpg --phrase "the red car"

Writes the image with masks, boxes and points to segment_one_image.png.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from sam4mllm import Pipeline, Sam4mllmError, read_dataset, write_dataset


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Segment one image by a phrase.")
    parser.add_argument("--model", default="shapes", help="a run folder, or a base model (default: the embedded one)")
    parser.add_argument("--segmenter", help="a SAM checkpoint; default: the run's, or the embedded one")
    parser.add_argument("--image", type=Path, help="default: a generated image")
    parser.add_argument("--phrase", help="default: a phrase about the generated image")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ...")
    parser.add_argument("--work", type=Path, default=Path("runs/examples"), help="folder of the generated images")
    parser.add_argument("--output", type=Path, default=Path("segment_one_image.png"))
    options = parser.parse_args(arguments)
    if (options.image is None) != (options.phrase is None):
        parser.error("give both --image and --phrase, or neither")

    # 1. Without --image: generate a small data set of colored shapes, and take its first sample.
    image, phrase = options.image, options.phrase
    if image is None:
        root = options.work / "shapes"
        if not root.exists():
            write_dataset(root, scenes=4, held_out=2)
        sample = read_dataset("refcoco", root, "val", limit=1)[0]
        image, phrase = sample.image, sample.phrase

    # 2. Load the multimodal LLM and SAM. A run folder also has the LoRA adapter, the method and its settings.
    pipeline = Pipeline.from_pretrained(options.model, segmenter=options.segmenter, device=options.device)

    # 3. Ask. The image is a path, a PIL image or an array (H, W, 3) uint8.
    result = pipeline(image, phrase)
    print(f"{phrase!r} in {image}: {result.status}")
    print(f"the model's answer: {result.answer}")
    for mask, prompt, score in zip(result.masks, result.prompts, result.scores, strict=True):
        # Masks are bool tensors (H, W) on the pipeline's device; boxes are (x1, y1, x2, y2) in pixels of the image.
        print(f"  {int(mask.sum())} pixels, box {prompt.box}, {len(prompt.points)} points, score {float(score):.2f}")

    # 4. Draw masks, boxes and points over the image.
    result.draw(image, long_side=512).save(options.output)
    print(f"drawn to {options.output}")
    return 0


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except Sam4mllmError as error:  # a problem that the user can fix; the message explains how
        raise SystemExit(f"error: {error}") from error
