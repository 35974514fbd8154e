"""Hard and medium trees: sacs of all sizes, variants of the circle, and much that looks like a sac and is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from harmonize.labels import LOCATIONS
from harmonize.phantom.vessels import beside, walls
from harmonize.phantom.vessels.clinics import Clinic
from harmonize.phantom.vessels.courses import place_at
from harmonize.phantom.vessels.parts import Flow, Vessel, VesselTree
from harmonize.phantom.vessels.sacs import blow_sac
from harmonize.phantom.vessels.template import SIGNS, Branch, branches, draw_factors, draw_nodes, lay
from harmonize.phantom.vessels.tubes import spline
from harmonize.phantom.vessels.variants import Circle, calibre_factors, draw_variants

_STEP_MM = 2.5
"""Length of a capsule: kinks are sharper than the courses of the template."""

_SWAY = 0.08
"""Standard deviation by which an artery sways between two nodes, against their distance."""

_AZYGOS_MM = 0.4
"""How far from the midline the two halves of one trunk lie."""

_THIN: Mapping[str, tuple[float, tuple[tuple[float, float, float], ...], tuple[float, ...]]] = {
    "acha": (0.7, ((15, 4, -20), (17, -6, -17), (19, -14, -12)), (0.5, 0.5, 0.45, 0.35)),
    "ophthalmic": (0.1, ((11, 24, -27), (17, 37, -27)), (0.7, 0.6, 0.5)),
}
"""Arteries that leave the carotid: at which share of its upper part, further nodes on the right side, radii in mm."""


def grow_hard(rng: np.random.Generator, locations: Sequence[str], clinic: Clinic) -> VesselTree:
    """Draw a hard or medium tree in template coordinates with one aneurysm at each of `locations`.

    Each of the thirteen places has a sac of its own, drawn by itself and only kept where it is asked for, so that trees
    of one `rng` differ by whole sacs and by nothing else.
    """
    seeds = rng.integers(2**63, size=2 + len(LOCATIONS))
    body, alike = (np.random.default_rng(seed) for seed in seeds[:2])
    variants = draw_variants(body, clinic.circle)
    nodes = _draw_nodes(body, variants)
    arteries = _lay_arteries(body, nodes, variants, clinic.circle)
    veins = [vessel for name, vessel in arteries.items() if vessel.flow is Flow.VEIN]
    arteries = {name: vessel for name, vessel in arteries.items() if vessel.flow is Flow.ARTERY}
    mimics = [
        *walls.fenestrate(alike, arteries, variants, clinic.mimics.fenestration_mm),
        *walls.widen(alike, arteries, often=clinic.mimics.wide_places),
        *walls.wind(alike, arteries, often=clinic.mimics.wide_places),
    ]
    sacs = {
        location: blow_sac(np.random.default_rng(seed), location, nodes, arteries, clinic.sacs)
        for location, seed in zip(LOCATIONS, seeds[2:], strict=True)
    }
    vessels = [*arteries.values(), *veins]
    for found, parts in (
        walls.swell(alike, arteries, nodes, often=clinic.mimics.wide_places),
        walls.funnel(alike, arteries, clinic.mimics),
        beside.draw_veins(alike, nodes, clinic),
        beside.calcify(alike, arteries, clinic.mimics),
        beside.treat(alike, nodes, arteries, [aneurysm for aneurysm, _ in sacs.values()], clinic),
        beside.bleed(alike, clinic.mimics.haematomas),
    ):
        mimics += found
        vessels += parts
    for location in locations:
        vessels += sacs[location][1]
    return VesselTree(
        vessels=tuple(vessels),
        aneurysms=tuple(sacs[location][0] for location in locations),
        mimics=tuple(mimics),
        variants=variants,
    )


def _draw_nodes(rng: np.random.Generator, variants: frozenset[str]) -> dict[str, NDArray[np.float64]]:
    nodes = draw_nodes(rng)
    if "azygos aca" in variants:
        for name in ("a2", "a2_genu"):
            middle = (nodes[f"left {name}"] + nodes[f"right {name}"]) / 2
            nodes.update({f"{side} {name}": np.array([_AZYGOS_MM * sign, *middle[1:]]) for side, sign in SIGNS.items()})
    return nodes


def _winding(
    rng: np.random.Generator, branch: Branch, nodes: Mapping[str, NDArray[np.float64]]
) -> tuple[Branch, dict[str, NDArray[np.float64]]]:
    """A branch with one more node between any two, to the side of its course by chance, and its nodes' places."""
    points = np.stack([nodes[node] for node in branch.nodes])
    padded = np.vstack([2 * points[0] - points[1], points, 2 * points[-1] - points[-2]])
    # Halfway on the curve by Catmull and Rom that `spline` lays.
    middles = (9 * (padded[1:-2] + padded[2:-1]) - padded[:-3] - padded[3:]) / 16
    gaps = np.linalg.norm(np.diff(points, axis=0), axis=1, keepdims=True)
    middles += rng.normal(scale=_SWAY, size=middles.shape) * gaps
    calibres = np.asarray(branch.calibres_mm)
    course = np.empty((2 * len(points) - 1, 3))
    course[::2], course[1::2] = points, middles
    wide = np.empty(len(course))
    wide[::2], wide[1::2] = calibres, (calibres[1:] + calibres[:-1]) / 2
    names = [f"{branch.name} {number}" for number in range(len(course))]
    return branch._replace(nodes=names, calibres_mm=wide.tolist()), dict(zip(names, course, strict=True))


def _lay_arteries(
    rng: np.random.Generator, nodes: Mapping[str, NDArray[np.float64]], variants: frozenset[str], circle: Circle
) -> dict[str, Vessel]:
    """All branches of the template that this head has, and the thin arteries of its carotids."""
    factors = draw_factors(rng)
    for name, factor in calibre_factors(variants, circle).items():
        factors[name] *= factor
    for name in factors:
        factors[name] *= circle.calibres.get(name.split()[-1], 1.0)
    found = {
        branch.name: lay(*_winding(rng, branch, nodes), factors, _STEP_MM)
        for branch in branches()
        if factors[branch.name] > 0
    }
    for side, sign in SIGNS.items():
        for name, (share, course, radii) in _THIN.items():
            start = place_at(found[f"{side} ica_supra"].tube, share).point_3
            rest = [np.array(point) * (sign, 1, 1) + rng.normal(scale=1.0, size=3) for point in course]
            tube = spline([start, *rest], np.array(radii) * rng.uniform(0.85, 1.2), _STEP_MM)
            found[f"{side} {name}"] = Vessel(tube=tube, location=None, flow=Flow.ARTERY, branch=f"{side} {name}")
    return found
