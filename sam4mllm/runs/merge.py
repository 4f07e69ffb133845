"""Merge a run's adapter into the weights of its base model, as one checkpoint that servers and libraries load.

The result is a run folder, too, with the run's method and segmenter, so `Pipeline.from_pretrained` opens it.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from sam4mllm.errors import ModelError
from sam4mllm.mllm.loading import DType, Mllm, load_mllm
from sam4mllm.mllm.location_weights import save_model
from sam4mllm.runs.run_folder import RunFolder
from sam4mllm.utils.atomic_io import writing
from sam4mllm.utils.folder_lock import folder_lock
from sam4mllm.utils.hub import MASK_DECODER


def merge(run: str | Path | RunFolder, output: str | Path, *, dtype: DType = "auto", device: str = "cpu") -> RunFolder:
    """Write the model of `run` with its adapter merged into it to the new folder `output`, atomically.

    `run` is a run folder or its path. The base is loaded without quantization, whatever the run was trained on. `dtype`
    "auto" is the run's, and if that is "auto" too, the checkpoint's. In float32 the merged model answers as base and
    adapter do; in half precision the sums are rounded.

    Raises:
        ModelError: `run` is already merged; `output` is not an empty folder; base or adapter cannot be loaded.
        LaunchError: Another job writes to `output`.
    """
    run = run if isinstance(run, RunFolder) else RunFolder.open(run)
    output = Path(output)
    if run.is_merged:
        raise ModelError(f"{run.path}: is already merged; give a run folder with an adapter")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ModelError(f"{output}: exists already; choose another folder, or remove it")
    recipe = run.recipe
    mllm = load_mllm(
        recipe.model.base,
        run.path,
        device=device,
        dtype=recipe.model.dtype if dtype == "auto" else dtype,
        attn_implementation=recipe.model.attn_implementation,
    )
    model = mllm.model.merge_and_unload(safe_merge=True)
    model.generation_config = _greedy_generation_config(mllm)
    with folder_lock(output, "merging a model", beside=True):
        _write_merged(model, mllm.processor, run, output.absolute())
    return RunFolder.open(output)


def _write_merged(model: Any, processor: Any, run: RunFolder, target: Path) -> None:
    """Write a merged model with the settings of `run` to the folder `target`, atomically."""
    unfinished = RunFolder(target.with_name(f".{target.name}.unfinished"))
    shutil.rmtree(unfinished.path, ignore_errors=True)
    unfinished.path.mkdir(parents=True)
    with writing(unfinished.path):
        save_model(model, unfinished.path)
        processor.save_pretrained(unfinished.path)
        if (run.path / MASK_DECODER).is_file():
            shutil.copyfile(run.path / MASK_DECODER, unfinished.path / MASK_DECODER)
    recipe = run.recipe
    settings = recipe.model.model_copy(update={"dtype": "auto", "quantization": None})
    unfinished.write_settings(recipe.model_copy(update={"model": settings}), run.method)
    unfinished.write_calibration(run.calibration)
    os.replace(unfinished.path, target)


def _greedy_generation_config(mllm: Mllm) -> Any:
    """Return a generation config with the special tokens of `mllm` and greedy decoding, and nothing else of the base's.

    Servers take their defaults from it. Those of some chat models contain a sampler, beams or penalties, which would
    change answers, and transformers does not save a sampler's values beside `do_sample=False`.
    """
    from transformers import GenerationConfig

    base, tokenizer = mllm.model.generation_config, mllm.processor.tokenizer
    return GenerationConfig(
        do_sample=False,
        bos_token_id=tokenizer.bos_token_id if base.bos_token_id is None else base.bos_token_id,
        eos_token_id=mllm.end_ids,
        pad_token_id=tokenizer.pad_token_id,
    )
