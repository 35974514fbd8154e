"""Command lines whose faults are one line, as those of the work behind them are."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from harmonize.errors import WRONG_USE, WrongUse

__all__ = ["WRONG_USE", "Parser"]


class Parser(argparse.ArgumentParser):
    """A parser that raises where argparse would print what was typed, whatever it holds, and end the process.

    An option is given in full: what it is short for today may be something else when there are more.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        """Refuse a command line.

        Raises:
            WrongUse: Always.
        """
        raise WrongUse(f"{message}; see `{self.prog} --help`")
