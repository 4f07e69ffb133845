"""Merging: a run's adapter goes into the weights of its base, as one checkpoint that any server or library loads.

The folder is a run folder still, so a pipeline opens it too, with the run's method and segmenter. This module trains
nothing and asks nothing.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from sam4mllm.errors import ModelError
from sam4mllm.mllm.loading import DType, load_mllm
from sam4mllm.runs.run_folder import RunFolder


def merge(run: RunFolder, output: Path, *, dtype: DType = "auto", device: str = "cpu") -> RunFolder:
    """Writes the model of `run` with its adapter merged into it to the new folder `output`, whole or not at all.

    The base is loaded unquantised, whatever the run trained on. `dtype` "auto" takes the run's, and where that is
    "auto" too the checkpoint's. In float32 the merged model answers as the adapter does; in fewer bits the sums are
    rounded.

    Raises:
        ModelError: `run` is merged already; `output` holds something; base or adapter cannot be loaded.
    """
    if run.is_merged:
        raise ModelError(f"{run.path}: is merged already")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ModelError(f"{output}: is there already; choose another folder, or remove it")
    recipe = run.recipe
    mllm = load_mllm(
        recipe.model.base,
        run.path,
        device=device,
        dtype=recipe.model.dtype if dtype == "auto" else dtype,
        attn_implementation=recipe.model.attn_implementation,
    )
    model = mllm.model.merge_and_unload(safe_merge=True)
    # A server fills what a request leaves open from here, and some chat models ship a sampler or a repetition penalty.
    model.generation_config.update(
        do_sample=False, temperature=None, top_p=None, top_k=None, repetition_penalty=1.0, eos_token_id=mllm.end_ids
    )
    place = output.absolute()
    unfinished = RunFolder(place.with_name(f".{place.name}.unfinished"))
    shutil.rmtree(unfinished.path, ignore_errors=True)
    unfinished.path.mkdir(parents=True)
    model.save_pretrained(unfinished.path)
    mllm.processor.save_pretrained(unfinished.path)
    settings = recipe.model.model_copy(update={"dtype": "auto", "quantization": None})
    unfinished.describe(recipe.model_copy(update={"model": settings}), run.method)
    unfinished.keep_calibration(run.calibration)
    os.replace(unfinished.path, place)
    return RunFolder.open(output)
