"""The one reader of YAML: values with the places of their parts, and what YAML itself would let pass."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from poise.errors import BrokenYAML

__all__ = ["LineFinder", "YAMLDocument", "keys_that_are_no_text", "parse_yaml"]


@dataclass(frozen=True, slots=True)
class YAMLDocument:
    """A YAML document, with the places of its parts.

    Attributes:
        values: Dicts, lists and scalars.
        root: The composed document, for ``LineFinder``; ``None`` where the text is empty.
        repeated: Keys that their mapping has already.
    """

    values: Any
    root: yaml.Node | None
    repeated: tuple[yaml.ScalarNode, ...]


class PlainLoader(yaml.SafeLoader):
    """YAML's core types as YAML 1.1 and 1.2 both read them.

    ``1e-5`` is a number, as in 1.2. What 1.1 reads as octal or in sixties (``010`` as 8, ``1:30`` as 90), and what
    Python makes no number or date of, is an error with its line.
    """


def _construct_scalar(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Any:
    text, kind = str(node.value), node.tag.rpartition(":")[2]
    if kind in ("int", "float") and (re.fullmatch(r"[-+]?0[0-9_]+", text) or ":" in text):
        problem = f"{text} is read as one number by some programs and as another by others"
        remedy = "write it without leading zeros and colons, or in quotes where it is text"
        raise yaml.constructor.ConstructorError(None, None, f"{problem}: {remedy}", node.start_mark)
    try:
        return CONSTRUCTORS[kind](loader, node)
    except ValueError as error:
        shown = text if len(text) < 40 else f"{text[:20]}… ({len(text):,} characters)"
        what = "no date" if kind == "timestamp" else "no number that can be read"
        problem = f"{shown} is {what}; put it in quotes where it is text"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error


CONSTRUCTORS: dict[str, Callable[[yaml.SafeLoader, yaml.ScalarNode], Any]] = {
    "int": yaml.SafeLoader.construct_yaml_int,
    "float": yaml.SafeLoader.construct_yaml_float,
    "timestamp": yaml.SafeLoader.construct_yaml_timestamp,
}
for kind in CONSTRUCTORS:
    PlainLoader.add_constructor(f"tag:yaml.org,2002:{kind}", _construct_scalar)
PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:[0-9]+\.?|[0-9]*\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def parse_yaml(text: str, *, scalars: Literal["typed", "text"] = "typed") -> YAMLDocument:
    """The one reader of YAML in Poise.

    Args:
        text: One document.
        scalars: ``typed`` as YAML's core types; ``text`` as written, but for null.

    Raises:
        BrokenYAML: it does not parse, holds a control character, has a key that is no scalar, or refers to itself.
    """
    try:
        loader = PlainLoader(text)
        root = loader.get_single_node()
        repeated = tuple(_repeated(root))
        values = _typed_values(loader, root) if scalars == "typed" else _text_values(root, {})
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise BrokenYAML(f"holds the control character {error.character:#04x}", line) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        what = getattr(error, "problem", None) or getattr(error, "context", None) or "it cannot be read"
        raise BrokenYAML(f"broken YAML, {what}", mark.line + 1 if mark else None) from error
    except RecursionError as error:
        raise BrokenYAML("nested too deeply or refers to itself; leave anchors out", None) from error
    return YAMLDocument(values, root, repeated)


def _typed_values(loader: PlainLoader, root: yaml.Node | None) -> Any:
    return None if root is None else loader.construct_document(root)


def _repeated(node: yaml.Node | None, seen: set[int] | None = None) -> Iterator[yaml.ScalarNode]:
    """Keys that their mapping has already; an alias, which is its anchor's node, is looked at once."""
    visited = set() if seen is None else seen
    if node is None or id(node) in visited:
        return
    visited.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _repeated(item, visited)
    if isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a field without a name", problem_mark=key.start_mark)
            if key.value in keys:
                yield key
            keys.add(key.value)
            yield from _repeated(value, visited)


def keys_that_are_no_text(node: yaml.Node | None, seen: set[int] | None = None) -> Iterator[yaml.ScalarNode]:
    """Keys that YAML reads as numbers, dates, true, false or null; an alias is looked at once."""
    visited = set() if seen is None else seen
    if node is None or id(node) in visited:
        return
    visited.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from keys_that_are_no_text(item, visited)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                yield key
            yield from keys_that_are_no_text(value, visited)


def _text_values(node: yaml.Node | None, built: dict[int, Any]) -> Any:
    """Dicts, lists and texts: `yes` and `1984` make good answers.

    Args:
        node: Node of the composed document.
        built: Values by node, so that an alias is built once.
    """
    if node is None or node.tag == "tag:yaml.org,2002:null":
        return None
    if id(node) in built:
        return built[id(node)]
    if isinstance(node, yaml.MappingNode):
        fields: dict[str, Any] = {}
        built[id(node)] = fields
        fields.update((key.value, _text_values(value, built)) for key, value in node.value)
        return fields
    if isinstance(node, yaml.SequenceNode):
        items: list[Any] = []
        built[id(node)] = items
        items.extend(_text_values(item, built) for item in node.value)
        return items
    return node.value


class LineFinder:
    """Finds the lines of many places of one document: each of its mappings is gone through once.

    Args:
        root: The composed document; ``None`` where the text is empty.
    """

    def __init__(self, root: yaml.Node | None) -> None:
        self._root = root
        self._fields: dict[int, dict[str, tuple[yaml.Node, yaml.Node]]] = {}  # by the mapping's id

    def __call__(self, place: tuple[int | str, ...]) -> int:
        """Line, from 1, of the field at ``place``, or of the nearest one above it that is there."""
        node, mark = self._root, self._root.start_mark if self._root else None
        for part in place:
            if isinstance(node, yaml.MappingNode):
                key, node = self._fields_of(node).get(str(part), (None, None))
                mark = key.start_mark if key else mark
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
                node = node.value[part]
                mark = node.start_mark
            else:
                break
        return mark.line + 1 if mark else 1

    def _fields_of(self, node: yaml.MappingNode) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        if id(node) not in self._fields:
            self._fields[id(node)] = {key.value: (key, value) for key, value in reversed(node.value)}  # the first wins
        return self._fields[id(node)]
