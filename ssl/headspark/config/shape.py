"""Whether a plain value has the shape that a key's type asks for, before anything looks into it.

jsonargparse takes a text or a mapping where a list or a section is wanted for the name of a file or of a class to
import. So nothing reaches it but numbers, words, lists and mappings at the places that are made for them.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from harmonize.errors import WrongUse
from headspark.config.text import check_numbers

_LONGEST_NUMBER = 64
_NO_NUMBER = frozenset("[]{}&*!#|>%@`'\"\n\r\t:/")
"""Characters that make more of a text than a number or a word, where YAML reads it once more."""

_SHOWN = 60


def check_shape(value: Any, hint: Any, *, key: str, where: str) -> None:
    """Refuse a value that cannot be one of a type, whatever it says.

    Args:
        value: Plain, as YAML or JSON gives it.
        hint: The type: numbers, text, Literal, tuples and dicts of these, unions of these.
        key: Names the value.
        where: Names the place.

    Raises:
        WrongUse: A mapping or a list where none is wanted, a text where one is wanted, nothing where
            something is, or something that is neither of these nor a number.
    """
    kinds = list(_alternatives(hint))
    fault = None
    if isinstance(value, Mapping):
        fitting = [kind for kind in kinds if typing.get_origin(kind) is dict]
        fault = None if fitting else f"{_wanted(kinds)} is wanted"
        for name, item in value.items() if fitting else ():
            if not isinstance(name, str):
                raise _wrong(f"{key} {where}: {name!r} is no name; put it into quotes")
            check_shape(item, typing.get_args(fitting[0])[1], key=f"{key}.{name}", where=where)
    elif isinstance(value, list | tuple):
        fitting = [kind for kind in kinds if typing.get_origin(kind) is tuple]
        fault = None if fitting else f"{_wanted(kinds)} is wanted"
        for number, item in enumerate(value if fitting else ()):
            check_shape(item, _item(fitting[0], number), key=f"{key}[{number}]", where=where)
    elif isinstance(value, str):
        plain = [kind for kind in kinds if typing.get_origin(kind) not in (tuple, dict)]
        if not plain:
            fault = f"{_wanted(kinds)} is wanted"
        elif str not in plain and (len(value) > _LONGEST_NUMBER or _NO_NUMBER & set(value)):
            fault = f"{_wanted(plain)} is wanted"
        elif float in plain:
            with suppress(ValueError):  # 1e999, which is a text to YAML
                check_numbers(key, float(value))
    elif value is None:
        fault = None if type(None) in kinds else f"{_wanted(kinds)} is wanted"
    elif not isinstance(value, bool | int | float):
        fault = f"{_wanted(kinds)} is wanted"
    if fault is not None:
        raise _wrong(f"{key} {where}: {fault}, it is {shown(value)}")


def shown(value: Any) -> str:
    """A value for a message; not all of it, for it may be long, or hold the same thing a thousand times.

    Example:
        >>> shown("inner.yaml"), shown([1, [2, 3]]), shown({"class_path": "x"}), shown(None)
        ("'inner.yaml'", 'a list', 'a mapping', 'empty')
    """
    if value is None:
        return "empty"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ..."


def _alternatives(hint: Any) -> typing.Iterator[Any]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        for one in typing.get_args(hint):
            yield from _alternatives(one)
    else:
        yield hint


def _item(hint: Any, number: int) -> Any:
    """The type of one item of a tuple; that it has too many is the parser's to say."""
    items = [one for one in typing.get_args(hint) if one is not Ellipsis]
    return items[min(number, len(items) - 1)]


def _wanted(kinds: list[Any]) -> str:
    words = []
    for kind in kinds:
        origin = typing.get_origin(kind)
        if origin is typing.Literal:
            words.append("one of " + ", ".join(map(str, typing.get_args(kind))))
        elif kind is not type(None):
            names = {tuple: "a list", dict: "a mapping", int: "a whole number", float: "a number", str: "a text"}
            words.append(names.get(origin or kind) or ("true or false" if kind is bool else "a value"))
    return " or ".join(words)


def _wrong(message: str) -> WrongUse:
    return WrongUse(message)
