"""What the command lines of several downloads share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from harmonize.errors import UserError
from harmonize.parser import positive
from harmonize.terminal import say

WORKERS = 4


def add_modality(parser: argparse.ArgumentParser, text: str) -> None:
    """Which modalities; `text` says how they are written."""
    parser.add_argument("--modality", action="append", default=[], metavar="M", help=f"{text}; may be repeated")


def add_workers(parser: argparse.ArgumentParser) -> None:
    """How many downloads run at once."""
    parser.add_argument("--workers", type=positive, default=WORKERS, metavar="N", help="at once; default %(default)s")


def finish(out: Path, missing: Sequence[str]) -> int:
    """End a download: exit code 0 if nothing is missing.

    Raises:
        UserError: Something is.
    """
    for line in missing:
        say(f"missing: {line}")
    if missing:
        raise UserError(f"{out}: {len(missing)} could not be had; the same command tries them again")
    return 0
