"""Checks of a recipe's values, for the dataclasses that hold them."""

from __future__ import annotations

from harmonize.errors import UserError

WRONG_USE = 2
MOST_THREADS = 1024
"""No machine has more cores; PyTorch dies of a number far beyond them."""


def require(holds: bool, message: str) -> None:
    """Refuse an impossible value.

    Args:
        holds: Whether the value is possible.
        message: What is wrong, beginning with the dotted key.

    Raises:
        UserError: It is not.
    """
    if not holds:
        raise UserError(message, exit_code=WRONG_USE)
