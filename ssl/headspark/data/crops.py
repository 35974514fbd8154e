"""Which scan, which box and which flips the sample of a given number has: a pure function of the seed and the number.

Nothing is drawn from a running generator, so a run that starts again at step 1234 sees exactly what it would have seen,
with any number of loader workers and of ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from headspark.data.read_ahead import advise

Voxel = TypeVar("Voxel", bound=np.generic)
Box = tuple[int, int, int, int, int, int]
ORDER, CROP, RATIO, VALIDATION, CENTRAL, NOISE = range(6)
"""Streams of random numbers; those of different streams are independent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Crop:
    """A box of a scan, in voxels; it may reach beyond the scan, where it is padded."""

    start: tuple[int, int, int]
    size: int
    flips: tuple[bool, bool, bool]


def generator(seed: int, stream: int, number: int) -> np.random.Generator:
    """The random numbers of one thing: sample `number` of `stream`."""
    return np.random.default_rng(np.random.SeedSequence(entropy=seed, spawn_key=(stream, number)))


class ScanOrder:
    """Which scan each sample comes from.

    With equal weights every scan is seen once an epoch, in an order that differs from epoch to epoch; with other
    weights each sample's scan is drawn by itself, in proportion to them.

    Args:
        weights: One a scan, not negative, not all 0.
        seed: Of the order.

    Example:
        >>> order = ScanOrder([1.0, 1.0, 1.0], seed=0)
        >>> sorted(order(index) for index in range(3, 6))
        [0, 1, 2]
    """

    def __init__(self, weights: Sequence[float], *, seed: int) -> None:
        weights_N = np.asarray(weights, dtype=np.float64)
        self._seed = seed
        self._kept_N = np.flatnonzero(weights_N)
        kept = weights_N[self._kept_N]
        self._edges_N = None if np.all(kept == kept[0]) else np.cumsum(kept) / kept.sum()
        self._epoch = lru_cache(maxsize=2)(self._shuffled)

    def __call__(self, index: int) -> int:
        """The scan of sample `index`."""
        if self._edges_N is None:
            epoch, place = divmod(index, len(self._kept_N))
            return int(self._epoch(epoch)[place])
        place = int(np.searchsorted(self._edges_N, generator(self._seed, ORDER, index).random(), side="right"))
        return int(self._kept_N[min(place, len(self._kept_N) - 1)])

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name != "_epoch"}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._epoch = lru_cache(maxsize=2)(self._shuffled)

    def _shuffled(self, epoch: int) -> NDArray[np.int64]:
        return generator(self._seed, ORDER, epoch).permutation(self._kept_N)


def draw_crop(
    rng: np.random.Generator,
    *,
    shape: tuple[int, int, int],
    box: Box,
    size: int,
    foreground_share: float,
    mirror: float,
) -> Crop:
    """A random patch of a scan.

    Args:
        rng: The sample's own generator.
        shape: Of the scan, voxels.
        box: Foreground, half open: x0, x1, y0, y1, z0, z1.
        size: Edge of the patch, voxels.
        foreground_share: Chance that the patch is drawn within the foreground (or around it, where that is smaller
            than the patch) and not anywhere in the scan.
        mirror: Chance that an axis is flipped.
    """
    bounds = box if rng.random() < foreground_share else (0, shape[0], 0, shape[1], 0, shape[2])
    starts = [
        _start(rng, low=bounds[2 * axis], high=bounds[2 * axis + 1], extent=shape[axis], size=size) for axis in range(3)
    ]
    flips = rng.random(3) < mirror if mirror > 0 else np.zeros(3, bool)
    return Crop(
        start=(starts[0], starts[1], starts[2]),
        size=size,
        flips=(bool(flips[0]), bool(flips[1]), bool(flips[2])),
    )


def central_crop(*, shape: tuple[int, int, int], box: Box, size: int) -> Crop:
    """The patch around the middle of the foreground, within the scan if it can be, unflipped."""
    x, y, z = (
        min(max((box[2 * axis] + box[2 * axis + 1] - size) // 2, 0), shape[axis] - size)
        if shape[axis] > size
        else (shape[axis] - size) // 2
        for axis in range(3)
    )
    return Crop(start=(x, y, z), size=size, flips=(False, False, False))


def cut(volume_XYZ: NDArray[Voxel], crop: Crop, *, fill: float) -> NDArray[Voxel]:
    """The voxels of a crop, padded with `fill` beyond the volume; touches nothing else of a memory-mapped volume.

    A volume may have channels behind its three axes.
    """
    starts = np.array(crop.start)
    shape = np.array(volume_XYZ.shape[:3])
    low, high = np.clip(starts, 0, shape), np.clip(starts + crop.size, 0, shape)
    advise(volume_XYZ, low.tolist(), high.tolist())
    piece_XYZ = volume_XYZ[low[0] : high[0], low[1] : high[1], low[2] : high[2]]
    if piece_XYZ.shape[:3] != (crop.size,) * 3:
        padded_XYZ = np.full((*(crop.size,) * 3, *volume_XYZ.shape[3:]), fill, dtype=volume_XYZ.dtype)
        to = low - starts
        ends = to + piece_XYZ.shape[:3]
        padded_XYZ[to[0] : ends[0], to[1] : ends[1], to[2] : ends[2]] = piece_XYZ
        piece_XYZ = padded_XYZ
    flipped = tuple(axis for axis in range(3) if crop.flips[axis])
    return np.ascontiguousarray(np.flip(piece_XYZ, axis=flipped))


def box_mask(crop: Crop, box: Box) -> NDArray[np.bool_]:
    """Where a crop lies within `box`, bool, shape (size, size, size)."""
    inside = [
        (np.arange(crop.size) + crop.start[axis] >= box[2 * axis])
        & (np.arange(crop.size) + crop.start[axis] < box[2 * axis + 1])
        for axis in range(3)
    ]
    inside = [line[::-1] if crop.flips[axis] else line for axis, line in enumerate(inside)]
    return inside[0][:, None, None] & inside[1][None, :, None] & inside[2][None, None, :]


def _start(rng: np.random.Generator, *, low: int, high: int, extent: int, size: int) -> int:
    """Start along one axis: within [low, high) if the patch fits there, else around it, and within the scan if it can.

    A scan shorter than the patch is padded on both sides.
    """
    first, last = sorted((low, high - size))
    if extent <= size:
        return (extent - size) // 2
    first, last = max(first, 0), min(last, extent - size)
    return int(rng.integers(first, last + 1)) if first <= last else min(max(first, 0), extent - size)
