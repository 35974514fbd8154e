"""List the recipes that come with the package, or print one, to copy and edit: ``headspark recipes demo``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from harmonize.errors import WrongUse
from harmonize.parser import Parser
from harmonize.terminal import say
from headspark.config.shipped import SECTIONS, command_of, locate_recipe, purpose, shipped_recipes
from headspark.config.text import read_mapping


def main(argv: Sequence[str]) -> int:
    """Run the command line; gives the exit code."""
    parser = Parser(prog="headspark recipes", description=__doc__)
    parser.add_argument("name", nargs="?", help="the recipe to print; without one, all are listed")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    name = parser.parse_args(argv).name
    shipped = shipped_recipes()
    if name is None:
        if not shipped:
            raise WrongUse("this installation has no recipes beside its code; install the wheel, or a whole checkout")
        say(*_list(shipped))
    else:
        found = shipped.get(name) or locate_recipe(Path(name), option="")
        if not found.is_file():
            raise WrongUse(f"{name}: no such file; `headspark recipes` lists the recipes that come along")
        say(*found.read_text(encoding="utf-8").splitlines())
    return 0


def _list(shipped: Mapping[str, Path]) -> Iterator[str]:
    """A line a recipe, its name first; a line that begins with # above those of each command."""
    width = max(map(len, shipped))
    commands = {name: command_of(read_mapping(path)) for name, path in shipped.items()}
    for command in SECTIONS:
        yield f"# {command} --config NAME"
        yield from (f"{name:<{width}}  {purpose(path)}" for name, path in shipped.items() if commands[name] == command)
