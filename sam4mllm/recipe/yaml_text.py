"""YAML of recipes: the core schema of YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema), limited to JSON's types.

`1e-4` is a number, `no` is text and `010` is 10; dates, underscores in numbers, `.inf` and merge keys (`<<`) are text,
where ruamel's own rules give other types. A duplicate key is an error, because one of its values would be lost.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.representer import SafeRepresenter
from ruamel.yaml.resolver import VersionedResolver, implicit_resolvers
from ruamel.yaml.tag import Tag

_BOOL, _INT, _FLOAT, _NULL, _STR, _MAP, _SEQ = (
    f"tag:yaml.org,2002:{kind}" for kind in ("bool", "int", "float", "null", "str", "map", "seq")
)
_CORE_SCHEMA = (
    (_NULL, re.compile(r"(?:~|null|Null|NULL|)$")),
    (_BOOL, re.compile(r"(?:true|True|TRUE|false|False|FALSE)$")),
    (_INT, re.compile(r"[-+]?[0-9]+$")),
    (_FLOAT, re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$")),
)
_SCALARS: dict[str, Callable[[str], Any]] = {
    _NULL: lambda text: None,
    _BOOL: lambda text: text.lower() == "true",
    _INT: int,
    _FLOAT: float,
    _STR: str,
}
# Aliases of aliases can stand for any number of values in a few lines of text; a recipe has hundreds.
_MAX_VALUES = 100_000
# What ruamel's rules for YAML 1.1 and 1.2 take for another type than text, such as `no`, `1_000` and `1:30`.
_OTHER_READERS = tuple((tag, pattern) for _, tag, pattern, _ in implicit_resolvers)


def read_yaml(text: str) -> Any:
    """Parse `text` into None, bool, int, float, str, list and dict.

    Raises:
        ValueError: Invalid YAML, a duplicate key, a key that is not text, a tag of another type, nesting that is too
            deep, or more than `_MAX_VALUES` values; the message is one line with the line and column, counted from 1.
    """
    yaml = YAML(typ="safe", pure=True)
    yaml.Resolver = _ReadResolver
    try:
        node = yaml.compose(text)
        return None if node is None else _value(node, (), itertools.count(1))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        position = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"{position}{error.problem}") from error
    except YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except RecursionError as error:
        raise ValueError("lists or mappings are nested too deeply") from error


def write_yaml(value: Any) -> str:
    """Return `value` as text that `read_yaml` parses to an equal value; mappings keep their order.

    Text that a reader of YAML 1.1 or 1.2 would take for another type is quoted.
    """
    yaml = YAML(typ="safe", pure=True)
    yaml.Resolver = _WriteResolver
    yaml.Representer = _Representer
    yaml.default_flow_style, yaml.sort_base_mapping_type_on_output = False, False  # type: ignore[assignment]
    yaml.width = 120
    stream = io.StringIO()
    yaml.dump(value, stream)
    return stream.getvalue()


class _ReadResolver(VersionedResolver):
    """The types of unquoted scalars: those of the core schema alone."""

    patterns: tuple[tuple[str, Any], ...] = _CORE_SCHEMA

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Tag:
        """Return the tag of a node without one of its own; `implicit[0]` is true for an unquoted scalar."""
        if kind is MappingNode:
            return Tag(suffix=_MAP)
        if kind is SequenceNode:
            return Tag(suffix=_SEQ)
        tags = [tag for tag, pattern in self.patterns if pattern.match(value)] if implicit[0] else []
        return Tag(suffix=tags[0] if tags else _STR)


class _WriteResolver(_ReadResolver):
    """The types that any reader may see in unquoted scalars; text that would resolve to one of them is quoted."""

    patterns = _CORE_SCHEMA + _OTHER_READERS


class _Representer(SafeRepresenter):
    """Writes every occurrence of a value in full, without anchors, and floats with a point, as YAML 1.1 needs it."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_float(self, data: float) -> ScalarNode:
        text = repr(data)
        return self.represent_scalar(_FLOAT, text if "." in text else text.replace("e", ".0e"))


_Representer.add_representer(float, _Representer.represent_float)


def _value(node: Node, parents: tuple[Node, ...], count: Iterator[int]) -> Any:
    """Return the value of a node inside `parents`, which are checked because an alias may lead back to one of them.

    `count` yields the number of values so far.
    """
    if next(count) > _MAX_VALUES:
        raise MarkedYAMLError(None, None, f"found more than {_MAX_VALUES} values", node.start_mark)
    if any(node is parent for parent in parents):
        raise MarkedYAMLError(None, None, "found a recursive alias", node.start_mark)
    if isinstance(node, SequenceNode) and node.tag == _SEQ:
        return [_value(item, (*parents, node), count) for item in node.value]
    if isinstance(node, MappingNode) and node.tag == _MAP:
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = _value(key_node, (*parents, node), count)
            if not isinstance(key, str):
                raise MarkedYAMLError(None, None, f"key {key!r} is not text", key_node.start_mark)
            if key in mapping:
                raise MarkedYAMLError(None, None, f"duplicate key {key!r}", key_node.start_mark)
            mapping[key] = _value(value_node, (*parents, node), count)
        return mapping
    if isinstance(node, ScalarNode) and node.tag in _SCALARS:
        try:
            return _SCALARS[node.tag](node.value)
        except ValueError as error:
            raise MarkedYAMLError(None, None, str(error), node.start_mark) from error
    raise MarkedYAMLError(None, None, f"tag {node.tag!r} is not allowed", node.start_mark)
