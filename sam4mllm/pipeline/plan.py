"""Decide what a pipeline is loaded from, given names and settings; nothing is loaded, but a run on the Hub downloaded.

A run folder names model, adapter, method and segmenter, and so does a merged run, which is its own base model. A base
model names only itself, so the others are given or have a default. A server takes the place of model and adapter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from sam4mllm.errors import ModelError
from sam4mllm.mllm.engine import Sampling
from sam4mllm.mllm.loading import EMBEDDED, EMBEDDED_BASES, DType, Quantization
from sam4mllm.recipe.schema import GenerationSection, MethodSection, SegmenterSection
from sam4mllm.runs.calibration import Calibration
from sam4mllm.runs.file_names import RECIPE
from sam4mllm.runs.hub_runs import download_run
from sam4mllm.runs.run_folder import RunFolder, did_you_mean_run
from sam4mllm.segmenters.base import Segmenter
from sam4mllm.utils.device import resolve_device
from sam4mllm.utils.hub import ADAPTER_CONFIG, MODEL_CONFIG


class PipelineOptions(TypedDict, total=False):
    """The keyword arguments of `Pipeline.from_pretrained`."""

    device: str
    dtype: DType
    segmenter: str | Path | Segmenter | None
    method: Mapping[str, Any] | None
    batch_size: int | None
    server: str | None
    server_model: str | None
    merge_adapter: bool | None
    constrained: bool | None
    votes: int | None
    temperature: float | None


@dataclass(frozen=True, slots=True)
class PipelinePlan:
    """The sources that a pipeline is loaded from, before anything is loaded.

    `run` is the run folder, if one was named. A merged run is its own `base`, without adapter. `method` is None for the
    run's own; `merge_adapter` is as in `merge_for_inference`; `constrained` is None for `generation.constrained`;
    `votes` is None for one greedy answer; `calibration` is the run's, or None if it was fitted with another segmenter
    or method.
    """

    run: RunFolder | None
    base: str
    adapter: str | Path | None
    device: str
    dtype: DType
    quantization: Quantization | None
    quantize_vision: bool
    attn_implementation: str | None
    merge_adapter: bool | None
    constrained: bool | None
    votes: Sampling | None
    method: Mapping[str, Any] | None
    segmenter: SegmenterSection | Segmenter
    server: str | None
    server_model: str | None
    generation: GenerationSection
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
    merge_adapter: bool | None = None,
    constrained: bool | None = None,
    votes: int | None = None,
    temperature: float | None = None,
) -> PipelinePlan:
    """Decide what a pipeline is loaded from; `Pipeline.from_pretrained` describes the arguments and errors."""
    device = resolve_device(device)
    model, adapter = _downloaded(model), None if adapter is None else _downloaded(adapter)
    run = _find_run(model, adapter)
    if server is not None and run is None:
        raise ModelError(f"{model}: --server needs a run folder, which holds the method and the segmenter; give one")
    if server is None and server_model is not None:
        raise ModelError(f"--server-model {server_model!r} needs the address of its server; give --server")
    if server is None and run is not None and run.is_merged and adapter is not None:
        raise ModelError(f"{adapter}: is a merged checkpoint, not an adapter; give it alone")
    recipe = run.recipe if run is not None else None
    base, weights = _model_files(model, adapter, run)
    generation = recipe.generation if recipe is not None else GenerationSection()
    # The run's calibration is for its own segmenter and method.
    own = segmenter is None and method is None
    if method is None and run is None:
        method = MethodSection(positives=0, negatives=0).model_dump()
    return PipelinePlan(
        run=run,
        base=base,
        adapter=weights,
        device=device,
        dtype=recipe.model.dtype if dtype == "auto" and recipe is not None else dtype,
        quantization=recipe.model.quantization if recipe is not None else None,
        quantize_vision=recipe is not None and recipe.model.quantize_vision,
        attn_implementation=recipe.model.attn_implementation if recipe is not None else None,
        merge_adapter=merge_adapter,
        constrained=constrained,
        votes=_sampling(votes, temperature),
        method=method,
        segmenter=_segmenter_section(segmenter, base, run),
        server=server,
        server_model=server_model,
        generation=generation.model_copy(update={"batch_size": batch_size or generation.batch_size}),
        calibration=run.calibration if run is not None and own else None,
    )


def _sampling(votes: int | None, temperature: float | None) -> Sampling | None:
    """Return how the answers that are voted on are drawn; None without votes.

    Raises:
        ModelError: A temperature without votes, or one that is not above 0.
    """
    if votes is None or votes == 1:
        if temperature is not None:
            raise ModelError("--temperature is that of votes, and one answer is generated greedily; give --votes")
        return None
    try:
        return Sampling(votes) if temperature is None else Sampling(votes, temperature)
    except ValueError as error:
        raise ModelError(f"votes: {error}") from error


def _downloaded(name: str | Path) -> str | Path:
    """Return the folder of a run on the Hub after its download; any other name unchanged."""
    if str(name) in EMBEDDED_BASES or Path(name).is_dir() or not _may_be_hub_id(str(name)):
        return name
    return download_run(str(name)) or name


def _find_run(model: str | Path, adapter: str | Path | None) -> RunFolder | None:
    """Open the run folder among the names, if there is one.

    Raises:
        ModelError: A folder is neither a run nor a model, a path does not exist, or a run is not finished.
    """
    path = Path(adapter if adapter is not None else model)
    if (path / RECIPE).is_file():
        return RunFolder.open(path)
    if adapter is not None:
        if not path.exists() and not _may_be_hub_id(str(adapter)):
            raise ModelError(f"{adapter}: no such folder of an adapter{did_you_mean_run(path)}")
        return None
    if path.is_dir() and not (path / MODEL_CONFIG).is_file():
        if (path / ADAPTER_CONFIG).is_file():
            raise ModelError(
                f"{model}: is an adapter without its base model; give the base model, and the adapter with --adapter"
            )
        return RunFolder.open(path)
    if not path.is_dir() and str(model) not in EMBEDDED_BASES and not _may_be_hub_id(str(model)):
        if "/" not in str(model):
            raise ModelError(
                f"{model}: no such run folder, and not the id of a model on the Hub (OWNER/NAME)"
                f"{did_you_mean_run(path)}"
            )
        return RunFolder.open(path)
    return None


def _may_be_hub_id(name: str) -> bool:
    """Return whether `name` has the form "owner/name" and is not in a folder that exists."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).parent.is_dir()


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
    if base in EMBEDDED_BASES:
        return SegmenterSection(checkpoint=EMBEDDED)
    advice = "" if Path(base).is_dir() else did_you_mean_run(base)
    raise ModelError(
        f"base model {base!r} has no segmenter of its own{advice or '; give a SAM checkpoint (--segmenter CHECKPOINT)'}"
    )
