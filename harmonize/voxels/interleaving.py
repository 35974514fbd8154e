"""Slices whose intensities alternate: the last sign that volumes were woven into one, where no header tells.

In one volume a slice resembles its neighbours at least as much as the slices beyond them. Where volumes of different
contrast lie between each other, a slice resembles the next one of its own volume far more than those in between: the
next but one of two volumes, the third of three, the fourth where two lie in pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harmonize.decisions import Decision, DecisionKind

APART = 0.6
"""Slices stand apart from those between them where they differ by less than this share of what they differ from these
(RMS); 0.8 to 2 in real heads and phantoms of all sources, more for slices farther apart, 0 for noise-free volumes."""

WOVEN = 0.3
"""The same where there can be no doubt: half of the slices would need 2.5 times the signal of the others."""

MIN_SLICES_APART, MIN_SHARE_APART = 3, 0.2
"""So many slices, and this share of them, must stand apart: a single damaged slice is no second volume."""

MOST_WOVEN = 6
"""Volumes that are looked for between each other's slices."""

MOST_IN_A_ROW = 3
"""Slices of one volume that may lie side by side before those of another."""

MIN_TURNS = 3
"""Slices for so many turns of all volumes must be there where these are more than two."""

LEAST_CONTRAST = 0.02
"""Differences below this share of the volume's own spread are noise in empty slices."""

ALTERNATING = 0.3
"""Share of what changes from slice to slice that comes back with every other (third, fourth) slice; below 0.06 (0.1) in
real heads and phantoms, 0.4 and more where every other slice is 1.3 times as bright."""

MIN_SLICES_ALTERNATING = 10

MOST_LEFT = 0.5
"""What alternates goes with groups where no larger share of it is left without what is common to each group."""

MIN_BRIGHTER = 0.75
"""Share of the marked slices beside others that are the brighter of the two, each against its neighbours: all of them
where tissue is 8 HU brighter, half by chance; slices at the ends of a head go by their anatomy."""

AIR_RANGE_SHARE = 0.2
"""What lies lower in the range of values is air."""

LONGEST_PERIOD = 4
"""Slices after which what alternates is looked for again; four are as many turns as can be told from chance."""

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
    """Whether slices alternate so much that they may be of several volumes, or that a scanner treated some unlike.

    Args:
        samples_ZS: As `sample_slices` gives them.
    """
    return alternation(samples_ZS) >= ALTERNATING or standing_apart(samples_ZS) > 0


def alternation(samples_ZS: NDArray[np.float32]) -> float:
    """Share (-1 to 1) of what changes from slice to slice that comes back with every other, third or fourth slice.

    What sets a slice apart from the mean of its neighbours is compared three slices on and farther: noise and anatomy
    have nothing in common there, what alternates has changed between its turns and is there again with each.

    Example:
        >>> rows = np.tile(np.float32([[0, 1], [5, 9]]), (6, 1))
        >>> round(alternation(rows), 2), round(alternation(np.sort(rows, axis=0)), 2)
        (1.0, 0.0)
    """
    apart = _apart(samples_ZS)
    return _alternating_energy(apart) / _energy(apart) if apart.any() else 0.0


def alternates_with(samples_ZS: NDArray[np.float32], groups: Sequence[object]) -> bool:
    """Whether slices alternate, and with what their headers say rather than across it.

    Args:
        samples_ZS: Consecutive slices, as `sample_slices` gives them.
        groups: What each slice's header says.

    Example:
        >>> rows = np.tile(np.float32([[0, 1], [5, 9]]), (6, 1))
        >>> alternates_with(rows, "ababababababab"[:12]), alternates_with(rows, "aabbaabbaabb")
        (True, False)
    """
    if alternation(samples_ZS) < ALTERNATING:
        return False
    apart = _apart(samples_ZS)
    left = apart.copy()
    inner = groups[1:-1]
    for group in set(inner):
        own = [n for n, other in enumerate(inner) if other == group]
        left[own] -= left[own].mean(axis=0)
    return _alternating_energy(left) <= MOST_LEFT * _alternating_energy(apart)


def _apart(samples_ZS: NDArray[np.float32]) -> NDArray[np.float32]:
    """What sets each inner slice apart from the mean of its neighbours; 0 where too few slices are there to tell."""
    apart: NDArray[Any] = samples_ZS[1:-1] - (samples_ZS[:-2] + samples_ZS[2:]) / 2
    size = np.abs(apart)
    if len(samples_ZS) < MIN_SLICES_ALTERNATING or not (size > 0).any():
        return np.zeros_like(apart)
    # Edges of bone would outweigh everything else.
    limit = _CLIP_MEDIANS * float(np.median(size[size > 0]))
    return np.clip(apart, -limit, limit, out=apart)


def _energy(apart: NDArray[np.float32]) -> float:
    return float(np.mean(apart * apart))


def _alternating_energy(apart: NDArray[np.float32]) -> float:
    """The energy of what comes back with every other, third or fourth slice."""
    farthest = min(2 * LONGEST_PERIOD, len(apart) - 1)
    alike = {lag: float(np.mean(apart[lag:] * apart[:-lag])) for lag in range(3, farthest + 1)}
    return max(
        [(alike[4] - alike[3] - alike[5]) / 3]
        + [
            _comes_back(alike, period)
            for period in range(3, LONGEST_PERIOD + 1)
            if len(apart) + 2 >= (MIN_TURNS + 1) * period
        ]
    )


def _comes_back(alike: dict[int, float], period: int) -> float:
    """What comes back with each of two turns and not between them, the whole energy where that is everything."""
    between = [value for lag, value in alike.items() if lag < 2 * period and lag != period]
    return (min(alike[period], alike[2 * period]) - sum(between) / len(between)) * (period - 1) / period


def standing_apart(samples_ZS: NDArray[np.float32], limit: float = APART) -> int:
    """Number of slices that stand apart from those between them and the next one alike; 0 where too few to tell.

    Args:
        samples_ZS: As `sample_slices` gives them.
        limit: `APART` or `WOVEN`.

    Example:
        >>> rows = np.array([[0.0, 1], [5, 6], [0, 1], [5, 6], [0, 1]], np.float32)
        >>> standing_apart(rows), standing_apart(np.sort(rows, axis=0))
        (3, 0)
        >>> standing_apart(np.tile(np.float32([[0, 1], [5, 6], [9, 2]]), (4, 1)))
        9
    """
    if len(samples_ZS) < MIN_SLICES_APART + 2:
        return 0
    least = LEAST_CONTRAST * samples_ZS.std()
    most = 0
    for alike, nearer in _turns(samples_ZS):
        apart = (alike < limit * nearer) & (nearer > least)
        count = int(apart.sum())
        if count >= max(MIN_SLICES_APART, MIN_SHARE_APART * len(apart)):
            most = max(most, count)
    return most


def _turns(samples_ZS: NDArray[np.float32]) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """For each way to weave volumes: by how much slices a turn apart differ, and at least from the slices between."""
    count = len(samples_ZS)
    lags = range(1, min(MOST_WOVEN, count - 1) + 1)
    differ = {lag: distance(samples_ZS[lag:], samples_ZS[:-lag]) for lag in lags}

    def between(turn: int, lags: Sequence[int]) -> NDArray[np.float32]:
        pairs = count - turn
        sides = [side for lag in lags for side in (differ[lag][:pairs], differ[lag][turn - lag : count - lag])]
        return np.minimum.reduce(sides)

    for woven in range(2, MOST_WOVEN + 1):
        if woven == 2 or count >= MIN_TURNS * woven:
            yield differ[woven], between(woven, range(1, woven))
    for row in range(2, MOST_IN_A_ROW + 1):
        if count >= MIN_TURNS * 2 * row:
            yield differ[2 * row], between(2 * row, [row])


def follow_groups(samples_ZS: NDArray[np.float32], groups: Sequence[object], limit: float = APART) -> bool:
    """Whether slices of one group resemble each other far more than the slices of other groups between them.

    Args:
        samples_ZS: Consecutive slices, as `sample_slices` gives them.
        groups: What each slice's header says.
        limit: `APART` or `WOVEN`.

    Example:
        >>> rows = np.tile(np.float32([[0, 1], [5, 6]]), (4, 1))
        >>> follow_groups(rows, "abababab"), follow_groups(rows, "aabbaabb")
        (True, False)
    """
    least = LEAST_CONTRAST * float(samples_ZS.std())
    across, within = [], []
    for k, group in enumerate(groups):
        later = range(k + 1, len(groups))
        same = next((n for n in later if groups[n] == group), None)
        other = next((n for n in later if groups[n] != group), None)
        if same is None or other is None:
            continue
        alike, between = (float(distance(samples_ZS[k], samples_ZS[n])) for n in (same, other))
        if other < same:
            across.append(alike / between if between > least else 1.0)
        elif max(alike, between) > least:
            within.append(alike / max(between, least))
    # Slices side by side in a group that differ more than groups do: these cut across what alternates.
    return bool(across) and float(np.median(across)) < limit and (not within or float(np.median(within)) < 1)


def are_brighter(samples_ZS: NDArray[np.float32], marked: Sequence[bool]) -> bool:
    """Whether marked slices are brighter than the others around them, however little of an alternation that makes.

    Args:
        samples_ZS: Consecutive slices, as `sample_slices` gives them.
        marked: Of each slice.

    Example:
        >>> rows = np.arange(100, dtype=np.float32) + np.tile(np.float32([[0], [1]]), (4, 1))
        >>> are_brighter(rows, [False, True] * 4), are_brighter(rows, [True, False] * 4)
        (True, False)
    """
    low, high = float(samples_ZS.min()), float(samples_ZS.max())
    is_head = samples_ZS > low + AIR_RANGE_SHARE * (high - low)
    apart: dict[int, float] = {}
    for k in range(1, len(samples_ZS) - 1):
        before, own, after = samples_ZS[k - 1 : k + 2, is_head[k - 1 : k + 2].all(axis=0)]
        if len(own):
            apart[k] = float(np.median(own - (before + after) / 2))
    pairs = [(k, k + 1) if marked[k] else (k + 1, k) for k in range(len(marked) - 1) if marked[k] != marked[k + 1]]
    brighter = [apart[one] > apart[other] for one, other in pairs if one in apart and other in apart]
    return bool(brighter) and sum(brighter) >= MIN_BRIGHTER * len(brighter)


def distance(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Root of the mean squared difference over the last axis."""
    return np.sqrt(np.mean((a - b) ** 2, axis=-1))
