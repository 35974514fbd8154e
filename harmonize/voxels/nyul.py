"""Nyul and Udupa's histogram standardisation: one standard scale per MR contrast, quick and never NaN.

The scale is fitted by mapping each scan's 1st and 99th foreground percentiles to the ends of `OUTPUT_RANGE` and
averaging the percentiles in between; a scan is then mapped piecewise linearly, its percentiles onto the scale
(Nyul, Udupa and Zhang 2000, IEEE TMI 19:143). Files are intensity-normalization's own: row 0 the scale, row 1 the
percentiles, so each side reads what the other wrote.
"""

from __future__ import annotations

import io
import tokenize
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harmonize.bounded_files import read_small
from harmonize.errors import Reason, Rejection, UserError
from harmonize.files import atomic_path
from harmonize.identity import safe_name

FIT_PERCENTILES = (1.0, *range(10, 100, 10), 99.0)
"""intensity-normalization's defaults."""

OUTPUT_RANGE = (-2.0, 2.0)
"""Where the 1st and the 99th percentile go: the span of a z-score, so that both kinds can share a network. The library
takes the range as an argument (its default is 1 to 100) and keeps it in the file."""

SAMPLE_VOXELS = 1_000_000
"""Percentiles of this many evenly spread voxels are within 0.1 % of the range of those of all."""


_LARGEST_FILE = 1 << 20
_LARGEST_VALUE = 1e9
_ROUNDING = 1e-6
"""Of the span: by so much a scale may fall from one landmark to the next."""

TABLE_SIZE = 2**16
TABLE_REACH = 2.0
"""Nodes of the table that values are mapped by, and how many times the span of the landmarks it goes on beyond them:
so 13,000 nodes or more lie between the first and the last landmark, however far the brightest voxel is."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StandardHistogram:
    """A fitted scale.

    Attributes:
        scale: (L,) where the landmarks go, not decreasing.
        percentiles: (L,) which percentiles of the foreground the landmarks are.
    """

    scale: NDArray[np.float64]
    percentiles: NDArray[np.float64]

    def equals(self, other: StandardHistogram) -> bool:
        """Whether both are the same, number for number."""
        return np.array_equal(self.scale, other.scale) and np.array_equal(self.percentiles, other.percentiles)


def landmarks(foreground: NDArray[Any], percentiles: Iterable[float] = FIT_PERCENTILES) -> NDArray[np.float64]:
    """Percentiles of the foreground values, shape (L,).

    Raises:
        Rejection: There is no foreground, or its range is empty.
    """
    values = thin_out(foreground)
    if values.size == 0:
        raise Rejection(Reason.NO_FOREGROUND, "no foreground to normalise by")
    found = np.percentile(values, list(percentiles)).astype(np.float64)
    if not found[-1] > found[0]:
        raise Rejection(Reason.BAD_INTENSITY, "the foreground is constant")
    return found


def thin_out(values: NDArray[Any], count: int = SAMPLE_VOXELS) -> NDArray[Any]:
    """Every n-th value, so that about `count` are left; the same ones every time."""
    flat = values.ravel()
    return flat[:: max(1, flat.size // count)]


def fit(landmarks_of_scans: Iterable[NDArray[np.float64]]) -> StandardHistogram:
    """Average the scans' landmarks, each scaled to `OUTPUT_RANGE` first.

    Args:
        landmarks_of_scans: (L,) arrays, as `landmarks` gives them.

    Raises:
        ValueError: No scans.
    """
    low, high = OUTPUT_RANGE
    scaled = [low + (found - found[0]) * (high - low) / (found[-1] - found[0]) for found in landmarks_of_scans]
    if not scaled:
        raise ValueError("a standard histogram needs at least one scan")
    return StandardHistogram(scale=np.mean(scaled, axis=0), percentiles=np.asarray(FIT_PERCENTILES, dtype=np.float64))


def transform(values: NDArray[Any], foreground: NDArray[Any], histogram: StandardHistogram) -> NDArray[np.float32]:
    """Map values so that the foreground's landmarks fall on the scale; beyond them the outer pieces go on straight.

    Tied landmarks, on which the formula divides by zero, become one landmark at the mean of their places.

    Args:
        values: Any shape.
        foreground: The values to take the landmarks from, any shape.
        histogram: The standard scale.

    Returns:
        float32, shape of `values`, finite.

    Raises:
        Rejection: No foreground, or a constant one.

    Example:
        >>> standard = StandardHistogram(scale=np.array([-2.0, 2.0]), percentiles=np.array([0.0, 100.0]))
        >>> transform(np.array([0.0, 50.0, 100.0, 150.0]), np.arange(101.0), standard).round(3).tolist()
        [-2.0, 0.0, 2.0, 4.0]
    """
    found = landmarks(foreground, histogram.percentiles)
    knots, group = np.unique(found, return_inverse=True)
    scale = np.maximum.accumulate(histogram.scale)
    places = np.bincount(group, weights=scale) / np.bincount(group)
    slopes = np.diff(places) / np.diff(knots)
    if values.size == 0:
        return np.empty(values.shape, dtype=np.float32)
    # One more knot at either end of the values, on the outer pieces prolonged.
    low, high = min(float(values.min()), knots[0]), max(float(values.max()), knots[-1])
    places = np.concatenate(
        ([places[0] + (low - knots[0]) * slopes[0]], places, [places[-1] + (high - knots[-1]) * slopes[-1]])
    )
    return _interpolate(values, np.concatenate(([low], knots, [high])), places)


def _interpolate(values: NDArray[Any], knots: NDArray[np.float64], places: NDArray[np.float64]) -> NDArray[np.float32]:
    """`np.interp` by a table, in under half the time: a value is first moved to the nearest node of the table.

    That is by at most 1 / 26,000 of the span of the landmarks; beyond the table it is not moved.
    """
    reach = TABLE_REACH * (knots[-2] - knots[1])
    low, high = max(knots[0], knots[1] - reach), min(knots[-1], knots[-2] + reach)
    table = np.interp(np.linspace(low, high, TABLE_SIZE), knots, places).astype(np.float32)
    scale = np.float32((TABLE_SIZE - 1) / (high - low))
    result = np.empty(values.shape, dtype=np.float32)
    # A slab at a time, because its intermediate results then stay in the processor's cache.
    slabs = (values, result) if values.ndim > 1 else (values.reshape(1, -1), result.reshape(1, -1))
    for slab, out in zip(*slabs, strict=True):
        index = (slab - np.float32(low)) * scale
        index += np.float32(0.5)
        out[...] = table.take(index.astype(np.intp), mode="clip")
        if low > knots[0] or high < knots[-1]:
            far = (slab < low) | (slab > high)
            out[far] = np.interp(slab[far], knots, places)
    return result


def save(path: Path, histogram: StandardHistogram) -> None:
    """Write the standard histogram in intensity-normalization's format, atomically."""
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, np.vstack([histogram.scale, histogram.percentiles]))


def load(path: Path) -> StandardHistogram:
    """Read a standard histogram.

    Raises:
        UserError: No such file, or not a standard histogram.
    """
    try:
        rows = _array(read_small(path, limit=_LARGEST_FILE))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no readable standard histogram; fit one, or point --nyul at its folder") from error
    if rows is None:
        raise UserError(f"{path}: not a standard histogram (2 rows: scale, percentiles); fit it again")
    scale, percentiles = rows
    if percentiles[0] < 0 or percentiles[-1] > 100 or (np.diff(percentiles) <= 0).any():
        raise UserError(f"{path}: its percentiles do not rise from 0 to 100; fit it again")
    span = scale.max() - scale.min()
    if not 0 < span <= np.abs(scale).max() * 2 < _LARGEST_VALUE or (np.diff(scale) < -_ROUNDING * span).any():
        raise UserError(f"{path}: its scale does not rise; fit it again")
    return StandardHistogram(scale=scale, percentiles=percentiles)


def _array(content: bytes) -> NDArray[np.float64] | None:
    """The numbers of a .npy file, shape (2, L); None for an array that is something else, whatever it claims to hold.

    Raises:
        ValueError: It is no .npy file.
    """
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError, EOFError, tokenize.TokenError) as error:
        raise ValueError("no .npy file") from error
    if dtype.hasobject or dtype.kind not in "fiu" or len(shape) != 2 or shape[0] != 2 or shape[1] < 2:
        return None
    if shape[1] * 2 * dtype.itemsize != len(content) - stream.tell():
        raise ValueError("cut short")
    rows = np.load(io.BytesIO(content), allow_pickle=False).astype(np.float64)
    return rows if np.isfinite(rows).all() else None


def histogram_path(folder: Path, modality: str) -> Path:
    """The file of one modality's standard histogram."""
    return folder / f"{safe_name(modality)}.npy"
