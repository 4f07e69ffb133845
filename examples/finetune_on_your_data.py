"""Fine-tune a multimodal LLM on your own images: targets, training, evaluation.

    python examples/finetune_on_your_data.py                                      # generated data, embedded models
    python examples/finetune_on_your_data.py --train train.jsonl --validation val.jsonl --steps 2000 --groups 64 \
        --base Qwen/Qwen3-VL-4B-Instruct --segmenter checkpoints/sam_vit_h_4b8939.pth --learning-rate 1e-4

A line of a JSONL is {"image": path, "phrase": text, "masks": [polygon, RLE or PNG, ...]}; see docs/your-data.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from sam4mllm import evaluate, inspect_targets, load_recipe, prepare_targets, read_dataset, train, write_dataset
from sam4mllm.data.readers.jsonl import write_jsonl

RECIPE = """\
output: {work}/run
model: {{base: "{base}"}}
segmenter: {{checkpoint: "{segmenter}"}}
data:
  train: [{{dataset: jsonl, path: "{train}"}}]
  validation: {{dataset: jsonl, path: "{validation}"}}
targets: {{store: "{work}/targets", groups: {groups}}}
lora: {{r: 16}}
training:
  max_steps: {steps}
  learning_rate: {learning_rate}
  per_device_train_batch_size: 4
  report_to: none
  validate: {{every_steps: 0, samples: 4, batch_size: 4}}
generation: {{max_new_tokens: 128}}
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Fine-tune a multimodal LLM on your own images.")
    parser.add_argument("--train", type=Path, help="JSONL to train on (default: generated data)")
    parser.add_argument("--validation", type=Path, help="JSONL of other images (default: generated data)")
    parser.add_argument("--base", default="shapes", help="a folder or Hub id (default: the embedded model)")
    parser.add_argument("--segmenter", default="shapes", help="a SAM checkpoint (default: the embedded one)")
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps; 4 only show that everything works")
    parser.add_argument("--learning-rate", default="1e-3", help="default: 1e-3, for the embedded model")
    parser.add_argument("--groups", type=int, default=4, help="groups of points that SAM scores per object")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ...")
    parser.add_argument("--work", type=Path, default=Path("runs/examples/finetune"), help="folder of all results")
    options = parser.parse_args(arguments)

    # 1. Without --train and --validation: generate colored shapes, and write a few phrases about them as JSONL.
    if options.train is None or options.validation is None:
        options.train, options.validation = options.work / "train.jsonl", options.work / "validation.jsonl"
        if not (options.work / "shapes").exists():
            write_dataset(options.work / "shapes", scenes=4, held_out=2)
        for split, file in (("train", options.train), ("val", options.validation)):
            write_jsonl(read_dataset("refcoco", options.work / "shapes", split, limit=8), file)

    # 2. A recipe is a YAML file; unknown keys and wrong values are rejected before anything is computed.
    file = options.work / "recipe.yaml"
    file.write_text(RECIPE.format(**vars(options)), encoding="utf-8")
    recipe = load_recipe(file)

    # 3. Score groups of points with SAM; the best ones are what the model is trained to generate. Look at the page!
    print(prepare_targets(recipe, device=options.device).summary(), end="")
    print(f"open in a browser: {inspect_targets(recipe, limit=8, device=options.device)}")

    # 4. Train a LoRA adapter. An interrupted training resumes when the script is started again.
    run = train(recipe, device=options.device)

    # 5. Evaluate on the validation set. `Pipeline.from_pretrained(run.path)` loads the run for other images.
    evaluation = evaluate(run.path, datasets="jsonl", path=options.validation, device=options.device)
    print(evaluation.report(), end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
