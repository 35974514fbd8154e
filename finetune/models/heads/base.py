"""What every head is: it makes named outputs of an encoder's maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor


class Head(Protocol):
    """Maps in, named tensors out; an `nn.Module`.

    Attributes:
        outputs: Names of what `forward` gives.
        cells: Edge of a cell in voxels of the input, of each dense output that wants a target on its grid.

    A head may also have:

    - `needs`: names of outputs of auxiliary heads, which `forward` then gets as a second argument, at prediction too.
      The head of the labels alone can ask for some.
    - `conditioned`: False for one that sees the maps before the network is told the modality (`condition`).
    - `only_targets`: the one target that an output can be compared with, by the output's name.
    """

    outputs: tuple[str, ...]
    cells: Mapping[str, int]

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """Outputs by name.

        Args:
            maps: The encoder's, (B, C, d, h, w) each, finest first; of pictures, d counts these.
        """
        ...


class HeadConfig(Protocol):
    """The part of a recipe that picks a head."""

    @property
    def kind(self) -> str:
        """Its name."""
        ...
