"""Load the parts of a pipeline that `plan.resolve` decided on: segmenter, engine and method."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, TypedDict

from sam4mllm.errors import ModelError
from sam4mllm.methods.base import Method
from sam4mllm.methods.parsing import no_locations_error
from sam4mllm.methods.registry import method_from_settings
from sam4mllm.mllm.adapters import WEIGHT_FILES
from sam4mllm.mllm.constrained_engine import constrains_or_warns, why_unconstrained
from sam4mllm.mllm.engine import Engine, Sampling
from sam4mllm.mllm.image_size import native_coordinates
from sam4mllm.mllm.loading import load_mllm, load_processor, resolve_base
from sam4mllm.mllm.lora import merge_for_inference
from sam4mllm.mllm.transformers_engine import TransformersEngine
from sam4mllm.pipeline.plan import PipelinePlan
from sam4mllm.prompts.coordinates import Coordinates
from sam4mllm.recipe.schema import SegmenterSection
from sam4mllm.runs.calibration import Calibration
from sam4mllm.segmenters.base import Segmenter
from sam4mllm.utils.atomic_io import file_sha256
from sam4mllm.utils.hub import MASK_DECODER

_WEIGHT_PATTERNS = ("*.safetensors", "*.bin")


class PipelineParts(TypedDict):
    """The arguments of `Pipeline`."""

    method: Method
    engine: Engine
    segmenter: Segmenter
    image_batch: int
    max_new_tokens: int
    constrained: bool
    votes: Sampling | None
    engine_identity: Callable[[], Mapping[str, Any]]
    calibration: Calibration | None


def load_parts(plan: PipelinePlan) -> PipelineParts:
    """Load segmenter, engine and method.

    Raises:
        ModelError: Model, adapter or segmenter cannot be loaded, the adapter cannot be merged, or answers that are to
            be constrained cannot be.
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
        constrained=_is_constrained(plan, engine, method),
        votes=plan.votes,
        engine_identity=cache(identity),
        calibration=plan.calibration,
    )


def _load_segmenter(plan: PipelinePlan) -> Segmenter:
    from sam4mllm.segmenters.loading import load_segmenter
    from sam4mllm.segmenters.mask_decoder import with_mask_decoder

    if not isinstance(plan.segmenter, SegmenterSection):
        return plan.segmenter
    segmenter = load_segmenter(plan.segmenter.checkpoint, plan.device, plan.segmenter.dtype)
    # A mask decoder that was trained with the run belongs to the run's segmenter.
    is_own = plan.run is not None and plan.segmenter == plan.run.recipe.segmenter
    if plan.run is not None and is_own and (plan.run.path / MASK_DECODER).is_file():
        return with_mask_decoder(segmenter, plan.run.path / MASK_DECODER)
    return segmenter


def _local_model(plan: PipelinePlan) -> tuple[Engine, Method, Callable[[], Mapping[str, Any]]]:
    """Load the model; return its engine, the method, and the function that computes the identity of the engine."""
    mllm = load_mllm(
        plan.base,
        plan.adapter,
        device=plan.device,
        dtype=plan.dtype,
        quantization=plan.quantization,
        quantize_vision=plan.quantize_vision,
        attn_implementation=plan.attn_implementation,
    )
    mllm = merge_for_inference(mllm, plan.merge_adapter)

    def identity() -> Mapping[str, Any]:
        # Without `merge_adapter`, which changes answers by rounding alone, as the batch size does.
        return {
            "base": plan.base,
            "base_files": _weight_digests(plan.base),
            "adapter": _adapter_digest(plan.adapter),
            "dtype": str(mllm.dtype),
            "quantization": plan.quantization,
            **({"quantize_vision": plan.quantize_vision} if plan.quantization is not None else {}),
        }

    native = native_coordinates(mllm.family.coordinates, mllm.processor)
    return TransformersEngine(mllm, plan.generation.batch_size), _method(plan, native), identity


def _served_model(plan: PipelinePlan, server: str) -> tuple[Engine, Method, Callable[[], Mapping[str, Any]]]:
    """Connect to the server, with the key in OPENAI_API_KEY if there is one; return the same as `_local_model`."""
    from sam4mllm.mllm.server_engine import ServerEngine

    run = plan.run
    assert run is not None, "checked by resolve"
    if (run.method if plan.method is None else method_from_settings(plan.method)).needs_locations:
        raise no_locations_error("a server")
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


def _is_constrained(plan: PipelinePlan, engine: Engine, method: Method) -> bool:
    """Return whether answers are constrained; by default where the engine can, with a warning where it cannot.

    Raises:
        ModelError: The plan requires it, and the engine cannot.
    """
    if plan.constrained is None:
        return plan.generation.constrained and constrains_or_warns(engine, method.answer_form)
    if plan.constrained and (reason := why_unconstrained(engine, method.answer_form)):
        raise ModelError(f"--constrained is not possible: {reason}")
    return plan.constrained


def _adapter_digest(adapter: str | Path | None) -> str | None:
    """Return the sha256 of an adapter's weights, or the name of an adapter that is not a folder; None for None."""
    if adapter is None:
        return None
    files = [Path(adapter) / name for name in WEIGHT_FILES if (Path(adapter) / name).is_file()]
    return file_sha256(files[0]) if files else str(adapter)


def _weight_digests(base: str) -> list[str] | None:
    """Return name and sha256 of each weight file in a base model's folder; None for a Hub id, whose name is enough.

    Another model may be at the same path later, and its files may have the same sizes, so they are read completely.
    """
    folder = Path(resolve_base(base))
    if not folder.is_dir():
        return None
    files = sorted({file for pattern in _WEIGHT_PATTERNS for file in folder.glob(pattern)})
    with ThreadPoolExecutor() as pool:
        return [f"{file.name} {digest}" for file, digest in zip(files, pool.map(file_sha256, files), strict=True)]
