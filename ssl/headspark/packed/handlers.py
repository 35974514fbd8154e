"""The PyTorch functions that have an exact meaning on masked maps; nothing else is let through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from harmonize.errors import UserError

Handler = Callable[..., Any]

HANDLERS: dict[Callable, Handler] = {}
"""What each function does with packed blocks; :mod:`headspark.packed.ops` fills it."""


class UnsupportedOperation(UserError):
    """An encoder asked for something that has no exact meaning on a masked map."""


def handles(*functions: Callable) -> Callable[[Handler], Handler]:
    """Register a handler for PyTorch functions."""

    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(functions, handler))
        return handler

    return register
