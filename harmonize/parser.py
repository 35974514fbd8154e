"""Command lines whose faults are one line, as those of the work behind them are."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from harmonize.errors import WRONG_USE, WrongUse

__all__ = ["WRONG_USE", "Parser", "not_negative", "positive", "with_home"]

LARGEST, _DIGITS = 2**63 - 1, 30
"""The largest whole number that libraries take, seeds among them; and digits beyond which none is read."""


class Parser(argparse.ArgumentParser):
    """A parser that raises where argparse would print what was typed, whatever it holds, and end the process.

    An option is given in full: what it is short for today may be something else when there are more.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"allow_abbrev": False, **options})
        self._given: list[str] = []

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does; what was given is kept for whoever has to say what is wrong with it."""
        self._given = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Refuse a command line.

        Raises:
            WrongUse: Always; with the nearest of what could have been meant.
        """
        meant: list[str] = []
        if message.startswith("the following arguments are required") and (misspelt := self._misspelt()):
            message = f"unrecognized arguments: {misspelt}"
        if wrong := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message):
            meant = difflib.get_close_matches(wrong[1].lower(), re.findall(r"[\w-]+", wrong[2]), n=1)
        elif wrong := re.search(r"^unrecognized arguments: (--[^\s=]+)", message):
            meant = difflib.get_close_matches(wrong[1].lower(), sorted(set(_options(self))), n=1)
        message += f"; did you mean {meant[0]}?" if meant else ""
        raise WrongUse(f"{message}; see `{self.prog} --help`")

    def _misspelt(self) -> str | None:
        """An option that there is not, but one with nearly its name: why something else may seem to be missing."""
        options = sorted(set(_options(self)))
        names = (word.split("=")[0] for word in self._given if re.match("--[a-z]", word))
        return next((one for one in names if one not in options and difflib.get_close_matches(one, options, n=1)), None)


def with_home(words: Sequence[str]) -> list[str]:
    """The words of a command with the home folder where a shell has left a ``~``: behind ``=``, and within quotes.

    Otherwise what is written goes to a folder of that name where the command runs.

    Example:
        >>> with_home(["--out=~/run", "~run", "a~/b"]) == [f"--out={Path.home()}/run", "~run", "a~/b"]
        True
    """
    return [re.sub(r"^(--[\w.-]+=)?~(?=/|$)", lambda found: f"{found[1] or ''}{Path.home()}", word) for word in words]


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The options of a parser and of all commands below it."""
    yield from parser._option_string_actions
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _options(below)


def positive(text: str) -> int:
    """Read an option's value that counts something.

    Raises:
        argparse.ArgumentTypeError: No whole number, or 0.
    """
    return _whole(text, at_least=1)


def not_negative(text: str) -> int:
    """Read an option's value that counts something, or that is 0 for none.

    Raises:
        argparse.ArgumentTypeError: No whole number.
    """
    return _whole(text, at_least=0)


def _whole(text: str, *, at_least: int) -> int:
    if text.isdecimal() and (len(text) > _DIGITS or int(text) > LARGEST):
        raise argparse.ArgumentTypeError(f"{text[:_DIGITS]} is too large a number; {LARGEST} is the largest")
    if not text.isdecimal() or int(text) < at_least:
        raise argparse.ArgumentTypeError(f"{text} is no whole number from {at_least} up")
    return int(text)
