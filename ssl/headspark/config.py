"""A typed recipe from YAML and dotted command-line overrides; whatever is misspelt or impossible is refused by name."""

from __future__ import annotations

import dataclasses
import difflib
import errno
import re
import sys
import typing
from argparse import ArgumentError
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentParser, Namespace

from harmonize.errors import UserError

T = TypeVar("T")
WRONG_USE = 2
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""No room on the disk, in the user's quota, or for a file of that size."""


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

    Raises:
        UserError: With exit code 2 and one line that names the key, for an unknown key (and the nearest valid one),
            a wrong type or an impossible combination.
    """
    valid = {*recipe_keys(config_class), *_own_options(parser)}
    free = _free_keys(config_class)
    for option in _options(argv):
        if any(option.startswith(f"{key}.") for key in free):
            continue
        _check_key(option, valid, where="on the command line", shown="--{}")
    for path in _config_files(argv):
        for key in _leaves(_read_mapping(path), free=free):
            _check_key(key, valid, where=f"in {path}", shown="{}")
    with _wrong_use():
        made = parser.instantiate(parser.parse_args(list(argv)))
        recipe = config_class(**{name: made[name] for name in _names(config_class)})
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
    for key in _leaves(values, free=_free_keys(config_class)):
        _check_key(key, set(recipe_keys(config_class)), where=f"for {config_class.__name__}", shown="{}")
    parser = recipe_parser(config_class, prog="recipe", description="")
    with _wrong_use():
        made = parser.instantiate(parser.parse_object(dict(values)))
        return config_class(**{name: made[name] for name in _names(config_class)})


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
    try:
        return command(argv)
    except UserError as error:
        if "--debug" in argv:
            raise
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except OSError as error:
        if error.errno not in FULL_DISK or "--debug" in argv:
            raise
        where = f"{error.filename}: " if error.filename else ""
        line = f"{where}{error.strerror}; what was written before is intact: make room and give the same command again"
        print(f"error: {line}", file=sys.stderr, flush=True)
        return 1


@contextmanager
def _wrong_use() -> Iterator[None]:
    try:
        yield
    except (ArgumentError, ValueError, TypeError) as error:
        raise UserError(_one_line(error), exit_code=WRONG_USE) from error


def _names(config_class: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(config_class)]


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _own_options(parser: ArgumentParser) -> set[str]:
    return {option.removeprefix("--") for action in parser._actions for option in action.option_strings} | {"help"}


def _options(argv: Sequence[str]) -> Iterator[str]:
    for word in argv:
        if word.startswith("--") and len(word) > 2:
            yield word[2:].split("=", 1)[0]


def _config_files(argv: Sequence[str]) -> Iterator[Path]:
    for index, word in enumerate(argv):
        if word == "--config" and index + 1 < len(argv):
            yield Path(argv[index + 1])
        elif word.startswith("--config="):
            yield Path(word.removeprefix("--config="))


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"recipe {path} cannot be read: {error.strerror}", exit_code=WRONG_USE) from error
    except yaml.YAMLError as error:
        raise UserError(f"recipe {path} is not YAML: {_one_line(error)}", exit_code=WRONG_USE) from error
    if not isinstance(values, dict):
        raise UserError(f"recipe {path} holds no keys", exit_code=WRONG_USE)
    return values


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


def _leaves(values: Mapping[str, Any], *, free: set[str], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        key = f"{prefix}{name}"
        yield key
        if isinstance(value, Mapping) and key not in free:
            yield from _leaves(value, free=free, prefix=f"{key}.")


def _check_key(key: str, valid: set[str], *, where: str, shown: str) -> None:
    if key in valid or key == "print_config":
        return
    nearest = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
    hint = f"; did you mean {shown.format(nearest[0])}?" if nearest else ""
    raise UserError(f"unknown key {shown.format(key)} {where}{hint}", exit_code=WRONG_USE)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    text = re.sub(r"""Parser key "([^"]+)":""", r"\1:", text)
    return re.sub(r"<class '(\w+)'>", r"\1", text).replace("typing.", "")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
