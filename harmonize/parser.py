"""Command lines whose faults are one line, as those of the work behind them are."""

from __future__ import annotations

import argparse
from typing import NoReturn

from harmonize.errors import UserError

WRONG_USE = 2


class Parser(argparse.ArgumentParser):
    """A parser that raises where argparse would print what was typed, whatever it holds, and end the process."""

    def error(self, message: str) -> NoReturn:
        """Refuse a command line.

        Raises:
            UserError: Always, with exit code 2.
        """
        raise UserError(f"{message}; see `{self.prog} --help`", exit_code=WRONG_USE)
