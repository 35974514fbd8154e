"""Volumes that were numbered one after the other: runs of slices that go one way along the normal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MAX_RUNS = 8
"""More turns than that are no volumes one after the other."""


def runs(order: Sequence[int] | Sequence[str], offsets: NDArray[np.float64], least: int) -> list[str] | None:
    """Cut slices into the fewest runs that each go one way, and of such cuts into those with the most even steps.

    Args:
        order: A number, or a text that sorts like one, of each slice.
        offsets: (N,) their places along the normal, mm, no two the same.
        least: Slices a run.

    Returns:
        The run of each slice, "1" for that which comes first in the order; None where there are no runs of `least`
        slices, where the slices are one run, or where two of them have one number or text.

    Example:
        >>> runs([1, 4, 2, 5, 3, 6], np.arange(6.0), least=3)
        ['1', '2', '1', '2', '1', '2']
        >>> runs([3, 2, 1], np.arange(3.0), least=1) is None
        True
    """
    _, ranks = np.unique(np.array(order), return_inverse=True)
    if len(set(ranks.tolist())) < len(order):
        return None
    by_rank = np.argsort(ranks)
    steps = np.diff(offsets[by_rank])
    up = steps > 0
    turns = np.flatnonzero(up[1:] != up[:-1]) + 1
    if not len(turns) or len(turns) > 2 * (MAX_RUNS - 1):
        return None
    cuts = _best_cuts(steps, sorted({0, len(order)} | {int(turn) + more for turn in turns for more in (0, 1)}), least)
    if cuts is None:
        return None
    return [str(int(run)) for run in np.searchsorted(cuts, ranks, side="right")]


def _best_cuts(steps: NDArray[np.float64], candidates: Sequence[int], least: int) -> list[int] | None:
    """Where runs begin, the end included; the last step before each run leads to it and belongs to none."""
    unevenness = {
        (first, last): _unevenness(steps[first : last - 1])
        for n, first in enumerate(candidates)
        for last in candidates[n + 1 :]
        if last - first >= least
    }
    # By the end of a run: (largest unevenness so far, where the runs begin).
    best: dict[int, tuple[float, list[int]]] = {candidates[0]: (0.0, [candidates[0]])}
    for _ in range(MAX_RUNS):
        longer: dict[int, tuple[float, list[int]]] = {}
        for (first, last), uneven in unevenness.items():
            if first in best and np.isfinite(uneven):
                reached = max(best[first][0], uneven), [*best[first][1], last]
                longer[last] = min(longer.get(last, reached), reached)
        if candidates[-1] in longer:
            return longer[candidates[-1]][1][:-1]
        best = longer
    return None


def _unevenness(steps: NDArray[np.float64]) -> float:
    """Largest step by the smallest, infinite where they go both ways."""
    if len({bool(step > 0) for step in steps.tolist()}) > 1:
        return float("inf")
    sizes = np.abs(steps)
    return float(sizes.max() / sizes.min()) if len(sizes) else 1.0
