"""Check a recipe: unknown keys with the nearest valid one, wrong types, the libraries' keys; one line per problem."""

from __future__ import annotations

import dataclasses
import difflib
import json
import typing
from collections.abc import Iterable, Mapping
from typing import Any

import pydantic
from pydantic import BaseModel

# Library keys that are set through another setting of the recipe: the key, and the setting to use.
_SET_ELSEWHERE = {
    "lora": {"base_model_name_or_path": "model.base"},
    "training": {"output_dir": "output", "seed": "seed", "data_seed": "seed"},
}
# Values that a library accepts although its annotations lack them: TrainingArguments turns FSDP on by `true`.
_ALSO_ACCEPTED: dict[str, tuple[Any, ...]] = {"fsdp": (True, False)}
# Other names for the libraries' keys, which the nearest spelling would not find.
_SYNONYMS = {
    "rank": "r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "modules": "target_modules",
    "lr": "learning_rate",
    "batch_size": "per_device_train_batch_size",
    "train_batch_size": "per_device_train_batch_size",
    "accumulation": "gradient_accumulation_steps",
    "grad_accum": "gradient_accumulation_steps",
    "epochs": "num_train_epochs",
    "num_epochs": "num_train_epochs",
    "steps": "max_steps",
    "warmup": "warmup_steps",
    "scheduler": "lr_scheduler_type",
    "optimizer": "optim",
}
# Settings that were removed: the value at which each had no effect, and what is done now.
_REMOVED: dict[str, tuple[Any, str]] = {
    "segmenter.fallback_margin": (None, "masks are always those of box and points"),
    "segmenter.fallback_outside": (None, "masks are always those of box and points"),
    "segmenter.kind": ("segment_anything", "the kind is detected from the checkpoint"),
    "targets.only_winning": (False, "points are training targets of all objects"),
}
# Up to this many valid keys are listed in a message.
_FEW = 24
# Keys of these sections that are ours, not the library's.
_OURS = {"lora": (), "training": ("validate",)}


def nearest(word: str, valid: Iterable[str], what: str) -> str:
    """Return a hint for an unknown `word`: the nearest valid one, or all of them if none is near and they are few."""
    valid = sorted(valid)
    if _SYNONYMS.get(word) in valid:
        return f"did you mean {_SYNONYMS[word]}?"
    few = len(valid) <= _FEW
    near = difflib.get_close_matches(word, valid, n=1, cutoff=0.5 if few else 0.0)
    return f"did you mean {near[0]}?" if near else f"the {what} are {', '.join(valid) or 'none'}"


def drop_removed(settings: dict[str, Any]) -> list[str]:
    """Delete the settings of `_REMOVED` from `settings`; return a line per one with a value that had an effect."""
    lines = []
    for dotted, (without_effect, now) in _REMOVED.items():
        name, key = dotted.split(".")
        section = settings.get(name)
        if isinstance(section, dict) and key in section:
            value = section.pop(key)
            # 0 is not false here, as in the schema.
            if value != without_effect or type(value) is not type(without_effect):
                lines.append(f"{dotted}: was removed, so {value!r} has no effect; remove the key: {now}")
    return lines


def section_problems(error: pydantic.ValidationError, root: type[BaseModel]) -> list[str]:
    """Return a line per problem of the sections under `root`, each beginning with the dotted key."""
    lines = []
    for item in error.errors(include_url=False):
        key = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            lines.append(f"{key}: unknown key; {_suggestion(str(item['loc'][-1]), item['loc'][:-1], root)}")
        elif item["type"] == "missing":
            lines.append(f"{key}: is missing")
        elif item["type"] == "value_error":
            # The message of a section's own validator begins with the key within the section.
            lines.append(f"{key}.{item['ctx']['error']}".removeprefix("."))
        else:
            lines.append(f"{key}: {_lower_first(item['msg'])}; got {item['input']!r}")
    return lines


def library_problems(settings: Mapping[str, Any]) -> list[str]:
    """Return a line per key of `lora` and `training` that the installed library lacks or whose value has a wrong type.

    A library is imported only if its section has keys, because the import takes seconds.
    """
    lines = []
    for section, ours in _OURS.items():
        keys = settings.get(section)
        keys = {key: value for key, value in keys.items() if key not in ours} if isinstance(keys, dict) else {}
        if not keys:
            continue
        library = _library(section)
        hints = typing.get_type_hints(library)
        fields = [field.name for field in dataclasses.fields(library) if field.init]
        set_elsewhere = _SET_ELSEWHERE[section]
        for key, value in keys.items():
            if key in set_elsewhere:
                lines.append(f"{section}.{key}: is set by the recipe's {set_elsewhere[key]}; set that instead")
            elif key not in fields:
                hint = nearest(key, {*fields, *ours} - set_elsewhere.keys(), "valid keys")
                lines.append(f"{section}.{key}: unknown key of {library.__name__}; {hint}")
            elif value not in _ALSO_ACCEPTED.get(key, ()) and (problem := _wrong_type(value, hints[key])):
                lines.append(f"{section}.{key}: {problem}; got {value!r}")
    return lines


def _library(section: str) -> type:
    """Return the library's dataclass whose fields are the keys of the section."""
    if section == "lora":
        from peft import LoraConfig

        return LoraConfig
    from transformers import TrainingArguments

    return TrainingArguments


def _wrong_type(value: Any, annotation: Any) -> str | None:
    """Return why `value`, in JSON, does not fit the library's annotation, or None if it does."""
    try:
        pydantic.TypeAdapter(annotation).validate_json(json.dumps(value), strict=True)
    except pydantic.errors.PydanticUserError:
        # Pydantic cannot check this annotation; the library itself will check the value.
        return None
    except pydantic.ValidationError as error:
        return "; or ".join(dict.fromkeys(_lower_first(item["msg"]) for item in error.errors()))
    return None


def _suggestion(word: str, location: Iterable[str | int], root: type[BaseModel]) -> str:
    """Return a hint for an unknown key: the same key in another section, or the nearest one in its own section."""
    section = root
    for part in location:
        if isinstance(part, str):
            names = {field.alias or name: field.annotation for name, field in section.model_fields.items()}
            section = next(kind for kind in _kinds(names[part]) if issubclass(kind, BaseModel))
    elsewhere = [
        f"{name}.{word}"
        for name, field in root.model_fields.items()
        for kind in _kinds(field.annotation)
        if issubclass(kind, BaseModel) and word in kind.model_fields
    ]
    elsewhere += [
        f"{name}.{word}"
        for name in _OURS
        if name in root.model_fields and word in {field.name for field in dataclasses.fields(_library(name))}
    ]
    valid = [field.alias or name for name, field in section.model_fields.items()]
    if elsewhere and not difflib.get_close_matches(word, valid, cutoff=0.8):
        return f"did you mean {elsewhere[0]}?"
    return nearest(word, valid, "valid keys")


def _kinds(annotation: Any) -> list[type]:
    """Return the classes in an annotation such as `list[DataEntry] | None`."""
    arguments = typing.get_args(annotation)
    if arguments:
        return [kind for part in arguments for kind in _kinds(part)]
    return [annotation] if isinstance(annotation, type) else []


def _lower_first(message: str) -> str:
    return message[0].lower() + message[1:]
