"""A typed recipe from YAML and dotted command-line overrides; whatever is misspelt or impossible is refused by name."""

from __future__ import annotations

import dataclasses
import re
import typing
from argparse import ArgumentError
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from jsonargparse import ArgumentParser, Namespace

from harmonize.errors import WrongUse
from headspark.config.keys import check_keys, check_options, check_values, names_of, recipe_keys, upgraded
from headspark.config.shape import shown
from headspark.config.text import check_numbers, read_mapping

T = TypeVar("T")

_OF_THE_COMMAND_LINE = {"config", "debug", "help", "print_config"}
"""Options that no recipe can give."""


def recipe_parser(config_class: type, *, prog: str, description: str) -> ArgumentParser:
    """A parser with ``--config``, ``--debug`` and one dotted option for every key of `config_class`.

    `config_class` is a dataclass whose fields are either plain values or dataclasses (sections) of plain values.
    The caller adds its own options with ``parser.add_argument``.
    """
    parser = ArgumentParser(prog=prog, description=description, exit_on_error=False)
    parser.add_argument("--config", action="config", help="recipe file (YAML)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        if dataclasses.is_dataclass(hints[field.name]):
            parser.add_argument(f"--{field.name}", type=hints[field.name])
        else:
            parser.add_argument(f"--{field.name}", type=hints[field.name], default=_default(field))
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
    path, argv = check_options(argv, own, config_class)
    values: dict[str, Any] = {}
    words: list[str] = []
    if path is not None:
        for name, value in _read(path, config_class, own).items():
            if name in own:
                words.append(f"--{name}={value}")
            else:
                values[name] = value
    bare = recipe_parser(config_class, prog=parser.prog, description="")
    with _wrong_use():
        begun = bare.parse_object(values, defaults=False) if values else None
        made = parser.instantiate(parser.parse_args([*words, *argv], namespace=begun))
        recipe = config_class(**{name: made[name] for name in names_of(config_class)})
    check_values(recipe)
    return recipe, Namespace(**{name: made[name] for name in vars(made) if name not in names_of(config_class)})


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
    values = upgraded(values, config_class)
    check_keys(values, config_class, where=where)
    check_numbers("", values)
    parser = recipe_parser(config_class, prog="recipe", description="")
    with _wrong_use():
        made = parser.instantiate(parser.parse_object(dict(values)))
        config = config_class(**{name: made[name] for name in names_of(config_class)})
    check_values(config)
    return config


def _read(path: Path, config_class: Any, own: Collection[str]) -> dict[str, Any]:
    """The keys of a recipe file, checked."""
    values = upgraded(read_mapping(path), config_class)
    if "config" in values:
        raise WrongUse(f"{path}: a recipe cannot name another (config)")
    own = set(own) - _OF_THE_COMMAND_LINE
    check_keys(values, config_class, where=f"in {path}", more=own)
    for name in own & values.keys():
        if not isinstance(values[name], str):
            raise WrongUse(f"{name} in {path}: a text is wanted, it is {shown(values[name])}")
    check_numbers("", values)
    return values


@contextmanager
def _wrong_use() -> Iterator[None]:
    try:
        yield
    except (ArgumentError, ValueError, TypeError, OverflowError) as error:
        raise WrongUse(_one_line(error)) from error


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _own_options(parser: ArgumentParser, config_class: Any) -> set[str]:
    """The options that are no keys of the recipe."""
    names = {option.removeprefix("--") for action in parser._actions for option in action.option_strings} | {"help"}
    return names - set(recipe_keys(config_class))


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    text = re.sub(r"""Parser key "([^"]+)":""", r"\1:", text)
    text = re.sub(r"<class '(\w+)'>", r"\1", text).replace("typing.", "")
    text = re.sub(r"Problem with given class_path '[\w.]+':", "", text).replace(":  ", ": ")
    text = re.sub(
        r"Does not validate against any of the Union subtypes Subtypes: \[(.*?)\] Errors: .*? Given value type: \w+ "
        r"Given value:", r"Expected one of \1. Got value:", text,
    )  # fmt: skip
    if re.search(r"Got value: (True|False)$", text):
        text += "; YAML reads yes, no, on and off as true and false: put a word into quotes"
    return text
