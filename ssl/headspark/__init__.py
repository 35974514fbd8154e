"""Pretrain 3D head encoders by masked modelling that computes only what is visible."""

from typing import TYPE_CHECKING, Any

import harmonize.launcher  # noqa: F401  # first, because what is asked of this package loads torch; see there

if TYPE_CHECKING:
    from headspark.hub import Encoder, load_encoder, save_encoder

__all__ = ["Encoder", "load_encoder", "save_encoder"]


def __getattr__(name: str) -> Any:
    """The names above, loaded when they are asked for: they bring the Hub's client, which few rooms need."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import headspark.hub

    return getattr(headspark.hub, name)
