"""Which series of a phantom tree are one head with and without a sac."""

from __future__ import annotations

from pathlib import Path

from harmonize.errors import UserError
from harmonize.sources.tables import read_table


def read_pairs(path: Path) -> dict[str, str]:
    """Name of the pair of each series.

    Args:
        path: Of the table, with the columns ``pair``, ``with_sac`` and ``without_sac``.

    Raises:
        UserError: There is no such table, or a series stands in two pairs.
    """
    pairs: dict[str, str] = {}
    for row in read_table(path, ("pair", "with_sac", "without_sac")).rows:
        for column in ("with_sac", "without_sac"):
            if pairs.setdefault(row[column], row["pair"]) != row["pair"]:
                raise UserError(f"{path}: a series stands in two pairs; write the tree again")
    return pairs
