"""The maps that an encoder gives, and which of them a head takes."""

from __future__ import annotations

from dataclasses import dataclass

from harmonize.errors import WrongUse


@dataclass(frozen=True, slots=True, kw_only=True)
class Maps:
    """The maps that an encoder gives, finest first.

    Attributes:
        strides: Edge of a cell of each in voxels of the input.
        channels: Of each.
    """

    strides: tuple[int, ...]
    channels: tuple[int, ...]


def chosen_maps(maps: Maps, *, stride: int, coarsest: int | None) -> slice:
    """Which of an encoder's maps are fused.

    Args:
        maps: What the encoder has.
        stride: Of the finest one.
        coarsest: Of the coarsest one; None for the encoder's.

    Raises:
        WrongUse: The encoder has no such map.
    """
    last = maps.strides[-1] if coarsest is None else coarsest
    for name, value in (("stride", stride), ("coarsest", last)):
        if value not in maps.strides:
            offered = ", ".join(map(str, maps.strides))
            raise WrongUse(f"head.{name} {value}: this encoder has maps at {offered}; use one")
    if last < stride:
        raise WrongUse(f"head.coarsest {last}: must not be finer than head.stride {stride}")
    return slice(list(maps.strides).index(stride), list(maps.strides).index(last) + 1)
