"""Interpolation and smoothing along one axis: banded matrices that keep a field which is linear in mm as it is."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

GAUSSIAN_REACH = 3.0
"""Standard deviations at which a Gaussian is cut."""

BALANCED_MM = 1e-3
BLOCK_ROWS = 16
"""Rows of a banded matrix multiplied at a time: the products grow with it, the calls shrink."""


def axis_weights(
    source_mm: NDArray[np.float64], target_mm: NDArray[np.float64], spacing_mm: float
) -> NDArray[np.float32]:
    """Interpolation along one axis as a matrix.

    Where the source is finer than the target, a row is a triangle of half-width `spacing_mm` sampled on the true
    positions, its first moment corrected; where it is coarser, or so uneven that no such triangle exists, the row is
    plain linear interpolation. Targets beyond the outermost samples take the outermost samples.

    Args:
        source_mm: (n,) increasing positions of the samples.
        target_mm: (m,) increasing positions wanted.
        spacing_mm: Distance between targets.

    Returns:
        (m, n) float32, rows sum to 1.

    Example:
        >>> axis_weights(np.array([0.0, 2.0]), np.array([0.5, 1.0]), 1.0).tolist()
        [[0.75, 0.25], [0.5, 0.5]]
    """
    if len(source_mm) == 1:
        return np.ones((len(target_mm), 1), dtype=np.float32)
    gaps = np.diff(source_mm)
    cell = np.clip(np.searchsorted(source_mm, target_mm, side="right") - 1, 0, len(gaps) - 1)
    matrix, exact = _triangles(source_mm, target_mm, spacing_mm, gaps)
    # Linear interpolation is exact as well where slices are so uneven that no balanced triangle exists.
    linear = np.flatnonzero((gaps[cell] >= spacing_mm) | ~exact)
    matrix[linear] = 0
    share = np.clip((target_mm[linear] - source_mm[cell[linear]]) / gaps[cell[linear]], 0, 1)
    matrix[linear, cell[linear]] = 1 - share
    matrix[linear, cell[linear] + 1] = share
    return matrix.astype(np.float32)


def gaussian(positions_mm: NDArray[np.float64], sigma_mm: float) -> NDArray[np.float32]:
    """A Gaussian on (uneven) positions as an (n, n) matrix that keeps a linear field as it is."""
    distance = positions_mm[None, :] - positions_mm[:, None]
    reach = GAUSSIAN_REACH * sigma_mm
    kernel = np.where(np.abs(distance) <= reach, np.exp(-((distance / sigma_mm) ** 2) / 2), 0)
    whole = (positions_mm - reach >= positions_mm[0]) & (positions_mm + reach <= positions_mm[-1])
    balanced, usable = _balance(kernel * _stretch(np.diff(positions_mm)), distance, whole)
    # Where the slices are too uneven for that, they stay unfiltered.
    return np.where(usable[:, None], balanced, np.eye(len(positions_mm))).astype(np.float32)


def multiply(volume: NDArray[Any], matrix: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Apply a banded matrix along one axis of a volume, in blocks that skip the zeros.

    Args:
        volume: (X, Y, Z), C-contiguous.
        matrix: (m, n), n being the volume's length along `axis`.
        axis: 0, 1 or 2.

    Returns:
        The volume with m voxels along `axis`.
    """
    shape = list(volume.shape)
    shape[axis] = len(matrix)
    result = np.empty(shape, dtype=np.float32)
    blocks = _blocks(matrix)
    if axis == 0:
        flat, flat_result = volume.reshape(volume.shape[0], -1), result.reshape(len(matrix), -1)
        for out, into, block in blocks:
            np.matmul(block, flat[into].astype(np.float32, copy=False), out=flat_result[out])
        return result
    along = _along_rows if axis == 1 else _along_columns
    for plane, plane_result in zip(volume, result, strict=True):
        along(plane.astype(np.float32, copy=False), blocks, plane_result)
    return result


def multiply_planes(
    volume: NDArray[Any], rows: NDArray[np.float32], columns: NDArray[np.float32]
) -> NDArray[np.float32]:
    """As `multiply` by `rows` along axis 1, then by `columns` along axis 2; what lies between stays in the cache.

    Args:
        volume: (X, Y, Z), C-contiguous.
        rows: (m, Y).
        columns: (n, Z).

    Returns:
        (X, m, n).
    """
    result = np.empty((volume.shape[0], len(rows), len(columns)), dtype=np.float32)
    between = np.empty((len(rows), volume.shape[2]), dtype=np.float32)
    row_blocks, column_blocks = _blocks(rows), _blocks(columns)
    for plane, plane_result in zip(volume, result, strict=True):
        _along_rows(plane.astype(np.float32, copy=False), row_blocks, between)
        _along_columns(between, column_blocks, plane_result)
    return result


_Block = tuple[slice, slice, NDArray[np.float32]]
"""Rows of a matrix, the columns in which they are not zero, and what stands there."""


def _blocks(matrix: NDArray[np.float32]) -> list[_Block]:
    blocks = []
    for start in range(0, len(matrix), BLOCK_ROWS):
        block = matrix[start : start + BLOCK_ROWS]
        used = np.flatnonzero(block.any(axis=0))
        low, high = int(used[0]), int(used[-1]) + 1
        blocks.append((slice(start, start + len(block)), slice(low, high), np.ascontiguousarray(block[:, low:high])))
    return blocks


def _along_rows(plane: NDArray[np.float32], blocks: list[_Block], result: NDArray[np.float32]) -> None:
    for out, into, block in blocks:
        np.matmul(block, plane[into], out=result[out])


def _along_columns(plane: NDArray[np.float32], blocks: list[_Block], result: NDArray[np.float32]) -> None:
    for out, into, block in blocks:
        np.matmul(plane[:, into], block.T, out=result[:, out])


def _triangles(
    source_mm: NDArray[np.float64],
    target_mm: NDArray[np.float64],
    half_width_mm: float,
    gaps: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Triangle kernels, (m, n), and which of them keep a linear field exact; (m,), True at the ends of the axis."""
    distance = source_mm[None, :] - target_mm[:, None]
    kernel = np.maximum(1 - np.abs(distance) / half_width_mm, 0) * _stretch(gaps)
    whole = (target_mm - half_width_mm >= source_mm[0]) & (target_mm + half_width_mm <= source_mm[-1])
    return _balance(kernel, distance, whole)


def _stretch(gaps: NDArray[np.float64]) -> NDArray[np.float64]:
    """The length that each sample stands for, so that a denser run of slices does not pull; (n,) from (n - 1,)."""
    return np.concatenate(([gaps[0]], (gaps[:-1] + gaps[1:]) / 2, [gaps[-1]]))


def _balance(
    kernel: NDArray[np.float64], distance: NDArray[np.float64], whole: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Make rows sum to 1 and, where the kernel does not stick out, weigh evenly on both sides of their target.

    Args:
        kernel: (m, n) weights, not negative.
        distance: (m, n) from target to sample, signed.
        whole: (m,) rows whose kernel lies inside the samples.

    Returns:
        The weights, and which rows are usable: some samples, and no weight turned negative by the balancing.
    """
    total = kernel.sum(axis=1, keepdims=True)
    kernel = np.divide(kernel, total, out=np.zeros_like(kernel), where=total > 0)
    moment = (kernel * distance).sum(axis=1)
    spread = (kernel * (distance - moment[:, None]) ** 2).sum(axis=1)
    slope = np.divide(-moment, spread, out=np.zeros_like(moment), where=spread > 0)
    balanced = kernel * (1 + np.where(whole, slope, 0)[:, None] * (distance - moment[:, None]))
    unbalanced = whole & (np.abs((balanced * distance).sum(axis=1)) > BALANCED_MM)
    return balanced, (balanced >= 0).all(axis=1) & (total[:, 0] > 0) & ~unbalanced
