"""A typed recipe from YAML and dotted command-line overrides; whatever is misspelt or impossible is refused by name."""

from __future__ import annotations

import dataclasses
import re
import typing
from argparse import SUPPRESS, ArgumentError
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from harmonize.errors import WrongUse
from headspark.config.keys import (
    check_keys,
    check_options,
    check_values,
    kinds_on_command_line,
    names_of,
    of_other_kinds,
    parted,
    recipe_file,
    recipe_keys,
    upgraded,
)
from headspark.config.kinds import KIND, Kinds, class_of, settled
from headspark.config.plain import to_plain
from headspark.config.shape import shown
from headspark.config.shipped import SECTIONS, command_of, locate_recipe
from headspark.config.text import check_numbers, read_mapping

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace  # slow to load, and only command lines need it

T = TypeVar("T")

_OF_THE_COMMAND_LINE = {"config", "debug", "help", "print_config"}
"""Options that no recipe can give."""


def recipe_parser(config_class: type, *, prog: str, description: str) -> ArgumentParser:
    """A parser with ``--config``, ``--debug`` and one dotted option for every key of `config_class`.

    `config_class` is a dataclass whose fields are either plain values or dataclasses (sections) of plain values.
    The caller adds its own options with ``parser.add_argument``.
    """
    from jsonargparse import ArgumentParser

    config_class = settled(config_class, {})
    parser = ArgumentParser(prog=prog, description=description, exit_on_error=False)
    parser.add_argument("--config", action="config", help="recipe file (YAML), or the name of one that comes along")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        if dataclasses.is_dataclass(hints[field.name]):
            parser.add_argument(f"--{field.name}", type=hints[field.name])
        else:
            parser.add_argument(f"--{field.name}", type=hints[field.name], default=_default(field))
    for action in parser._actions:
        if action.dest in hints and dataclasses.is_dataclass(hints[action.dest]):
            action.help = SUPPRESS  # jsonargparse would take a file for a whole section; `check_options` refuses it
    return parser


def parse_recipe(parser: ArgumentParser, config_class: type[T], argv: Sequence[str]) -> tuple[T, Namespace]:
    """Read `argv`: the recipe, and the values of the caller's own options.

    A recipe is read once, here; jsonargparse, which would take some values for names of files or classes and import
    them, gets what was read, and only after each value was found to have its key's shape.

    Raises:
        WrongUse: In one line that names the key, for an unknown key (and the nearest valid one),
            a wrong type or an impossible combination.
    """
    own = _own_options(parser, config_class)
    path, kinds = recipe_file(argv), kinds_on_command_line(argv, config_class)
    read: dict[str, Any] = {}
    settled_class = settled(config_class, kinds)
    if path is not None:
        read, settled_class = _read(locate_recipe(path), config_class, own, kinds)
    words = check_options(argv, own, settled_class, of_other_kinds(config_class, settled_class))
    values = {name: value for name, value in read.items() if name not in own}
    others, words = parted(words, own)
    others = [f"--{name}={value}" for name, value in read.items() if name in own] + others
    bare = recipe_parser(settled_class, prog=parser.prog, description="")
    with _wrong_use():
        if "--help" in others:
            parser.parse_args(others)
        begun = bare.parse_object(values, defaults=False) if values else None
        made = bare.instantiate(bare.parse_args(words, namespace=begun))
        recipe = config_class(**{name: made[name] for name in names_of(config_class)})
        options = parser.parse_args(others)
    check_values(recipe)
    from jsonargparse import Namespace

    return recipe, Namespace(**{name: options[name] for name in vars(options) if name not in names_of(config_class)})


def read_recipe(config_class: type[T], path: Path) -> T:
    """The recipe in a YAML file.

    Raises:
        WrongUse: As `parse_recipe`.
    """
    parser = recipe_parser(config_class, prog="recipe", description="")
    return parse_recipe(parser, config_class, ["--config", str(path)])[0]


def from_plain(config_class: type[T], values: Mapping[str, Any]) -> T:
    """Build a configuration from plain values as JSON or YAML hold them (lists for tuples).

    Raises:
        WrongUse: For an unknown key or a wrong type.
    """
    where = f"for {config_class.__name__}"
    if not isinstance(values, Mapping):
        raise WrongUse(f"keys are wanted {where}, it is {shown(values)}")
    values, settled_class = upgraded(values, config_class)
    check_keys(values, settled_class, where=where)
    check_numbers("", values)
    parser = recipe_parser(settled_class, prog="recipe", description="")
    with _wrong_use():
        made = parser.instantiate(parser.parse_object(dict(values)))
        config = config_class(**{name: made[name] for name in names_of(config_class)})
    check_values(config)
    return config


def part_from_plain(kinds: Kinds, values: Mapping[str, Any], *, default: str, key: str) -> Any:
    """Build a part of some kind from plain values.

    Args:
        kinds: As of `headspark.config.kinds.one_of`.
        values: With `kind` among them, or `default`'s.
        default: The kind where none is named.
        key: Names the part in messages.

    Raises:
        WrongUse: There is no such kind, or as `from_plain`.
    """
    kind = values.get(KIND, default) if isinstance(values, Mapping) else default
    return from_plain(class_of(kinds, kind, key=key), values)


def _read(path: Path, config_class: Any, own: Collection[str], kinds: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """The keys of a recipe file, checked, and the class with the kinds that it names."""
    values = read_mapping(path)
    _check_command(path, values.keys() - set(own), config_class)
    values, settled_class = upgraded(values, config_class, kinds)
    if "config" in values:
        raise WrongUse(f"{path}: a recipe cannot name another (config)")
    own = set(own) - _OF_THE_COMMAND_LINE
    elsewhere = of_other_kinds(config_class, settled_class)
    check_keys(values, settled_class, where=f"in {path}", more=own, elsewhere=elsewhere)
    for name in own & values.keys():
        if not isinstance(values[name], str):
            raise WrongUse(f"{name} in {path}: a text is wanted, it is {shown(values[name])}")
    check_numbers("", values)
    return values, settled_class


def _check_command(path: Path, keys: Collection[Any], config_class: Any) -> None:
    """Refuse the recipe of another command before its keys are compared with the nearest of this one's."""
    names, command = set(names_of(config_class)), command_of(keys)
    is_of_a_command = any(sections <= names for sections in SECTIONS.values())
    if command is not None and is_of_a_command and not SECTIONS[command] <= names:
        raise WrongUse(f"{path}: is a recipe of `{command}`; `headspark recipes` lists those of each command")


@contextmanager
def _wrong_use() -> Iterator[None]:
    try:
        yield
    except (ArgumentError, ValueError, TypeError, OverflowError) as error:
        raise WrongUse(_one_line(error)) from error


def _default(field: dataclasses.Field[Any]) -> Any:
    if isinstance(field.default, tuple) and any(dataclasses.is_dataclass(item) for item in field.default):
        return [to_plain(item) for item in field.default]  # of several classes, which jsonargparse cannot write
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _own_options(parser: ArgumentParser, config_class: Any) -> set[str]:
    """The options that are no keys of the recipe."""
    names = {option.removeprefix("--") for action in parser._actions for option in action.option_strings} | {"help"}
    return names - set(recipe_keys(config_class))


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    text = re.sub(r"""Parser key "([^"]+)":""", r"\1:", text)
    if text.startswith("the following arguments are required: "):
        text = re.sub(r"(?<=[:,] )(?=\w)", "--", text)
    text = re.sub(r"<class '(\w+)'>", r"\1", text).replace("typing.", "")
    text = re.sub(r"Problem with given class_path '[\w.]+':", "", text).replace(":  ", ": ")
    text = re.sub(
        r"Does not validate against any of the Union subtypes Subtypes: \[(.*?)\] Errors: .*? Given value type: \w+ "
        r"Given value:", r"Expected one of \1. Got value:", text,
    )  # fmt: skip
    if re.search(r"Got value: (True|False)$", text):
        text += "; YAML reads yes, no, on and off as true and false: put a word into quotes"
    return text
