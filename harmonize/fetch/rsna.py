"""RSNA 2025 is handed out by Kaggle alone: what is fetched here is the way to it."""

from __future__ import annotations

import argparse

from harmonize import sources
from harmonize.errors import UserError

COMPETITION = "rsna-intracranial-aneurysm-detection"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Nothing more than every download has."""


def call(options: argparse.Namespace) -> int:
    """Say how it is had.

    Raises:
        UserError: Always.
    """
    raise UserError(
        f"rsna: Kaggle hands it out, to those who accept its rules at {sources.entry('rsna').terms.link}; then "
        f"`kaggle competitions download -c {COMPETITION} -p {options.out}`, and unzip it there"
    )
