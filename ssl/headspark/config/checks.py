"""Checks of a recipe's values, for the dataclasses that hold them."""

from __future__ import annotations

from harmonize.errors import WrongUse

MOST_THREADS = 1024
"""No machine has more cores; PyTorch dies of a number far beyond them."""


def require(holds: bool, message: str) -> None:
    """Refuse an impossible value.

    Args:
        holds: Whether the value is possible.
        message: What is wrong, beginning with the dotted key.

    Raises:
        WrongUse: It is not.
    """
    if not holds:
        raise WrongUse(message)
