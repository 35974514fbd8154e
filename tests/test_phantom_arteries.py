"""The arterial tree: names on the right side, sacs of clinical size, branches that hang together."""

from __future__ import annotations

import numpy as np
import pytest

from harmonize.labels import LOCATIONS
from harmonize.phantom.randomness import rng_of
from harmonize.phantom.vessels import MAX_DIAMETER_MM, MIN_DIAMETER_MM, Flow, draw_locations, grow_tree

SEEDS = range(12)


@pytest.mark.parametrize("location", [name for name in LOCATIONS if name.startswith(("Left", "Right"))])
def test_a_sided_aneurysm_lies_on_its_side(location: str) -> None:
    # RAS+: right is positive x.
    sign = -1 if location.startswith("Left") else 1
    for seed in SEEDS:
        (aneurysm,) = grow_tree(rng_of(seed), (location,)).aneurysms
        assert sign * aneurysm.centre_mm[0] > 0


@pytest.mark.parametrize("location", LOCATIONS)
def test_every_place_has_a_branch_and_takes_a_sac_of_two_to_twelve_mm(location: str) -> None:
    for seed in SEEDS:
        tree = grow_tree(rng_of(seed), (location,))
        assert any(vessel.location == location and vessel.flow is Flow.ARTERY for vessel in tree.vessels)
        (aneurysm,) = tree.aneurysms
        assert aneurysm.location == location
        assert MIN_DIAMETER_MM <= aneurysm.diameter_mm <= MAX_DIAMETER_MM


@pytest.mark.parametrize("location", LOCATIONS)
def test_a_sac_touches_an_artery_of_its_own_name_or_its_parent(location: str) -> None:
    for seed in SEEDS:
        tree = grow_tree(rng_of(seed), (location,))
        (aneurysm,) = tree.aneurysms
        centre = np.asarray(aneurysm.centre_mm)
        gaps = [
            np.min(np.linalg.norm(vessel.tube.points_N3 - centre, axis=1) - vessel.tube.radii_N)
            for vessel in tree.vessels
            if vessel.flow is Flow.ARTERY and vessel.location is not None
        ]
        assert min(gaps) < aneurysm.diameter_mm / 2 + 1.0


def test_the_circle_is_closed() -> None:
    tree = grow_tree(rng_of(0))
    ends = [
        (vessel.location, end)
        for vessel in tree.vessels
        if vessel.flow is Flow.ARTERY
        for end in (vessel.tube.points_N3[0], vessel.tube.points_N3[-1])
    ]

    def meet(one: str, other: str) -> bool:
        return any(np.allclose(a, b) for name, a in ends if name == one for label, b in ends if label == other)

    for side in ("Left", "Right"):
        supra = f"{side} Supraclinoid Internal Carotid Artery"
        assert meet(f"{side} Infraclinoid Internal Carotid Artery", supra)
        assert meet(supra, f"{side} Middle Cerebral Artery")
        assert meet(supra, f"{side} Anterior Cerebral Artery")
        assert meet(f"{side} Anterior Cerebral Artery", "Anterior Communicating Artery")
        assert meet(f"{side} Posterior Communicating Artery", "Other Posterior Circulation")
    assert meet("Basilar Tip", "Other Posterior Circulation")


def test_locations_come_in_order_and_without_repetition() -> None:
    seen, seeds = set(), 300
    for seed in range(seeds):
        drawn = draw_locations(rng_of(seed), seed / seeds)
        assert 1 <= len(drawn) <= 3
        assert list(drawn) == [name for name in LOCATIONS if name in drawn]
        seen.update(drawn)
    assert seen == set(LOCATIONS)


def test_places_are_drawn_by_their_weights_and_never_twice() -> None:
    tip_alone = [float(name == "Basilar Tip") for name in LOCATIONS]
    assert {draw_locations(rng_of(seed), 0.999, tip_alone) for seed in range(20)} == {("Basilar Tip",)}
    weights = [1.0, 3.0] + [0.0] * 11
    first = [draw_locations(rng_of(seed), seed / 400, weights) for seed in range(400)]
    assert sum(drawn == LOCATIONS[:1] for drawn in first) / sum(len(drawn) == 1 for drawn in first) == pytest.approx(
        0.25, abs=0.03
    )
    assert {drawn for drawn in first if len(drawn) > 1} == {LOCATIONS[:2]}
