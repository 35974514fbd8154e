"""The text of a recipe, before its values get a type: what YAML would pass over in silence is refused here."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from harmonize.bounded_files import read_small
from harmonize.errors import WrongUse

LARGEST_INT = 2**63 - 1
_MERGE, _TEXT, _INT, _FLOAT = (f"tag:yaml.org,2002:{name}" for name in ("merge", "str", "int", "float"))
_OCTAL = re.compile(r"[-+]?0[0-9_]+")
_DIGITS = 19
"""Of `LARGEST_INT`."""

LARGEST_RECIPE = 1 << 18
"""Bytes; ours have some 2 kB."""
MOST_VALUES, MOST_LEVELS, LONGEST_VALUE = 10_000, 32, 4096
"""Of a recipe: keys and values, what an alias stands for counted at every place; sections in sections; characters."""


@dataclass(frozen=True, slots=True)
class Written:
    """A key as it stands in a text.

    Attributes:
        path: Dotted, from the top: ``optim.lr``, ``stages[0].name``.
        line: Counted from 1.
    """

    path: str
    line: int


def read_mapping(path: Path) -> dict[str, Any]:
    """The keys and values of a recipe.

    Raises:
        WrongUse: In one line: it cannot be read, is no UTF-8, no YAML, holds no keys, has a key
            twice, or a value that YAML takes for something else than a person would.
    """
    text = _read(path)
    written = list(walk(text, where=f"recipe {path}"))
    values = yaml.safe_load(text)
    if not isinstance(values, dict) or not written:
        raise _wrong(f"recipe {path} holds no keys")
    return values


def walk(text: str, *, where: str, below: str = "") -> Iterator[Written]:
    """All keys of a YAML text.

    Args:
        text: Of a recipe, or of one value on the command line.
        where: Names the text in messages.
        below: The key that the text is the value of.

    Raises:
        WrongUse: As `read_mapping`.
    """
    try:
        _check_size(text, where)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None:
            yaml.safe_load(text)  # so that what cannot be built is an error here
    except yaml.YAMLError as error:
        raise _wrong(f"{where} is not YAML: {_fault(error)}") from error
    except (ValueError, OverflowError) as error:
        raise _wrong(f"{where} is not YAML: {' '.join(str(error).split())}") from error
    # What PyYAML lets slip for a value that is not of the type that a tag (!!int, !!timestamp ...) says it is.
    except (LookupError, AttributeError, TypeError) as error:
        raise _wrong(f"{where} is not YAML: a value does not fit its !!tag; leave the tag out") from error
    if node is not None:
        lines: dict[str, int] = {}
        for written in _keys(node, f"{below}." if below else "", where, ()):
            if written.path in lines:
                first, again = lines[written.path], written.line
                which = f"lines {first} and {again}" if first != again else f"line {first}"
                raise _wrong(f"{where}: {written.path} stands twice, in {which}; keep one")
            lines[written.path] = written.line
            yield written


def check_numbers(key: str, value: Any) -> None:
    """Refuse numbers that nothing can compute with.

    Args:
        key: Names the value.
        value: Plain: dicts, lists, numbers, strings.

    Raises:
        WrongUse: Not finite, or beyond 64 bits.
    """
    if isinstance(value, Mapping):
        for name, item in value.items():
            check_numbers(f"{key}.{name}" if key else str(name), item)
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            check_numbers(f"{key}[{number}]", item)
    elif isinstance(value, float) and not math.isfinite(value):
        raise _wrong(f"{key} {value}: must be a finite number")
    elif isinstance(value, int) and abs(value) > LARGEST_INT:
        raise _too_large(key)


def _check_size(text: str, where: str) -> None:
    """Refuse a text that would cost more than it is, while it is looked at event by event and nothing is built.

    Ten lines in which every list holds the one before nine times say a milliard values.

    Raises:
        WrongUse: It holds too many values, too deep ones, or a too long one.
    """
    sizes: dict[str, int] = {}  # of what has an anchor, when it is complete
    open_: list[tuple[str | None, int]] = [(None, 0)]  # anchors, and the size of what stands around each
    size = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            size += sizes.get(str(event.anchor), 1)
        elif isinstance(event, yaml.ScalarEvent):
            size += 1
            if event.anchor is not None:
                sizes[event.anchor] = 1
            if len(event.value) > LONGEST_VALUE:
                raise _wrong(f"{where}, {_at(event)}: a value of more than {LONGEST_VALUE} characters")
        elif isinstance(event, yaml.CollectionStartEvent):
            open_.append((event.anchor, size))
            size = 1
            if len(open_) > MOST_LEVELS + 1:
                raise _wrong(f"{where}, {_at(event)}: more than {MOST_LEVELS} levels of nesting")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, around = open_.pop()
            if anchor is not None:
                sizes[anchor] = size
            size += around
        if size > MOST_VALUES:
            raise _wrong(f"{where}, {_at(event)}: more than {MOST_VALUES} values, each alias counted in full")


def _at(event: yaml.Event) -> str:
    return "the text" if event.start_mark is None else f"line {event.start_mark.line + 1}"


def _keys(node: Node, prefix: str, where: str, above: tuple[Node, ...]) -> Iterator[Written]:
    if any(node is one for one in above):
        raise _wrong(f"{where}, line {_line(node)}: a value that holds itself")
    above = (*above, node)
    if isinstance(node, ScalarNode):
        _check_scalar(node, prefix[:-1], where)
    elif isinstance(node, SequenceNode):
        for number, item in enumerate(node.value):
            yield from _keys(item, f"{prefix[:-1]}[{number}].", where, above)
    elif isinstance(node, MappingNode):
        for key, value in node.value:
            if not isinstance(key, ScalarNode):
                raise _wrong(f"{where}, line {_line(key)}: a key must be one word")
            path = f"{prefix}{key.value}"
            if key.tag not in (_TEXT, _MERGE):
                kind = key.tag.rpartition(":")[2]
                raise _wrong(f"{where}, line {_line(key)}: unknown key {path} (YAML reads {key.value} as a {kind})")
            yield Written(path, _line(key))
            if key.tag == _TEXT:  # what is merged in was looked at where it stands
                yield from _keys(value, f"{path}.", where, above)


def _check_scalar(node: ScalarNode, key: str, where: str) -> None:
    if node.tag not in (_INT, _FLOAT) or node.style is not None:
        return
    if node.tag == _FLOAT and ":" not in node.value:
        return
    if _OCTAL.fullmatch(node.value) or ":" in node.value:
        value = str(yaml.safe_load(node.value))[:40]
        raise _wrong(f"{where}, line {_line(node)}: {key} {node.value[:40]} is {value} to YAML; write the number out")
    if len(node.value) > _DIGITS and abs(yaml.safe_load(node.value)) > LARGEST_INT:
        raise _too_large(f"{where}, line {_line(node)}: {key}")


def _read(path: Path) -> str:
    try:
        content = read_small(path, limit=LARGEST_RECIPE)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise _wrong(f"recipe {path} cannot be read: {reason}") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        kind = "UTF-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else f"line {line} is not UTF-8"
        raise _wrong(f"recipe {path} cannot be read: {kind}; save it as UTF-8") from error


def _fault(error: yaml.YAMLError) -> str:
    """The problem and its line; PyYAML's own text goes over several lines and shows the source."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or " ".join(str(error).split())
    if "'\\t'" in problem:
        problem = "a tab; YAML is indented with spaces"
    return problem if mark is None else f"{problem} (line {mark.line + 1})"


def _line(node: Node) -> int:
    return node.start_mark.line + 1


def _too_large(key: str) -> WrongUse:
    return _wrong(f"{key}: too large a number; {LARGEST_INT} is the largest")


def _wrong(message: str) -> WrongUse:
    return WrongUse(message)
