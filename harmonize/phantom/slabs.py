"""Scan a head slab by slab: its slices one after the other, so that memory does not grow with their number.

Each slice has noise of its own name, and everything else is a function of the place alone: how many slices are made at
once changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from harmonize.phantom.acquisition import Grid, add_vessels, sample_tissues, tissue_values
from harmonize.phantom.anatomy import Head
from harmonize.phantom.artefacts import Artefacts
from harmonize.phantom.contrast import Contrast
from harmonize.phantom.randomness import bias_planes, rng_of
from harmonize.scan import AIR_HU

SLAB_VOXELS = 2_000_000
"""A slab has as many slices as fit into this."""


def scan_slabs(
    head: Head,
    grid: Grid,
    contrast: Contrast,
    artefacts: Artefacts,
    names: Sequence[object],
    *,
    grain: float = 0.0,
    slab_voxels: int = SLAB_VOXELS,
) -> Iterator[NDArray[np.float32]]:
    """Image a head.

    Args:
        head: What is scanned.
        grid: Where it is sampled.
        contrast: What it looks like; its blur is within slices alone.
        artefacts: What the scanner adds and loses.
        names: What the randomness of noise and bias is named by.
        grain: Standard deviation in pixels of what filters the noise within a slice.
        slab_voxels: How many voxels are made at once.

    Yields:
        Each slice, (X, Y) float32: HU for CT, positive arbitrary units for MR.
    """
    values_XYZ = tissue_values(head, contrast)
    vessels = artefacts.bloomed(head.vessels.vessels)
    bias = bias_planes(grid.shape, grid.spacing, rng_of(*names, "bias")) if contrast.bias else None
    blur = [contrast.blur_mm / step for step in grid.spacing[:2]]
    for first, slab in slabs_of(grid, slab_voxels):
        image_XYZ = sample_tissues(values_XYZ, head, slab, contrast)
        still_XYZ = image_XYZ.copy() if artefacts.pulse is not None else None
        add_vessels(image_XYZ, vessels, slab, contrast, artefacts.flow)
        for number in range(slab.shape[2]):
            k = grid.first[2] + first + number
            plane_XY = np.ascontiguousarray(image_XYZ[:, :, number])
            if artefacts.pulse is not None and still_XYZ is not None:
                plane_XY += artefacts.pulse.of(np.abs(plane_XY - still_XYZ[:, :, number]))
            plane_XY = artefacts.moved(plane_XY, k)
            if contrast.blur_mm:
                plane_XY = ndimage.gaussian_filter(plane_XY, blur, truncate=3.0)
            if bias is not None:
                plane_XY = plane_XY * np.exp(np.float32(contrast.bias) * bias(first + number))
            plane_XY = artefacts.streaked(plane_XY, k, grid)
            yield _noisy(plane_XY, contrast, grain, rng_of(*names, "noise", k))


def slabs_of(grid: Grid, slab_voxels: int = SLAB_VOXELS) -> Iterator[tuple[int, Grid]]:
    """The parts of a grid, each of a few successive slices: number of the first of them, and their own grid."""
    step = max(1, slab_voxels // (grid.shape[0] * grid.shape[1]))
    for first in range(0, grid.shape[2], step):
        count = min(step, grid.shape[2] - first)
        x, y, z = grid.first
        part = Grid(shape=(grid.shape[0], grid.shape[1], count), affine=grid.affine, first=(x, y, z + first))
        yield first, part


def _noisy(
    plane_XY: NDArray[np.float32], contrast: Contrast, grain: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    noise_XY = _noise(plane_XY.shape, contrast.noise, grain, rng)
    if contrast.family == "CT":
        return np.maximum(plane_XY + noise_XY, np.float32(AIR_HU))
    # The magnitude of a complex signal: Rician noise.
    return np.hypot(plane_XY + noise_XY, _noise(plane_XY.shape, contrast.noise, grain, rng))


def _noise(shape: tuple[int, ...], deviation: float, grain: float, rng: np.random.Generator) -> NDArray[np.float32]:
    noise_XY = rng.standard_normal(shape, dtype=np.float32)
    if grain:
        # What filters it takes as much of its power: the deviation is that which was asked for.
        impulse = np.zeros(int(8 * grain) * 2 + 1)
        impulse[len(impulse) // 2] = 1
        kept = float(np.square(ndimage.gaussian_filter(impulse, grain)).sum())
        noise_XY = ndimage.gaussian_filter(noise_XY, grain) / np.float32(kept)
    return noise_XY * np.float32(deviation)
