"""The keys of a recipe, in a file or on the command line: that they exist, stand once, and hold what they can hold."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from harmonize.errors import WrongUse
from headspark.config.kinds import KIND, all_classes, class_of, is_list, kinds_of, named_kinds, settled
from headspark.config.shape import check_shape, shown
from headspark.config.text import LARGEST_INT, check_numbers, walk

_LIKE, _LIKE_WORDS = 0.5, 0.65
"""How like a key that may have been meant is, at least, and its last word where that alone counts: 1 is the same."""


def recipe_keys(config_class: Any) -> Iterator[str]:
    """The dotted keys of a configuration class: sections and their fields, those of all kinds of a section."""
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        yield field.name
        classes = [] if is_list(field) else list(all_classes(field)) or [hints[field.name]]
        keys = [key for one in classes if dataclasses.is_dataclass(one) for key in recipe_keys(one)]
        yield from (f"{field.name}.{key}" for key in dict.fromkeys(keys))


def names_of(config_class: Any) -> list[str]:
    """The names of its fields."""
    return [field.name for field in dataclasses.fields(config_class)]


def upgraded(
    values: Mapping[str, Any], config_class: Any, kinds: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], Any]:
    """Plain values with today's keys for those of version 0.1.0, and the class with the kinds that they name.

    Args:
        values: As a file has them. A recipe's class knows its own old keys, and those of a section its, by ``upgrade``.
        config_class: What they shall make.
        kinds: Those that other places name; they count more.
    """
    if hasattr(config_class, "upgrade"):
        values = config_class.upgrade(values)
    config_class = settled(config_class, {**named_kinds(config_class, values), **(kinds or {})})
    sections = _sections(config_class)
    changed = {
        name: sections[name].upgrade(value)
        if isinstance(value, Mapping) and hasattr(sections.get(name), "upgrade")
        else value
        for name, value in values.items()
    }
    return changed, config_class


def kinds_on_command_line(argv: Sequence[str], config_class: Any) -> dict[str, Any]:
    """The kinds of parts that options name, as ``--head.kind NAME`` or within ``--head '{...}'``."""
    given: dict[str, Any] = {}
    for words in _options(argv):
        option, value = words[0].removeprefix("--").split("=", 1)[0], _value(words)
        if value is not None:
            given[option] = yaml.safe_load(value) if value.lstrip().startswith("{") else value
    return named_kinds(config_class, given)


def parted(argv: Sequence[str], own: Collection[str]) -> tuple[list[str], list[str]]:
    """The words of a command's own options, with those that belong to none; and those of the recipe's keys."""
    others: list[str] = []
    keys: list[str] = []
    for words in _options(argv):
        option = words[0].removeprefix("--").split("=", 1)[0]
        mine = not words[0].startswith("--") or (option in own and option != "print_config")
        (others if mine else keys).extend(words)
    return others, keys


def recipe_file(argv: Sequence[str]) -> Path | None:
    """The file that ``--config`` names, the last one where it stands twice."""
    found = None
    for words in _options(argv):
        value = _value(words)
        if words[0].split("=", 1)[0] == "--config" and value is not None:
            found = Path(value)
    return found


def of_other_kinds(config_class: Any, settled_class: Any) -> dict[str, str]:
    """The dotted keys that parts of the recipe would have if they were of another kind, and of which.

    Args:
        config_class: A recipe's.
        settled_class: The same with the kinds that are asked for.
    """
    sections, found = _sections(settled_class), dict[str, str]()
    for field in dataclasses.fields(config_class):
        if not kinds_of(field) or is_list(field):
            continue
        with_key: dict[str, list[str]] = {}
        for kind, one in kinds_of(field).items():
            for key in recipe_keys(one):
                with_key.setdefault(f"{field.name}.{key}", []).append(kind)
        asked = " or ".join(kind for kind, one in kinds_of(field).items() if one is sections.get(field.name))
        found |= {key: f"it is one of kind {', '.join(kinds)}, not of {asked}" for key, kinds in with_key.items()}
    return found


def check_options(
    argv: Sequence[str], own: set[str], config_class: Any, elsewhere: Mapping[str, str] = MappingProxyType({})
) -> list[str]:
    """Refuse keys that do not exist or stand twice; gives the words without the recipe's file.

    Args:
        argv: The words.
        own: The options that are no keys.
        config_class: What the keys shall make.
        elsewhere: As `of_other_kinds` gives it.
    """
    free, sections = _free_keys(config_class), _sections(config_class)
    valid = {*recipe_keys(config_class), *own, "print_config"}
    seen: set[str] = set()
    rest: list[str] = []
    for words in _options(argv):
        option, value = words[0].removeprefix("--").split("=", 1)[0], _value(words)
        if not words[0].startswith("--") or len(words[0]) == 2:
            rest += words
            continue
        if option not in valid:
            _check_list(option, config_class)
        if not any(option.startswith(f"{key}.") for key in free):
            _check_key(option, valid, where="on the command line", shown="--{}", elsewhere=elsewhere)
        keys = [option]
        if value is not None and option not in own:
            keys += _check_value(option, value, config_class)
        for key in keys:
            if key in seen and key not in ("debug", "help", *sections):
                raise WrongUse(f"--{key} stands twice on the command line; keep one")
        seen.update(keys)
        if option != "config" or value is None:
            rest += words
    return rest


def check_keys(
    values: Mapping[Any, Any],
    config_class: Any,
    *,
    where: str,
    prefix: str = "",
    more: Collection[str] = (),
    elsewhere: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Refuse keys that a configuration class does not have, and sections that are none.

    Args:
        values: Plain ones; at the top, keys may be dotted.
        config_class: What they shall make.
        where: Names the place in messages.
        prefix: The keys above, with a dot behind.
        more: Other keys that are taken.
        elsewhere: As `of_other_kinds` gives it.
    """
    hints, valid = typing.get_type_hints(config_class), {*recipe_keys(config_class), *more}
    free = _free_keys(config_class)
    for name, value in values.items():
        within = next((key for key in free if str(name).startswith(f"{key}.")), None)
        if within is not None:
            item = typing.get_args(_hint_of(within, config_class))[1]
            check_shape(value, item, key=f"{prefix}{name}", where=where)
            continue
        _check_key(f"{prefix}{name}", {f"{prefix}{key}" for key in valid}, where=where, elsewhere=elsewhere)
        hint = hints.get(name)
        if hint is None:  # a section's key with dots, or an option's
            hint = _hint_of(str(name), config_class)
        items = list(_parts(hint))
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, Mapping):
                message = f"{prefix}{name} {where}: a section of keys is wanted, it is {shown(value)}"
                raise WrongUse(message)
            check_keys(value, hint, where=where, prefix=f"{prefix}{name}.", elsewhere=elsewhere)
        elif items:
            if not isinstance(value, list | tuple):
                message = f"{prefix}{name} {where}: a list is wanted, it is {shown(value)}"
                raise WrongUse(message)
            for number, item in enumerate(value):
                if not isinstance(item, Mapping):
                    message = f"{prefix}{name}[{number}] {where}: keys are wanted, it is {shown(item)}"
                    raise WrongUse(message)
                key = f"{prefix}{name}[{number}]"
                one = items[0] if len(items) == 1 else class_of(_by_kind(items), item.get(KIND), key=key)
                check_keys(item, one, where=where, prefix=f"{key}.")
        elif hint is not None:
            check_shape(value, hint, key=f"{prefix}{name}", where=where)


def check_values(config: Any, prefix: str = "") -> None:
    """Refuse what a parser lets pass: numbers without end, and nothing where something is wanted."""
    hints = typing.get_type_hints(type(config))
    for name in names_of(type(config)):
        value, key = getattr(config, name), f"{prefix}{name}"
        if dataclasses.is_dataclass(value):
            check_values(value, f"{key}.")
        elif isinstance(value, tuple) and any(dataclasses.is_dataclass(item) for item in value):
            for number, item in enumerate(value):
                check_values(item, f"{key}[{number}].")
        elif value is None and type(None) not in typing.get_args(hints[name]):
            raise WrongUse(f"{key}: a value is wanted, it is empty")
        else:
            check_numbers(key, value)


def _check_value(option: str, value: str, config_class: Any) -> list[str]:
    """The keys in the value of an option; refuses those that do not exist or stand twice, and numbers beyond reason."""
    if value.lstrip("+-").isdigit() and len(value.lstrip("+-0")) > len(str(LARGEST_INT)):
        check_numbers(option, LARGEST_INT + 1)
    is_section = option in _sections(config_class)
    if not is_section and not value.lstrip().startswith(("{", "[")):
        return []
    keys = [written.path for written in walk(value, where=f"--{option}", below=option)]
    if is_section or option in names_of(config_class):
        check_keys({option: yaml.safe_load(value)}, config_class, where="on the command line")
    return keys


def _options(argv: Sequence[str]) -> Iterator[list[str]]:
    """Each option with its value, where that is a word of its own."""
    words: list[str] = []
    for word in argv:
        if word.startswith("--") or (words and ("=" in words[0] or len(words) == 2)):
            if words:
                yield words
            words = []
        words.append(word)
    if words:
        yield words


def _value(words: Sequence[str]) -> str | None:
    return words[1] if len(words) > 1 else words[0].split("=", 1)[1] if "=" in words[0] else None


def _free_keys(config_class: Any, prefix: str = "") -> set[str]:
    """Dotted keys of fields that are dicts: what stands below them is the user's own naming."""
    free: set[str] = set()
    hints = typing.get_type_hints(config_class)
    for name, hint in hints.items():
        if dataclasses.is_dataclass(hint):
            free |= _free_keys(hint, f"{prefix}{name}.")
        elif dict in (typing.get_origin(hint), *(typing.get_origin(part) for part in typing.get_args(hint))):
            free.add(f"{prefix}{name}")
    return free


def _sections(config_class: Any) -> dict[str, Any]:
    """The fields that are dataclasses themselves, and their classes."""
    return {name: hint for name, hint in typing.get_type_hints(config_class).items() if dataclasses.is_dataclass(hint)}


def _parts(hint: Any) -> Iterator[Any]:
    """The dataclasses of which a list consists."""
    for one in typing.get_args(hint):
        if dataclasses.is_dataclass(one):
            yield one
        elif isinstance(one, types.UnionType):
            yield from _parts(one)


def _by_kind(classes: Sequence[Any]) -> dict[str, Any]:
    """The classes by their kinds."""
    return {kind: one for one in classes for kind in typing.get_args(typing.get_type_hints(one)[KIND])}


def _hint_of(key: str, config_class: Any) -> Any:
    """The type of a dotted key; None for what is no key of the class."""
    hint: Any = config_class
    for name in key.split("."):
        hint = typing.get_type_hints(hint).get(name) if dataclasses.is_dataclass(hint) else None
    return hint


def _check_list(option: str, config_class: Any) -> None:
    """Refuse a part of a list, such as ``stages[0].steps``, before it is compared with keys that look like it.

    Raises:
        WrongUse: It is one.
    """
    for key in recipe_keys(config_class):
        if option.startswith((f"{key}[", f"{key}.")) and typing.get_origin(_hint_of(key, config_class)) in (
            tuple,
            list,
        ):
            raise WrongUse(
                f"--{option} on the command line: {key} is a list, of which a part cannot be given alone; write all of "
                f"it (--{key} '[...]'), or change it in a copy of the recipe"
            )


def _check_key(key: str, valid: set[str], *, where: str, elsewhere: Mapping[str, str], shown: str = "{}") -> None:
    if key in valid:
        return
    if key in elsewhere:
        raise WrongUse(f"unknown key {shown.format(key)} {where}: {elsewhere[key]}; leave it out")
    nearest = _nearest(key, {one for one in valid if not one.endswith(".help")})
    hint = f"; did you mean {shown.format(nearest)}?" if nearest else ""
    raise WrongUse(f"unknown key {shown.format(key)} {where}{hint}")


def _nearest(key: str, valid: set[str]) -> str | None:
    """The key that is most like another: as a whole, or by its last word, for sections are left out or mistaken."""

    def likeness(one: str) -> float:
        whole = difflib.SequenceMatcher(None, one, key).ratio()
        of_words = difflib.SequenceMatcher(None, one.rpartition(".")[2], key.rpartition(".")[2]).ratio()
        return max(whole, of_words if of_words >= _LIKE_WORDS else 0.0)

    best = max(sorted(valid), key=likeness)
    return best if likeness(best) >= _LIKE else None
