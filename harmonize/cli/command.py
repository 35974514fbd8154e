"""What a command of `harmonize` is, and the options that several of them have."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harmonize.parser import not_negative
from harmonize.pool import cores
from harmonize.salt import FILE_OPTION, VARIABLE

DONE, FAILED = 0, 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command of `harmonize`.

    Attributes:
        name: As it is typed.
        text: What it does, for the list of commands.
        add_options: Adds its options and arguments to its parser.
        call: Does it; gives the exit code.
        description: What it does, for its own help.
    """

    name: str
    text: str
    add_options: Callable[[argparse.ArgumentParser], object]
    call: Callable[[argparse.Namespace], int]
    description: str = ""


def add_corpus(parser: argparse.ArgumentParser) -> None:
    """The corpus that a command reads."""
    parser.add_argument("corpus", type=Path, metavar="CORPUS")


def add_raw(parser: argparse.ArgumentParser) -> None:
    """The raw folder of a source."""
    parser.add_argument("raw", type=Path, metavar="RAW", help="the raw folder")


def add_salt(parser: argparse.ArgumentParser, what: str) -> None:
    """The secret that is mixed into the hashes of ids; `what` says so in the command's words."""
    parser.add_argument(FILE_OPTION, type=Path, metavar="FILE", help=f"{what}; default: in {VARIABLE}")
    parser.add_argument("--salt", help="the same, for all users of this machine to see")


def add_workers(parser: argparse.ArgumentParser) -> None:
    """How many processes work; all cores by default."""
    parser.add_argument(
        "--workers", type=not_negative, default=cores(), metavar="N", help="processes; default %(default)s"
    )


def add_debug(parser: argparse.ArgumentParser) -> None:
    """Whether the traceback of an error is shown; every command has it."""
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
