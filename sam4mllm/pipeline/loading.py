"""From names to a pipeline: which files are the model, the adapter, the method and the segmenter, and what they are.

A run folder names all four, and so does one that `merge` wrote, which is its own base. A base model names itself
alone, so the rest is asked for or has one stated default. A server takes the place of model and adapter. This module
answers no question.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, TypedDict

from sam4mllm.errors import ModelError
from sam4mllm.methods.base import Method
from sam4mllm.methods.registry import method_from_settings
from sam4mllm.mllm.engine import Engine
from sam4mllm.mllm.image_size import own_coordinates
from sam4mllm.mllm.loading import EMBEDDED, load_mllm, load_processor
from sam4mllm.mllm.transformers_engine import TransformersEngine
from sam4mllm.prompts.coordinates import Coordinates
from sam4mllm.recipe.schema import GenerationSection, MethodSection, SegmenterSection
from sam4mllm.runs.calibration import Calibration
from sam4mllm.runs.run_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, RunFolder
from sam4mllm.segmenters.base import Segmenter
from sam4mllm.segmenters.fallback import BoxFallback
from sam4mllm.utils.device import resolve_device
from sam4mllm.utils.digests import file_sha256

_WEIGHTS = ("*.safetensors", "*.bin")


class PipelineParts(TypedDict):
    """The arguments of `Pipeline`."""

    method: Method
    engine: Engine
    segmenter: Segmenter
    image_batch: int
    max_new_tokens: int
    engine_identity: Callable[[], Mapping[str, Any]]
    fallback: BoxFallback | None
    calibration: Calibration | None


def load_pipeline_parts(
    model: str | Path,
    adapter: str | Path | None,
    *,
    device: str,
    dtype: str,
    segmenter: str | Path | Segmenter | None,
    method: Mapping[str, Any] | None,
    batch_size: int | None,
    server: str | None,
    server_model: str | None,
    fallback: BoxFallback | None,
) -> PipelineParts:
    """The arguments of `Pipeline`; see `Pipeline.from_pretrained`, which describes the arguments here."""
    run = _run_of(model, adapter)
    place = resolve_device(device)
    if server is not None:
        if run is None:
            raise ModelError(
                f"{model}: is no run folder, which must say how to ask the model of --server and with which SAM"
            )
        return _served_pipeline(run, place, segmenter, method, batch_size, server, server_model, fallback)
    if server_model is not None:
        raise ModelError(f"--server-model {server_model!r} names a model of no server; give its address by --server")
    # An adapter that is a run folder brings its method and segmenter along, on whatever base it is put.
    base = str(model) if adapter is not None or run is None else run.recipe.model.base
    weights = run.path if run is not None else adapter
    settings = run.recipe.model if run is not None else None
    if run is not None and run.is_merged:
        if adapter is not None:
            raise ModelError(f"{adapter}: is a merged checkpoint, no adapter; give it alone")
        base, weights = str(run.path), None
    if dtype == "auto" and settings is not None:
        dtype = settings.dtype
    quantization = settings.quantization if settings is not None else None
    eyes = _segmenter(segmenter, base, run, place)
    mllm = load_mllm(
        base,
        weights,
        device=place,
        dtype=dtype,  # type: ignore[arg-type]
        quantization=quantization,
        attn_implementation=settings.attn_implementation if settings is not None else None,
    )
    if method is not None:
        asks = method_from_settings(method, own_coordinates(mllm.family.coordinates, mllm.processor))
    elif run is not None:
        asks = run.method
    else:
        boxes_alone = MethodSection(positives=0, negatives=0).model_dump()
        asks = method_from_settings(boxes_alone, own_coordinates(mllm.family.coordinates, mllm.processor))
    generation = run.recipe.generation if run is not None else GenerationSection()
    at_once = batch_size or generation.batch_size
    return PipelineParts(
        method=asks,
        engine=TransformersEngine(mllm, at_once),
        segmenter=eyes,
        image_batch=at_once,
        max_new_tokens=generation.max_new_tokens,
        engine_identity=cache(
            lambda: {
                "base": base,
                "base_files": _files_of(base),
                "adapter": _digest(weights),
                "dtype": str(mllm.dtype),
                "quantization": quantization,
            }
        ),
        fallback=_fallback(fallback, run),
        calibration=_calibration(run, segmenter, method, fallback),
    )


def _served_pipeline(
    run: RunFolder,
    device: str,
    segmenter: str | Path | Segmenter | None,
    method: Mapping[str, Any] | None,
    batch_size: int | None,
    server: str,
    server_model: str | None,
    fallback: BoxFallback | None,
) -> PipelineParts:
    """The run's pipeline with the answers of a server. Its key, if it wants one, is where its users have it."""
    from sam4mllm.mllm.server_engine import ServerEngine

    generation = run.recipe.generation
    at_once = batch_size or generation.batch_size
    engine = ServerEngine(server, server_model, concurrency=at_once, api_key=os.environ.get("OPENAI_API_KEY"))
    return PipelineParts(
        method=method_from_settings(method, _native(run, method)) if method is not None else run.method,
        engine=engine,
        segmenter=_segmenter(segmenter, run.recipe.model.base, run, device),
        image_batch=at_once,
        max_new_tokens=generation.max_new_tokens,
        # Not its address: a server may move between two runs of one job.
        engine_identity=cache(
            lambda: {
                "server_model": engine.model,
                "run": _files_of(str(run.path)) if run.is_merged else _digest(run.path),
            }
        ),
        fallback=_fallback(fallback, run),
        calibration=_calibration(run, segmenter, method, fallback),
    )


def _native(run: RunFolder, method: Mapping[str, Any]) -> Coordinates | None:
    """How the run's model was taught to write places, by its processor; None where `method` leaves nothing to it."""
    if method.get("coordinates") != "family":
        return None
    base, adapter = (str(run.path), None) if run.is_merged else (run.recipe.model.base, run.path)
    processor, family = load_processor(base, adapter=adapter)
    return own_coordinates(family.coordinates, processor)


def _calibration(
    run: RunFolder | None,
    segmenter: str | Path | Segmenter | None,
    method: Mapping[str, Any] | None,
    fallback: BoxFallback | None,
) -> Calibration | None:
    """The run's, which is about its own segmenter, way of asking and fallback; None where another one was given."""
    if run is None or segmenter is not None or method is not None or _fallback(fallback, run) != _fallback(None, run):
        return None
    return run.calibration


def _run_of(model: str | Path, adapter: str | Path | None) -> RunFolder | None:
    """The run folder among the names, if one is.

    Raises:
        ModelError: a folder that is neither a run nor a model; a path where nothing is; an unfinished run.
    """
    named = Path(adapter if adapter is not None else model)
    if (named / "recipe.yaml").is_file():
        return RunFolder.open(named)
    if adapter is not None:
        return None
    if named.is_dir() and not (named / "config.json").is_file():
        if (named / ADAPTER_CONFIG).is_file():
            raise ModelError(f"{model}: is an adapter alone; give its base model first, and it with --adapter")
        return RunFolder.open(named)
    if not named.is_dir() and str(model) != EMBEDDED and _is_path(str(model)):
        return RunFolder.open(named)
    return None


def _is_path(name: str) -> bool:
    """Whether `name` cannot be a Hub id ("owner/name"), or stands in a folder that is here."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or ("/" in name and Path(name).parent.is_dir())


def _segmenter(given: str | Path | Segmenter | None, base: str, run: RunFolder | None, device: str) -> Segmenter:
    from sam4mllm.segmenters.loading import load_segmenter

    if given is not None and not isinstance(given, str | Path):
        return given
    if given is not None:
        section = SegmenterSection(checkpoint=str(given))
    elif run is not None:
        section = run.recipe.segmenter
    elif base == EMBEDDED:
        section = SegmenterSection(checkpoint=EMBEDDED)
    else:
        raise ModelError(f"base model {base!r} names no segmenter; give a SAM checkpoint (--segmenter CHECKPOINT)")
    return load_segmenter(section.checkpoint, device, section.dtype)


def box_fallback(section: SegmenterSection) -> BoxFallback:
    """The fallback to the mask of the box alone that a recipe's `segmenter` section sets."""
    return BoxFallback(section.fallback_margin, section.fallback_outside)


def _fallback(given: BoxFallback | None, run: RunFolder | None) -> BoxFallback | None:
    return box_fallback(run.recipe.segmenter) if given is None and run is not None else given


def _digest(adapter: str | Path | None) -> str | None:
    """sha256 of an adapter's weights; the name of one that is not a folder here; None for none."""
    if adapter is None:
        return None
    weights = Path(adapter) / ADAPTER_WEIGHTS
    if not weights.is_file():
        return str(adapter)
    return file_sha256(weights)


def _files_of(base: str) -> list[str] | None:
    """Names and sha256 of the weights in a base model's folder, in which another model may lie tomorrow.

    Two of one kind have files of one size, so they are read whole, side by side. None for a Hub id, whose name is
    enough.
    """
    if base == EMBEDDED:
        from sam4mllm import models

        folder = models.path("mllm")
    else:
        folder = Path(base).expanduser()
    if not folder.is_dir():
        return None
    files = sorted({file for pattern in _WEIGHTS for file in folder.glob(pattern)})
    with ThreadPoolExecutor() as pool:
        return [f"{file.name} {digest}" for file, digest in zip(files, pool.map(file_sha256, files), strict=True)]
