"""A random tree of vessels around a circle of Willis, with aneurysms at some of its thirteen places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from harmonize.labels import LOCATIONS
from harmonize.phantom.vessels.clinics import CLINICS
from harmonize.phantom.vessels.easy import grow_easy
from harmonize.phantom.vessels.hard import grow_hard
from harmonize.phantom.vessels.parts import Difficulty, VesselTree

_COUNT_PROBABILITIES = (0.8, 0.16, 0.04)
"""Of one, two and three aneurysms in a head that has any: 20 % have several, as over 174 studies (Jabbarli, Stroke
2018; 49: 848)."""
MEAN_COUNT = sum(count * chance for count, chance in enumerate(_COUNT_PROBABILITIES, start=1))
"""Aneurysms of a head that has any, on average."""

LOCATION_WEIGHTS = (4.0, 5.0, 14.0, 14.0, 11.0, 13.0, 16.0, 3.0, 3.0, 5.0, 5.0, 6.0, 6.0)
"""How often each of `LOCATIONS` is drawn; uneven as in the clinic, but no place so rare that a demo never sees it."""

_CLINICAL = (3.3, 3.3, 6.0, 6.0, 18.0, 18.0, 15.5, 2.0, 2.0, 7.75, 7.75, 5.0, 5.4)
SITE_WEIGHTS: Mapping[Difficulty, tuple[float, ...]] = {
    "easy": LOCATION_WEIGHTS,
    "medium": _CLINICAL,
    "hard": _CLINICAL,
}
"""Of medium and hard trees in percent, after the 6697 aneurysms of UCAS Japan (New England Journal of Medicine 2012;
366: 2474): 36 % at the middle cerebral artery, 34 % at the internal carotid, of which nearly half where the posterior
communicating artery leaves. How its other groups are split over the competition's places is a guess; what the
competition's own points say is in docs/phantom-sources.md."""


def grow_tree(
    rng: np.random.Generator, locations: Sequence[str] = (), *, difficulty: Difficulty = "easy"
) -> VesselTree:
    """Draw a tree with one aneurysm at each of `locations`.

    Args:
        rng: Where the chance comes from.
        locations: Names out of `harmonize.labels.LOCATIONS`, without repetition.
        difficulty: What the sacs are like, and whether something else looks like them. A medium or hard tree has the
            same branches, variants and mimics, and the same sac at each place, whatever `locations` are.

    Returns:
        The tree in template coordinates.
    """
    clinic = CLINICS.get(difficulty)
    return grow_easy(rng, locations) if clinic is None else grow_hard(rng, locations, clinic)


def draw_locations(
    rng: np.random.Generator, first: float, weights: Sequence[float] = LOCATION_WEIGHTS
) -> tuple[str, ...]:
    """Draw one to three different places for aneurysms, in the competition's order.

    Args:
        rng: Where the chance comes from.
        first: In [0, 1), evenly drawn: says the first of them.
        weights: How often each of `LOCATIONS` is drawn, relative to each other; 0 for never.
    """
    chances = np.asarray(weights, dtype=np.float64)
    reached = np.cumsum(chances)
    drawn = [int(np.searchsorted(reached, first * reached[-1], side="right"))]
    more = int(rng.choice(len(_COUNT_PROBABILITIES), p=_COUNT_PROBABILITIES))
    chances[drawn] = 0
    possible = min(more, int(np.count_nonzero(chances)))
    if possible:
        drawn += rng.choice(len(LOCATIONS), size=possible, replace=False, p=chances / chances.sum()).tolist()
    return tuple(LOCATIONS[index] for index in sorted(drawn))
