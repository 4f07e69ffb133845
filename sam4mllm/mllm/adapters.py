"""Load an adapter that peft saved, here or elsewhere, onto a base model: all of it, or an error.

peft ignores tensors without a module, leaves modules without tensors untrained, and ignores settings that it does not
know. Each of these changes answers, so each is an error here.
"""

from __future__ import annotations

import json
import pickle
from dataclasses import fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from sam4mllm.errors import ModelError
from sam4mllm.mllm.location_weights import location_heads_of, prepare_for_adapter
from sam4mllm.utils.hub import ADAPTER_CONFIG, ADAPTER_WEIGHTS, use_cache_if_unreachable

WEIGHT_FILES = (ADAPTER_WEIGHTS, "adapter_model.bin")
"""The names of an adapter's weights, in the order in which peft looks for them."""

_OTHER_BASE = "was it trained on another base?"
_ON_MODULES = "base_model.model."
"""The prefix of the names of an adapter's tensors."""

RANDOM_CHANGE_OF_BASE = "pissa_niter_"
"""The beginning of values of `init_lora_weights` with which peft changes the base by a random decomposition."""

_KINDS = ("LORA", "ADALORA", "IA3", "LOHA", "LOKR", "OFT", "VERA")
_TASKS = (None, "CAUSAL_LM")
_LOADING_ERRORS = (
    OSError,
    ImportError,
    ValueError,
    RuntimeError,
    KeyError,
    TypeError,
    EOFError,
    SafetensorError,
    pickle.UnpicklingError,
)


def load_adapter(model: Any, adapter: str | Path) -> Any:
    """Return `model` with `adapter`, a folder or a Hub id, on it as a `PeftModel` for inference; `model` is modified.

    DoRA, rank and alpha patterns, `modules_to_save` and the kinds in `_KINDS` are loaded, and location heads with the
    rows of their token. Tensors that are named as in older versions of transformers are renamed.

    Raises:
        ModelError: Files are missing or damaged, the installed peft lacks a setting of the adapter, it is of a kind or
            task that cannot be used, or its tensors and the model's modules differ in names or shapes.
    """
    from peft import get_peft_model, load_peft_weights

    _check_files(adapter)
    model_type = model.config.model_type
    try:
        config = _read_config(adapter)
        trained_on, config.base_model_name_or_path = config.base_model_name_or_path, None
        config.inference_mode = True
        weights = load_peft_weights(str(adapter), device="cpu")
        prepare_for_adapter(model, config, weights)
        model = get_peft_model(model, config)
        if location_heads_of(model) is not None:
            from sam4mllm.mllm.token_rows import insert_rows

            insert_rows(model)
        weights = _with_current_names(model, weights)
        _set_weights(model, weights, _weights_file(adapter), trained_on)
    except _LOADING_ERRORS as error:
        is_damaged = isinstance(error, SafetensorError | EOFError)
        advice = "its file of weights is damaged or cut short, copy it again" if is_damaged else _OTHER_BASE
        raise ModelError(
            f"adapter {str(adapter)!r} does not load on {model_type!r}: {loading_problem(error)}; {advice}"
        ) from error
    return model.eval()


def _check_files(adapter: str | Path) -> None:
    folder = Path(adapter)
    if not folder.exists():
        return
    if not (folder / ADAPTER_CONFIG).is_file():
        raise ModelError(
            f"{adapter}: contains no LoRA adapter ({ADAPTER_CONFIG} is missing); train one, or leave it out"
        )
    if _weights_file(adapter) == str(adapter):
        raise ModelError(
            f"{adapter}: has {ADAPTER_CONFIG}, but the adapter's weights are missing ({' or '.join(WEIGHT_FILES)}); "
            "copy them there"
        )


def _weights_file(adapter: str | Path) -> str:
    """Return the path of an adapter's weights, or its Hub id."""
    files = [str(Path(adapter) / name) for name in WEIGHT_FILES if (Path(adapter) / name).is_file()]
    return files[0] if files else str(adapter)


def _read_config(adapter: str | Path) -> Any:
    """Return peft's config of an adapter.

    Raises:
        ModelError: The file is no config, or has settings, a kind or a task that cannot be used.
    """
    import peft
    from huggingface_hub import hf_hub_download
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    file = Path(adapter) / ADAPTER_CONFIG
    if not Path(adapter).exists():
        use_cache_if_unreachable()
        file = Path(hf_hub_download(str(adapter), ADAPTER_CONFIG))
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{file}: is no JSON: {loading_problem(error)}; copy the adapter again") from error
    kind = settings.get("peft_type") if isinstance(settings, dict) else None
    if kind not in _KINDS:
        raise ModelError(f"{file}: its peft_type is {kind!r}; give an adapter of one of the types {', '.join(_KINDS)}")
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[kind]
    known = {field.name for field in fields(config_class)}
    # A setting that is off, or "runtime_config", which peft ignores, too, changes nothing.
    used = [f"{key}: {value!r}" for key, value in settings.items() if value and key not in {*known, "runtime_config"}]
    if used:
        raise ModelError(
            f"{file}: the installed peft {peft.__version__} does not know {', '.join(used)} and would ignore it; "
            f"upgrade peft (the adapter's: {settings.get('peft_version') or 'unknown'}): pip install -U peft"
        )
    if settings.get("task_type") not in _TASKS:
        raise ModelError(
            f"{file}: the adapter was trained for the task {settings['task_type']!r}, which does not generate text; "
            "give one for CAUSAL_LM"
        )
    if str(settings.get("init_lora_weights")).startswith(RANDOM_CHANGE_OF_BASE):
        raise ModelError(
            f"{file}: init_lora_weights {settings['init_lora_weights']!r} changed the base's weights by a random "
            "decomposition, which cannot be repeated; convert the adapter where it was trained, with peft's "
            "save_pretrained(path_initial_model_for_weight_conversion=...), or train with 'pissa'"
        )
    return config_class(**{key: value for key, value in settings.items() if key in known})


def _with_current_names(model: Any, weights: dict[str, Any]) -> dict[str, Any]:
    """Return `weights` with the names of the model's modules in place of those of older versions of transformers.

    The renamings are those that transformers applies to checkpoints. peft applies some of them, but not those of
    Qwen2-VL and Qwen2.5-VL, and none to `modules_to_save`.
    """
    from peft import get_peft_model_state_dict
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    saved = get_peft_model_state_dict(model, save_embedding_layers=False)
    known = {_module(name) for name in (*saved, *model.state_dict())}
    renamings = [
        each for each in get_model_conversion_mapping(model.get_base_model()) if isinstance(each, WeightRenaming)
    ]
    renamed = {}
    for name, tensor in weights.items():
        if _module(name) not in known and name.startswith(_ON_MODULES):
            current = _ON_MODULES + rename_source_key(name.removeprefix(_ON_MODULES), renamings, [])[0]
            name = current if _module(current) in known else name
        renamed[name] = tensor
    return renamed


def _module(name: str) -> str:
    """Return the module that a LoRA tensor belongs to; the name itself for other tensors."""
    return name.partition(".lora_")[0]


def _set_weights(model: Any, weights: dict[str, Any], file: str, trained_on: str | None) -> None:
    """Copy `weights` into the adapter's modules; `file` and `trained_on`, the adapter's base, are for the error.

    Raises:
        ModelError: Some tensors have no module in the model, or some of the adapter's modules have no tensor.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

    prefix = PEFT_TYPE_TO_PREFIX_MAPPING[model.peft_config["default"].peft_type]
    needed = get_peft_model_state_dict(model, save_embedding_layers=False)
    missing = sorted(name for name in needed if name not in weights)
    unexpected: list[str] = []
    # peft fails at the first missing tensor outside the adapter's own layers, which are those of `modules_to_save`.
    if all(prefix in name for name in missing):
        # Names of older versions of peft differ, so its result counts.
        result = set_peft_model_state_dict(model, dict(weights))
        unexpected = sorted(result.unexpected_keys)
        missing = sorted(name for name in result.missing_keys if prefix in name and ".default" in name)
    problems = []
    if unexpected:
        problems.append(f"{len(unexpected)} of its {len(weights)} tensors have no module in it ({unexpected[0]}, ...)")
    if missing:
        problems.append(f"{len(missing)} tensors that its layers need are missing ({missing[0]}, ...)")
    if problems:
        base = f"the base that it was trained on{f' ({trained_on})' if trained_on else ''}"
        raise ModelError(
            f"{file}: does not fit the model {model.config.model_type!r}: {', and '.join(problems)}; give {base}, or "
            "copy the file again if it is not complete"
        )


def loading_problem(error: BaseException) -> str:
    """Return in one line why a model does not load, with the first mismatch of shapes where the error lists them.

    Errors about code and pickles are worded here, because the libraries' messages explain how to run them.
    """
    if "trust_remote_code" in str(error):
        return "it needs Python code of its own repository, which is never run"
    if isinstance(error, pickle.UnpicklingError):
        return "its weights are a pickle of other objects than weights, which is not read"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    line = next((line for line in lines if "size mismatch" in line), lines[0])
    return " ".join(line.split()).rstrip(".:")[:300]


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; the name of its class if it has no message."""
    lines = str(error).strip().splitlines()
    return lines[0].strip().rstrip(".") if lines else type(error).__name__
