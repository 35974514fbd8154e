"""Numbers of hard heads: the circle's variants, and the shapes of sacs, as they were published."""

from __future__ import annotations

from collections import Counter

import numpy as np

from harmonize.labels import LOCATIONS
from harmonize.phantom.randomness import rng_of
from harmonize.phantom.vessels import Flow, Vessel, grow_tree, sacs, variants
from harmonize.phantom.vessels.clinics import HARD
from harmonize.phantom.vessels.template import SIGNS, draw_nodes
from harmonize.phantom.vessels.tubes import Tube

SIGMAS = 4.0
"""How far a share may lie from what is expected, in standard errors."""


def near(share: float, expected: float, count: int) -> bool:
    return abs(share - expected) <= SIGMAS * float(np.sqrt(expected * (1 - expected) / count))


def test_variants_are_as_frequent_as_published() -> None:
    count = 4000
    rng = rng_of("variants")
    heads = [variants.draw_variants(rng, HARD.circle) for _ in range(count)]
    of_heads = Counter(name for head in heads for name in head)
    fetal = [sum("fetal" in name for name in head) for head in heads]
    assert near(fetal.count(1) / count, variants.FETAL_ONE_SIDE, count)
    assert near(fetal.count(2) / count, variants.FETAL_BOTH_SIDES, count)
    assert near(of_heads["azygos aca"] / count, variants.AZYGOS, count)
    assert near(of_heads["fenestrated basilar"] / count, variants.FENESTRATED["basilar"], count)
    for name in ("absent a1", "thin a1", "thin vertebral", "thin transverse"):
        sides = HARD.circle.sides[name]
        assert isinstance(sides, variants.Sides)
        both = sum({f"left {name}", f"right {name}"} <= head for head in heads)
        for side, share in (("left", sides.left), ("right", sides.right)):
            # One A1 that is absent or thin is enough for a head.
            assert abs((of_heads[f"{side} {name}"] - both) / count - share) < 0.01
        assert abs(both / count - sides.both) < 0.015
    # Jones 2021: poor on one side in 19 % (standard deviation 9) and on both in 23 % (15); none of them fetal.
    poor = [sum(name.endswith("pcom") for name in head) for head in heads]
    assert 0.15 < poor.count(1) / count < 0.25
    assert 0.15 < poor.count(2) / count < 0.25
    # Jones 2021: 32 %; Krabbe-Hartkamp 1998: 42 % of circles are whole.
    parts = ("a1", "p1", "pcom", "pca")
    whole = [not any(n.split()[-1] in parts and "fenestrated" not in n for n in head) for head in heads]
    assert 0.32 < np.mean(whole) < 0.42
    for head in heads:
        assert len({name.replace("absent", "thin") for name in head}) == len(head)
        for side in SIGNS:
            assert not {f"{side} thin p1", f"{side} absent pcom"} <= head


def test_sacs_are_as_deep_as_wide_and_as_tilted_as_measured_ones() -> None:
    """Height by neck 1.5 to 1.9 with a deviation of 0.5 to 0.8; 106 degrees to an artery that they grow along."""
    rng = rng_of("shapes")
    artery = Vessel(
        tube=Tube(points_N3=np.array([[0.0, 60, 0], [0.0, 60, 40]]), radii_N=np.array([1.5, 1.5])),
        location="Left Middle Cerebral Artery", flow=Flow.ARTERY, branch="left mca",
    )  # fmt: skip
    nodes = draw_nodes(rng)
    ratios, angles, blebs = [], [], []
    for _ in range(1200):
        aneurysm, parts = sacs.blow_sac(rng, "Left Middle Cerebral Artery", nodes, {"left mca": artery}, HARD.sacs)
        if aneurysm.at_branching or aneurysm.shape == "fusiform" or aneurysm.thrombosed:
            continue
        body, stalk, *others = [part.tube for part in parts if part.flow is Flow.SAC]
        way = stalk.points_N3[1] - stalk.points_N3[0]
        away = float(np.linalg.norm(way))
        way /= away
        reach = abs(float((body.points_N3[1] - body.points_N3[0]) @ way)) / 2
        ends = np.linspace(-reach, reach, 41) + away - 1.5
        cut = np.sqrt(np.maximum(body.radii_N[0] ** 2 - ends**2, 0)).max()
        height = away + reach + max(body.radii_N[0], stalk.radii_N[0]) - 1.5
        ratios.append(height / 2 / max(cut, stalk.radii_N[0]))
        angles.append(np.degrees(np.arccos(-way[2])))
        blebs += [len(others)] if aneurysm.shape == "lobulated" else []
    assert 1.5 < np.mean(ratios) < 1.95
    assert 0.5 < np.std(ratios) < 0.9
    assert 101 < np.mean(angles) < 111
    assert 15 < np.std(angles) < 22
    assert 1.1 < np.mean(blebs) < 1.5


def test_variants_change_the_arteries_that_they_name() -> None:
    seen = set()
    for seed in range(120):
        tree = grow_tree(rng_of(seed, "hard"), LOCATIONS, difficulty="hard")
        widths = {v.branch: float(v.tube.radii_N[0]) for v in tree.vessels}
        for variant in tree.variants:
            side, _, rest = variant.partition(" ")
            kind, _, artery = rest.partition(" ")
            if kind == "absent":
                assert f"{side} {artery}" not in widths
            elif kind == "fetal":
                assert widths[f"{side} pcom"] > widths[f"{side} p1"]
            elif variant == "fenestrated basilar":
                assert "basilar second" in widths
            seen.add(kind)
    assert {"absent", "fetal", "thin"} <= seen
