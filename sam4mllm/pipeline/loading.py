"""Load the parts of a pipeline: model, adapter, method and segmenter, each given by a name or by a run folder.

1. `resolve` decides from names and settings what is loaded from where. A run folder names all four parts, and so does a
   merged run, which is its own base model. A base model names only itself, so the others are given or have a default. A
   server takes the place of model and adapter.
2. `load_parts` loads segmenter, engine and method, and returns the arguments of `Pipeline`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypedDict

from sam4mllm.errors import ModelError
from sam4mllm.methods.base import Method
from sam4mllm.methods.registry import method_from_settings
from sam4mllm.mllm.engine import Engine
from sam4mllm.mllm.image_size import native_coordinates
from sam4mllm.mllm.loading import EMBEDDED, DType, Quantization, load_mllm, load_processor, resolve_base
from sam4mllm.mllm.transformers_engine import TransformersEngine
from sam4mllm.prompts.coordinates import Coordinates
from sam4mllm.recipe.schema import GenerationSection, MethodSection, SegmenterSection
from sam4mllm.runs.calibration import Calibration
from sam4mllm.runs.run_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, RunFolder
from sam4mllm.segmenters.base import Segmenter
from sam4mllm.segmenters.fallback import BoxFallback
from sam4mllm.utils.atomic_io import file_sha256
from sam4mllm.utils.device import resolve_device

_WEIGHT_FILES = ("*.safetensors", "*.bin")


class PipelineOptions(TypedDict, total=False):
    """The keyword arguments of `Pipeline.from_pretrained`."""

    device: str
    dtype: DType
    segmenter: str | Path | Segmenter | None
    method: Mapping[str, Any] | None
    batch_size: int | None
    server: str | None
    server_model: str | None
    fallback: BoxFallback | None


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


@dataclass(frozen=True, slots=True)
class PipelinePlan:
    """The sources that a pipeline is loaded from, before anything is loaded.

    `run` is the run folder, if one was named. A merged run is its own `base`, without adapter. `method` is None for the
    run's own; `calibration` is the run's, or None if it was fitted with another segmenter, method or fallback.
    """

    run: RunFolder | None
    base: str
    adapter: str | Path | None
    device: str
    dtype: DType
    quantization: Quantization | None
    attn_implementation: str | None
    method: Mapping[str, Any] | None
    segmenter: SegmenterSection | Segmenter
    server: str | None
    server_model: str | None
    generation: GenerationSection
    fallback: BoxFallback | None
    calibration: Calibration | None


def resolve(
    model: str | Path,
    adapter: str | Path | None = None,
    *,
    device: str = "auto",
    dtype: DType = "auto",
    segmenter: str | Path | Segmenter | None = None,
    method: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    server: str | None = None,
    server_model: str | None = None,
    fallback: BoxFallback | None = None,
) -> PipelinePlan:
    """Decide what a pipeline is loaded from; arguments and errors as in `Pipeline.from_pretrained`."""
    run = _find_run(model, adapter)
    device = resolve_device(device)
    if server is not None and run is None:
        raise ModelError(f"{model}: --server needs a run folder, which holds the method and the segmenter; give one")
    if server is None and server_model is not None:
        raise ModelError(f"--server-model {server_model!r} needs the address of its server; give --server")
    if server is None and run is not None and run.is_merged and adapter is not None:
        raise ModelError(f"{adapter}: is a merged checkpoint, not an adapter; give it alone")
    recipe = run.recipe if run is not None else None
    base, weights = _model_files(model, adapter, run)
    generation = recipe.generation if recipe is not None else GenerationSection()
    run_fallback = box_fallback(recipe.segmenter) if recipe is not None else None
    # The run's calibration is for its own segmenter, method and fallback.
    own = segmenter is None and method is None and fallback in (None, run_fallback)
    if method is None and run is None:
        method = MethodSection(positives=0, negatives=0).model_dump()
    return PipelinePlan(
        run=run,
        base=base,
        adapter=weights,
        device=device,
        dtype=recipe.model.dtype if dtype == "auto" and recipe is not None else dtype,
        quantization=recipe.model.quantization if recipe is not None else None,
        attn_implementation=recipe.model.attn_implementation if recipe is not None else None,
        method=method,
        segmenter=_segmenter_section(segmenter, base, run),
        server=server,
        server_model=server_model,
        generation=generation.model_copy(update={"batch_size": batch_size or generation.batch_size}),
        fallback=run_fallback if fallback is None else fallback,
        calibration=run.calibration if run is not None and own else None,
    )


def load_parts(plan: PipelinePlan) -> PipelineParts:
    """Load segmenter, engine and method.

    Raises:
        ModelError: Model, adapter or segmenter cannot be loaded.
        ServerError: The server does not answer.
    """
    segmenter = _load_segmenter(plan)
    engine, method, identity = _local_model(plan) if plan.server is None else _served_model(plan, plan.server)
    return PipelineParts(
        method=method,
        engine=engine,
        segmenter=segmenter,
        image_batch=plan.generation.batch_size,
        max_new_tokens=plan.generation.max_new_tokens,
        engine_identity=cache(identity),
        fallback=plan.fallback,
        calibration=plan.calibration,
    )


def box_fallback(section: SegmenterSection) -> BoxFallback:
    """Return the box fallback that a recipe's `segmenter` section sets."""
    return BoxFallback(section.fallback_margin, section.fallback_outside)


def _find_run(model: str | Path, adapter: str | Path | None) -> RunFolder | None:
    """Open the run folder among the names, if there is one.

    Raises:
        ModelError: A folder is neither a run nor a model, a path does not exist, or a run is not finished.
    """
    path = Path(adapter if adapter is not None else model)
    if (path / "recipe.yaml").is_file():
        return RunFolder.open(path)
    if adapter is not None:
        return None
    if path.is_dir() and not (path / "config.json").is_file():
        if (path / ADAPTER_CONFIG).is_file():
            raise ModelError(
                f"{model}: is an adapter without its base model; give the base model, and the adapter with --adapter"
            )
        return RunFolder.open(path)
    if not path.is_dir() and str(model) != EMBEDDED and _is_path(str(model)):
        return RunFolder.open(path)
    return None


def _is_path(name: str) -> bool:
    """Return whether `name` cannot be a Hub id ("owner/name"), or is in a folder that exists."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or ("/" in name and Path(name).parent.is_dir())


def _model_files(model: str | Path, adapter: str | Path | None, run: RunFolder | None) -> tuple[str, str | Path | None]:
    """Return base model and adapter; an adapter that is a run folder may be used with another base than its own."""
    if run is None:
        return str(model), adapter
    if run.is_merged:
        return str(run.path), None
    return str(model) if adapter is not None else run.recipe.model.base, run.path


def _segmenter_section(
    given: str | Path | Segmenter | None, base: str, run: RunFolder | None
) -> SegmenterSection | Segmenter:
    if isinstance(given, str | Path):
        return SegmenterSection(checkpoint=str(given))
    if given is not None:
        return given
    if run is not None:
        return run.recipe.segmenter
    if base == EMBEDDED:
        return SegmenterSection(checkpoint=EMBEDDED)
    raise ModelError(f"base model {base!r} has no segmenter of its own; give a SAM checkpoint (--segmenter CHECKPOINT)")


def _load_segmenter(plan: PipelinePlan) -> Segmenter:
    from sam4mllm.segmenters.loading import load_segmenter

    if isinstance(plan.segmenter, SegmenterSection):
        return load_segmenter(plan.segmenter.checkpoint, plan.device, plan.segmenter.dtype)
    return plan.segmenter


def _local_model(plan: PipelinePlan) -> tuple[Engine, Method, Callable[[], Mapping[str, Any]]]:
    """Load the model; return its engine, the method, and the function that computes the identity of the engine."""
    mllm = load_mllm(
        plan.base,
        plan.adapter,
        device=plan.device,
        dtype=plan.dtype,
        quantization=plan.quantization,
        attn_implementation=plan.attn_implementation,
    )

    def identity() -> Mapping[str, Any]:
        return {
            "base": plan.base,
            "base_files": _weight_digests(plan.base),
            "adapter": _adapter_digest(plan.adapter),
            "dtype": str(mllm.dtype),
            "quantization": plan.quantization,
        }

    native = native_coordinates(mllm.family.coordinates, mllm.processor)
    return TransformersEngine(mllm, plan.generation.batch_size), _method(plan, native), identity


def _served_model(plan: PipelinePlan, server: str) -> tuple[Engine, Method, Callable[[], Mapping[str, Any]]]:
    """Connect to the server, with the key in OPENAI_API_KEY if there is one; return the same as `_local_model`."""
    from sam4mllm.mllm.server_engine import ServerEngine

    run = plan.run
    assert run is not None, "checked by resolve"
    engine = ServerEngine(
        server,
        plan.server_model,
        concurrency=plan.generation.batch_size,
        api_key=os.environ.get("OPENAI_API_KEY"),
    )

    def identity() -> Mapping[str, Any]:
        # Without the address, because a server may move between two runs of one job.
        return {
            "server_model": engine.model,
            "run": _weight_digests(str(run.path)) if run.is_merged else _adapter_digest(run.path),
        }

    native = None
    if plan.method is not None and plan.method.get("coordinates") == "family":
        base, adapter = (str(run.path), None) if run.is_merged else (run.recipe.model.base, run.path)
        processor, family = load_processor(base, adapter=adapter)
        native = native_coordinates(family.coordinates, processor)
    return engine, _method(plan, native), identity


def _method(plan: PipelinePlan, native: Coordinates | None) -> Method:
    """Build the method that was given, or the run's; `native` are the coordinates that the model was pretrained on."""
    if plan.method is not None:
        return method_from_settings(plan.method, native)
    assert plan.run is not None, "checked by resolve"
    return plan.run.method


def _adapter_digest(adapter: str | Path | None) -> str | None:
    """Return the sha256 of an adapter's weights, or the name of an adapter that is not a folder; None for None."""
    if adapter is None:
        return None
    weights = Path(adapter) / ADAPTER_WEIGHTS
    return file_sha256(weights) if weights.is_file() else str(adapter)


def _weight_digests(base: str) -> list[str] | None:
    """Return name and sha256 of each weight file in a base model's folder; None for a Hub id, whose name is enough.

    Another model may be at the same path later, and its files may have the same sizes, so they are read completely.
    """
    folder = Path(resolve_base(base))
    if not folder.is_dir():
        return None
    files = sorted({file for pattern in _WEIGHT_FILES for file in folder.glob(pattern)})
    with ThreadPoolExecutor() as pool:
        return [f"{file.name} {digest}" for file, digest in zip(files, pool.map(file_sha256, files), strict=True)]
