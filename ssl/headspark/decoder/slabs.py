"""Maps that are computed a slab of planes at a time, so that what is made on the way stays small."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

CPU_SLAB_BYTES = 16 * 2**20
"""What is computed at a time on a CPU, where small slabs stay in the cache."""

SLAB_BYTES = 2**30
"""What is computed at a time elsewhere."""


@dataclass(frozen=True, slots=True)
class Slab:
    """Some planes of one sample, or all planes of some samples."""

    samples: slice
    planes: slice

    @property
    def count(self) -> tuple[int, int]:
        """How many samples and planes that is."""
        return self.samples.stop - self.samples.start, self.planes.stop - self.planes.start


def slabs(map_BDHWC: Tensor, channels: int, step: int = 1) -> list[Slab]:
    """Divide a map into slabs that are computed one after the other.

    Args:
        map_BDHWC: The map.
        channels: Channels of the largest map that is made of a slab.
        step: Planes that belong together.
    """
    samples, depth, height, width, _ = map_BDHWC.shape
    limit = CPU_SLAB_BYTES if map_BDHWC.device.type == "cpu" else SLAB_BYTES
    planes = limit // (height * width * channels * map_BDHWC.element_size())
    if planes >= depth:
        at_once = planes // depth
        return [Slab(slice(b, min(b + at_once, samples)), slice(0, depth)) for b in range(0, samples, at_once)]
    at_once = max(planes // step, 1) * step
    return [
        Slab(slice(b, b + 1), slice(z, min(z + at_once, depth)))
        for b in range(samples)
        for z in range(0, depth, at_once)
    ]


def rows_of_slabs(map_BDHWC: Tensor) -> Iterator[tuple[Slab, Tensor]]:
    """Yield the slabs of a map and their voxels [samples, voxels, channels], in at least float32."""
    wide = torch.promote_types(map_BDHWC.dtype, torch.float32)
    # A chain of elementwise functions reads and writes a few maps of a slab.
    for slab in slabs(map_BDHWC, 4 * map_BDHWC.shape[-1]):
        yield slab, map_BDHWC[slab.samples, slab.planes].flatten(1, 3).to(wide)
