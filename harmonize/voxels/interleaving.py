"""Slices whose intensities alternate: the last sign that two volumes were woven into one, where no header tells.

In one volume a slice resembles its neighbours at least as much as the slices beyond them. Where two volumes of
different contrast lie between each other, the neighbours of a slice resemble one another far more than the slice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harmonize.decisions import Decision, DecisionKind

APART = 0.6
"""A slice stands apart where its neighbours differ from each other by less than this share of what they differ from it
(RMS); 0.8 to 2 in real heads and phantoms of all sources, 0 for two noise-free volumes."""

WOVEN = 0.3
"""The same where there can be no doubt: half of the slices would need 2.5 times the signal of the others."""

MIN_SLICES_APART, MIN_SHARE_APART = 3, 0.2
"""So many slices, and this share of them, must stand apart: a single damaged slice is no second volume."""

LEAST_CONTRAST = 0.02
"""Differences below this share of the volume's own spread are noise in empty slices."""

ALTERNATING = 0.3
"""Share of what changes from slice to slice that comes back with every other slice; below 0.06 in real heads and
phantoms, 0.4 and more where every other slice is 1.3 times as bright."""

MIN_SLICES_ALTERNATING = 10

_SAMPLES_A_SIDE = 32
_CLIP_PERCENTILES = (1, 99)
_SAMPLES_FOR_EXTREMES = 8
_CLIP_MEDIANS = 4.0


def sample_slices(voxels_XYZ: NDArray[Any], axis: int = 2) -> NDArray[np.float32]:
    """A thousand voxels or more of each slice, shape (slices, samples), without the extremes and without NaN."""
    stacked = np.moveaxis(voxels_XYZ, axis, 0)
    steps = [max(1, size // _SAMPLES_A_SIDE) for size in stacked.shape[1:]]
    samples = np.array(stacked[:, :: steps[0], :: steps[1]], np.float32).reshape(len(stacked), -1)
    samples[~np.isfinite(samples)] = 0
    # An eighth of them says where the extremes begin, at an eighth of the time.
    low, high = np.percentile(samples[:, ::_SAMPLES_FOR_EXTREMES], _CLIP_PERCENTILES)
    return np.clip(samples, low, high)


def notes(voxels_XYZ: NDArray[Any], spacing: NDArray[np.float64]) -> list[Decision]:
    """The decision that slices alternate, where they do: along Z or, of files that do not tell, the coarsest axis.

    Args:
        voxels_XYZ: As read.
        spacing: Of its axes, mm.
    """
    for axis in sorted({2, int(np.argmax(spacing))}):
        if seems_woven(sample_slices(voxels_XYZ, axis)):
            return [DecisionKind.SLICES_ALTERNATE()]
    return []


def seems_woven(samples_ZS: NDArray[np.float32]) -> bool:
    """Whether slices alternate so much that the volume may be two, or that a scanner treated every other one unlike.

    Args:
        samples_ZS: As `sample_slices` gives them.
    """
    return alternation(samples_ZS) >= ALTERNATING or standing_apart(samples_ZS) > 0


def alternation(samples_ZS: NDArray[np.float32]) -> float:
    """Share (-1 to 1) of what changes from slice to slice that comes back with every other slice.

    What sets a slice apart from the mean of its neighbours is compared three to five slices on: noise and anatomy have
    nothing in common there, what alternates has changed its sign after an odd number of slices and has it again after
    an even one.

    Example:
        >>> rows = np.tile(np.float32([[0, 1], [5, 9]]), (6, 1))
        >>> round(alternation(rows), 2), round(alternation(np.sort(rows, axis=0)), 2)
        (1.0, 0.0)
    """
    if len(samples_ZS) < MIN_SLICES_ALTERNATING:
        return 0.0
    apart = samples_ZS[1:-1] - (samples_ZS[:-2] + samples_ZS[2:]) / 2
    size = np.abs(apart)
    if not (size > 0).any():
        return 0.0
    # Edges of bone would outweigh everything else.
    limit = _CLIP_MEDIANS * float(np.median(size[size > 0]))
    np.clip(apart, -limit, limit, out=apart)
    energy = float(np.mean(apart * apart))
    three, four, five = (float(np.mean(apart[lag:] * apart[:-lag])) / energy for lag in (3, 4, 5))
    return (four - three - five) / 3


def standing_apart(samples_ZS: NDArray[np.float32], limit: float = APART) -> int:
    """Number of slices that stand apart from both their neighbours; 0 where they are too few to tell.

    Args:
        samples_ZS: As `sample_slices` gives them.
        limit: `APART` or `WOVEN`.

    Example:
        >>> rows = np.array([[0.0, 1], [5, 6], [0, 1], [5, 6], [0, 1]], np.float32)
        >>> standing_apart(rows), standing_apart(np.sort(rows, axis=0))
        (3, 0)
    """
    if len(samples_ZS) < MIN_SLICES_APART + 2:
        return 0
    next_one, next_but_one = distance(samples_ZS[1:], samples_ZS[:-1]), distance(samples_ZS[2:], samples_ZS[:-2])
    nearer = np.minimum(next_one[:-1], next_one[1:])
    apart = (next_but_one < limit * nearer) & (nearer > LEAST_CONTRAST * samples_ZS.std())
    count = int(apart.sum())
    return count if count >= max(MIN_SLICES_APART, MIN_SHARE_APART * len(apart)) else 0


def follow_groups(samples_ZS: NDArray[np.float32], groups: Sequence[object]) -> bool:
    """Whether slices of one group resemble each other far more than the slices of other groups between them.

    Args:
        samples_ZS: Consecutive slices, as `sample_slices` gives them.
        groups: What each slice's header says.
    """
    ratios = []
    for k, group in enumerate(groups):
        later = range(k + 1, len(groups))
        same = next((n for n in later if groups[n] == group), None)
        other = next((n for n in later if groups[n] != group), None)
        if same is None or other is None or same < other:
            continue
        between = float(distance(samples_ZS[k], samples_ZS[other]))
        if between > LEAST_CONTRAST * samples_ZS.std():
            ratios.append(float(distance(samples_ZS[k], samples_ZS[same])) / between)
        else:
            ratios.append(1.0)
    return bool(ratios) and float(np.median(ratios)) < APART


def distance(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Root of the mean squared difference over the last axis."""
    return np.sqrt(np.mean((a - b) ** 2, axis=-1))
