"""A typed recipe from YAML and dotted command-line overrides; whatever is misspelt or impossible is refused by name."""

from __future__ import annotations

import dataclasses
import difflib
import errno
import re
import typing
from argparse import ArgumentError
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentParser, Namespace

from harmonize.errors import UserError
from harmonize.terminal import escape_texts_of_errors, warn
from headspark.config.checks import WRONG_USE
from headspark.config.shape import check_shape, shown
from headspark.config.text import LARGEST_INT, check_numbers, read_mapping, walk

T = TypeVar("T")
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""No room on the disk, in the user's quota, or for a file of that size."""

_OF_THE_COMMAND_LINE = {"config", "debug", "help", "print_config"}
"""Options that no recipe can give."""

_NO_MEMORY = re.compile("out of memory|can't allocate memory|Storage size calculation overflowed|not enough memory")
"""What PyTorch says on a GPU, and three things that it says on a CPU."""


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
        UserError: With exit code 2 and one line that names the key, for an unknown key (and the nearest valid one),
            a wrong type or an impossible combination.
    """
    own = _own_options(parser, config_class)
    path, argv = _check_options(argv, own, config_class)
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
        recipe = config_class(**{name: made[name] for name in _names(config_class)})
    _check_values(recipe)
    return recipe, Namespace(**{name: made[name] for name in vars(made) if name not in _names(config_class)})


def read_recipe(config_class: type[T], path: Path) -> T:
    """The recipe in a YAML file.

    Raises:
        UserError: As `parse_recipe`.
    """
    parser = recipe_parser(config_class, prog="recipe", description="")
    return parse_recipe(parser, config_class, ["--config", str(path)])[0]


def from_plain(config_class: type[T], values: Mapping[str, Any]) -> T:
    """Build a configuration from plain values as JSON or YAML hold them (lists for tuples).

    Raises:
        UserError: For an unknown key or a wrong type.
    """
    where = f"for {config_class.__name__}"
    if not isinstance(values, Mapping):
        raise UserError(f"keys are wanted {where}, it is {shown(values)}", exit_code=WRONG_USE)
    _check_keys(values, config_class, where=where)
    check_numbers("", values)
    parser = recipe_parser(config_class, prog="recipe", description="")
    with _wrong_use():
        made = parser.instantiate(parser.parse_object(dict(values)))
        config = config_class(**{name: made[name] for name in _names(config_class)})
    _check_values(config)
    return config


def to_plain(config: Any) -> dict[str, Any]:
    """A configuration as plain dicts, lists, numbers and strings."""
    return _plain(dataclasses.asdict(config))


def to_yaml(config: Any) -> str:
    """A configuration as YAML; reading it back gives an equal one."""
    return yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True)


def recipe_keys(config_class: Any) -> Iterator[str]:
    """The dotted keys of a configuration class: sections and their fields."""
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        yield field.name
        if dataclasses.is_dataclass(hints[field.name]):
            yield from (f"{field.name}.{key}" for key in recipe_keys(hints[field.name]))


def run_command(command: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """Run a command and give its exit code: a `UserError` or a full disk becomes one line on standard error.

    ``--debug`` among the arguments shows the traceback too.
    """
    escape_texts_of_errors()
    try:
        return command(argv)
    except UserError as error:
        if "--debug" in argv:
            raise
        warn(f"error: {error}")
        return error.exit_code
    except OSError as error:
        if (error.errno not in FULL_DISK and not error.filename) or "--debug" in argv:
            raise
        where = f"{error.filename}: " if error.filename else ""
        advice = "make room and give the same command again" if error.errno in FULL_DISK else "mend that and try again"
        warn(f"error: {where}{error.strerror}; what was written before is intact: {advice}")
        return 1
    except (MemoryError, RuntimeError) as error:
        fault = _one_line(error)
        if not (isinstance(error, MemoryError) or _NO_MEMORY.search(fault)) or "--debug" in argv:
            raise
        warn(f"error: not enough memory ({fault}): take a smaller patch, batch, encoder or cache")
        return 1


def _read(path: Path, config_class: Any, own: Collection[str]) -> dict[str, Any]:
    """The keys of a recipe file, checked."""
    values = read_mapping(path)
    if "config" in values:
        raise UserError(f"{path}: a recipe cannot name another (config)", exit_code=WRONG_USE)
    own = set(own) - _OF_THE_COMMAND_LINE
    _check_keys(values, config_class, where=f"in {path}", more=own)
    for name in own & values.keys():
        if not isinstance(values[name], str):
            raise UserError(f"{name} in {path}: a text is wanted, it is {shown(values[name])}", exit_code=WRONG_USE)
    check_numbers("", values)
    return values


@contextmanager
def _wrong_use() -> Iterator[None]:
    try:
        yield
    except (ArgumentError, ValueError, TypeError, OverflowError) as error:
        raise UserError(_one_line(error), exit_code=WRONG_USE) from error


def _names(config_class: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(config_class)]


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _own_options(parser: ArgumentParser, config_class: Any) -> set[str]:
    """The options that are no keys of the recipe."""
    names = {option.removeprefix("--") for action in parser._actions for option in action.option_strings} | {"help"}
    return names - set(recipe_keys(config_class))


def _check_options(argv: Sequence[str], own: set[str], config_class: Any) -> tuple[Path | None, list[str]]:
    """Refuse keys that do not exist or stand twice; gives the recipe's file, and the other words."""
    free, sections = _free_keys(config_class), _sections(config_class)
    valid = {*recipe_keys(config_class), *own, "print_config"}
    seen: set[str] = set()
    recipe: Path | None = None
    rest: list[str] = []
    for words in _options(argv):
        option, value = words[0].removeprefix("--").split("=", 1)[0], _value(words)
        if not words[0].startswith("--") or len(words[0]) == 2:
            rest += words
            continue
        if not any(option.startswith(f"{key}.") for key in free):
            _check_key(option, valid, where="on the command line", shown="--{}")
        keys = [option]
        if value is not None and option not in own:
            keys += _check_value(option, value, config_class)
        for key in keys:
            if key in seen and key not in ("debug", "help", *sections):
                raise UserError(f"--{key} stands twice on the command line; keep one", exit_code=WRONG_USE)
        seen.update(keys)
        if option == "config" and value is not None:
            recipe = Path(value)
        else:
            rest += words
    return recipe, rest


def _check_value(option: str, value: str, config_class: Any) -> list[str]:
    """The keys in the value of an option; refuses those that do not exist or stand twice, and numbers beyond reason."""
    if value.lstrip("+-").isdigit() and len(value.lstrip("+-0")) > len(str(LARGEST_INT)):
        check_numbers(option, LARGEST_INT + 1)
    is_section = option in _sections(config_class)
    if not is_section and not value.lstrip().startswith(("{", "[")):
        return []
    keys = [written.path for written in walk(value, where=f"--{option}", below=option)]
    if is_section or option in _names(config_class):
        _check_keys({option: yaml.safe_load(value)}, config_class, where="on the command line")
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


def _check_keys(
    values: Mapping[Any, Any], config_class: Any, *, where: str, prefix: str = "", more: Collection[str] = ()
) -> None:
    """Refuse keys that a configuration class does not have, and sections that are none.

    Args:
        values: Plain ones; at the top, keys may be dotted.
        config_class: What they shall make.
        where: Names the place in messages.
        prefix: The keys above, with a dot behind.
        more: Other keys that are taken.
    """
    hints, valid = typing.get_type_hints(config_class), {*recipe_keys(config_class), *more}
    free = _free_keys(config_class)
    for name, value in values.items():
        within = next((key for key in free if str(name).startswith(f"{key}.")), None)
        if within is not None:
            item = typing.get_args(_hint_of(within, config_class))[1]
            check_shape(value, item, key=f"{prefix}{name}", where=where)
            continue
        _check_key(f"{prefix}{name}", {f"{prefix}{key}" for key in valid}, where=where, shown="{}")
        hint = hints.get(name)
        if hint is None:  # a section's key with dots, or an option's
            hint = _hint_of(str(name), config_class)
        items = next((one for one in typing.get_args(hint) if dataclasses.is_dataclass(one)), None)
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, Mapping):
                message = f"{prefix}{name} {where}: a section of keys is wanted, it is {shown(value)}"
                raise UserError(message, exit_code=WRONG_USE)
            _check_keys(value, hint, where=where, prefix=f"{prefix}{name}.")
        elif items is not None:
            if not isinstance(value, list | tuple):
                message = f"{prefix}{name} {where}: a list is wanted, it is {shown(value)}"
                raise UserError(message, exit_code=WRONG_USE)
            for number, item in enumerate(value):
                if not isinstance(item, Mapping):
                    message = f"{prefix}{name}[{number}] {where}: keys are wanted, it is {shown(item)}"
                    raise UserError(message, exit_code=WRONG_USE)
                _check_keys(item, items, where=where, prefix=f"{prefix}{name}[{number}].")
        elif hint is not None:
            check_shape(value, hint, key=f"{prefix}{name}", where=where)


def _check_values(config: Any, prefix: str = "") -> None:
    """Refuse what a parser lets pass: numbers without end, and nothing where something is wanted."""
    hints = typing.get_type_hints(type(config))
    for name in _names(type(config)):
        value, key = getattr(config, name), f"{prefix}{name}"
        if dataclasses.is_dataclass(value):
            _check_values(value, f"{key}.")
        elif isinstance(value, tuple) and any(dataclasses.is_dataclass(item) for item in value):
            for number, item in enumerate(value):
                _check_values(item, f"{key}[{number}].")
        elif value is None and type(None) not in typing.get_args(hints[name]):
            raise UserError(f"{key}: a value is wanted, it is empty", exit_code=WRONG_USE)
        else:
            check_numbers(key, value)


def _hint_of(key: str, config_class: Any) -> Any:
    """The type of a dotted key; None for what is no key of the class."""
    hint: Any = config_class
    for name in key.split("."):
        hint = typing.get_type_hints(hint).get(name) if dataclasses.is_dataclass(hint) else None
    return hint


def _check_key(key: str, valid: set[str], *, where: str, shown: str) -> None:
    if key in valid:
        return
    nearest = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
    hint = f"; did you mean {shown.format(nearest[0])}?" if nearest else ""
    raise UserError(f"unknown key {shown.format(key)} {where}{hint}", exit_code=WRONG_USE)


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


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
