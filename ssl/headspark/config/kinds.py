"""Parts of a recipe of which one is picked by its ``kind``: each kind is a dataclass with keys of its own.

A field made by `one_of` or `some_of` stands for any of the kinds. Before a recipe is parsed, `settled` puts the kinds
that it names in their places; from there on every part has one class, and its keys are checked like all others.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping
from functools import cache, reduce
from operator import or_
from typing import Any

from harmonize.errors import WrongUse

KIND = "kind"
KINDS = "kinds"

Kinds = Mapping[str, type]
"""The dataclass of each kind; its field `kind` has the name as its default."""


def one_of(kinds: Kinds, default: str) -> Any:
    """A field of a recipe that is one part of some kind.

    Args:
        kinds: What there is.
        default: The kind that stands there, with its own defaults, if nothing is said.
    """
    return dataclasses.field(default_factory=lambda: kinds[default](), metadata={KINDS: kinds})


def some_of(kinds: Kinds, default: tuple[Any, ...] = ()) -> Any:
    """A field of a recipe that is a list of parts, each of some kind.

    Args:
        kinds: What there is.
        default: What stands there if nothing is said.
    """
    return dataclasses.field(default=default, metadata={KINDS: kinds})


def kinds_of(field: dataclasses.Field[Any]) -> Kinds:
    """The kinds of a field; empty for one that has a class of its own."""
    return typing.cast(Kinds, field.metadata.get(KINDS, {}))


def is_list(field: dataclasses.Field[Any]) -> bool:
    """Whether a field with kinds is a list of parts."""
    return bool(kinds_of(field)) and field.default is not dataclasses.MISSING


def class_of(kinds: Kinds, kind: Any, *, key: str) -> type:
    """The class of a kind.

    Raises:
        WrongUse: There is no such kind; names the nearest.
    """
    if isinstance(kind, str) and kind in kinds:
        return kinds[kind]
    offered = ", ".join(kinds)
    if kind is None:
        raise WrongUse(f"{key}.{KIND}: is missing; one of {offered}")
    nearest = difflib.get_close_matches(str(kind), kinds, n=1, cutoff=0.5)
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    raise WrongUse(f"{key}.{KIND} {str(kind)[:60]!r}: there is none of that name, but {offered}{hint}")


def settled(config_class: Any, kinds: Mapping[str, Any]) -> Any:
    """The class with one dataclass in the place of each part of some kind.

    Args:
        config_class: A recipe's.
        kinds: The kind of each part, by the name of its field; the others get that of their default.

    Returns:
        A dataclass with the same fields in the same order, or `config_class` itself where it has no such part.

    Raises:
        WrongUse: There is no such kind.
    """
    if not any(kinds_of(field) for field in dataclasses.fields(config_class)):
        return config_class
    chosen = {
        field.name: class_of(kinds_of(field), kinds.get(field.name, field.default_factory().kind), key=field.name)
        for field in dataclasses.fields(config_class)
        if kinds_of(field) and not is_list(field) and field.default_factory is not dataclasses.MISSING
    }
    return _with_classes(config_class, tuple(chosen.items()))


@cache
def _with_classes(config_class: Any, chosen: tuple[tuple[str, type], ...]) -> Any:
    """A dataclass like another, with classes in the place of its parts of some kind."""
    hints, classes = typing.get_type_hints(config_class), dict(chosen)
    fields: list[tuple[str, Any, Any]] = []
    for field in dataclasses.fields(config_class):
        if field.name in classes:
            one = classes[field.name]
            fields.append((field.name, one, dataclasses.field(default_factory=one)))
        elif is_list(field):
            hint: Any = types.GenericAlias(tuple, (reduce(or_, kinds_of(field).values()), ...))
            fields.append((field.name, hint, _like(field)))
        else:
            fields.append((field.name, hints[field.name], _like(field)))
    return dataclasses.make_dataclass(config_class.__name__, fields, frozen=True, kw_only=True)


def named_kinds(config_class: Any, values: Mapping[Any, Any]) -> dict[str, Any]:
    """The kinds that plain values name, by the names of the parts; keys may be dotted, as those of the command line."""
    named: dict[str, Any] = {}
    for field in dataclasses.fields(config_class):
        if not kinds_of(field) or is_list(field):
            continue
        part = values.get(field.name)
        if isinstance(part, Mapping) and KIND in part:
            named[field.name] = part[KIND]
        if f"{field.name}.{KIND}" in values:
            named[field.name] = values[f"{field.name}.{KIND}"]
    return named


def all_classes(field: dataclasses.Field[Any]) -> Iterator[type]:
    """The classes of a field's kinds, each once."""
    yield from dict.fromkeys(kinds_of(field).values())


def _like(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return dataclasses.field(default=field.default)
    if field.default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=field.default_factory)
    return dataclasses.field()
