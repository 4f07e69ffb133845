"""YAML as recipes use it: strings, numbers, true, false, null, lists and mappings, and nothing that surprises.

PyYAML reads YAML 1.1, where `1e-4` is text, `no` is false and `010` is 8. Here the core schema of YAML 1.2 holds:
`1e-4` is a number, `no` is text and `010` is 10. A key given twice is an error, for one of its values would be lost.
This module knows no recipe.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

import yaml

_BOOL, _INT, _FLOAT, _NULL, _STR, _MAP, _SEQ = (
    f"tag:yaml.org,2002:{kind}" for kind in ("bool", "int", "float", "null", "str", "map", "seq")
)
_SCALARS = (
    (_NULL, re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    (_BOOL, re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    (_INT, re.compile(r"[-+]?[0-9]+$"), list("-+0123456789")),
    (_FLOAT, re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$"), list("-+.0123456789")),
)


class _Reader(yaml.SafeLoader):
    """Only the kinds of value that JSON has; any other tag is an error."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}
    yaml_constructors: ClassVar[dict[str | None, Any]] = {}

    def read_mapping(self, node: yaml.MappingNode) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is no text", key_node.start_mark)
            if key in mapping:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            mapping[key] = self.construct_object(value_node, deep=True)
        return mapping

    def read_sequence(self, node: yaml.SequenceNode) -> list[Any]:
        return [self.construct_object(item, deep=True) for item in node.value]


class _Writer(yaml.SafeDumper):
    """Quotes what either version of YAML would read as something else than text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, _pattern, _firsts in _SCALARS:
    _Reader.add_implicit_resolver(_tag, _pattern, _firsts)
    _Writer.add_implicit_resolver(_tag, _pattern, _firsts)
_Reader.add_constructor(_NULL, lambda reader, node: None)
_Reader.add_constructor(_BOOL, lambda reader, node: node.value.lower() == "true")
_Reader.add_constructor(_INT, lambda reader, node: int(node.value))
_Reader.add_constructor(_FLOAT, lambda reader, node: float(node.value))
_Reader.add_constructor(_STR, lambda reader, node: node.value)
_Reader.add_constructor(_MAP, _Reader.read_mapping)
_Reader.add_constructor(_SEQ, _Reader.read_sequence)
_Reader.add_constructor(None, yaml.constructor.SafeConstructor.construct_undefined)


def read_yaml(text: str) -> Any:
    """The value that `text` holds.

    Raises:
        ValueError: no YAML, a key given twice, a key or a value of a kind that JSON lacks; the message is one line and
            says where.
    """
    try:
        return yaml.load(text, Loader=_Reader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"{where}{error.problem}") from error
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def write_yaml(value: Any) -> str:
    """`value` as text that `read_yaml` turns back into it, mappings in their order."""
    return yaml.dump(value, Dumper=_Writer, sort_keys=False, allow_unicode=True, width=120)
