"""The easy tree: sacs are balls at fixed nodes, and nothing else looks like one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from harmonize.phantom.vessels.parts import Aneurysm, Flow, Vessel, VesselTree, as_point
from harmonize.phantom.vessels.template import (
    SIGNS,
    Nodes,
    branches,
    draw_factors,
    draw_nodes,
    lay,
    node_of,
    side_of,
    sites_of,
)
from harmonize.phantom.vessels.tubes import Tube

MIN_DIAMETER_MM = 2.0
MAX_DIAMETER_MM = 12.0
MEDIAN_DIAMETER_MM = 6.0

_DIAMETER_SIGMA_LOG = 0.4


def grow_easy(rng: np.random.Generator, locations: Sequence[str]) -> VesselTree:
    """Draw an easy tree in template coordinates with one aneurysm at each of `locations`."""
    nodes = draw_nodes(rng)
    factors = _draw_calibres(rng)
    vessels = [lay(branch, nodes, factors) for branch in branches()]
    aneurysms = []
    for location in locations:
        aneurysm, parts = _blow(rng, location, nodes)
        aneurysms.append(aneurysm)
        vessels.extend(parts)
    return VesselTree(vessels=tuple(vessels), aneurysms=tuple(aneurysms))


def _draw_calibres(rng: np.random.Generator) -> dict[str, float]:
    """Factors on the calibres, among them the common variants of the circle."""
    factors = draw_factors(rng)
    for side in SIGNS:
        if rng.random() < 0.25:
            factors[f"{side} pcom"] *= 0.45
        elif rng.random() < 0.12:
            factors[f"{side} pcom"] *= 1.3
            factors[f"{side} p1"] *= 0.5
        if rng.random() < 0.1:
            factors[f"{side} a1"] *= 0.55
        if rng.random() < 0.2:
            factors[f"{side} vertebral"] *= 0.6
        if rng.random() < 0.3:
            factors[f"{side} transverse"] *= 0.6
    return factors


def _blow(rng: np.random.Generator, location: str, nodes: Nodes) -> tuple[Aneurysm, list[Vessel]]:
    """One sac at `location`: a ball on a short neck, sometimes with a daughter sac."""
    sites = sites_of(location)
    node, direction, parent_mm = sites[int(rng.integers(len(sites)))]
    side = side_of(location) or str(rng.choice(list(SIGNS)))
    if location == "Anterior Communicating Artery":
        root = (nodes["left acom"] + nodes["right acom"]) / 2
    else:
        root = nodes[node_of(node, side)]
    towards = np.asarray(direction) * (SIGNS[side], 1, 1) + rng.normal(scale=0.2, size=3)
    if node == "a2_genu" or node == "a1":
        # A sac of one side stays on that side.
        towards[0] = SIGNS[side] * max(abs(towards[0]), 0.35)
    towards /= np.linalg.norm(towards)
    diameter = float(
        np.clip(np.exp(rng.normal(np.log(MEDIAN_DIAMETER_MM), _DIAMETER_SIGMA_LOG)), MIN_DIAMETER_MM, MAX_DIAMETER_MM)
    )
    radius = diameter / 2
    centre = root + towards * (0.6 * parent_mm + 0.9 * radius)
    neck = Tube(points_N3=np.stack([root, centre]), radii_N=np.array([0.7 * parent_mm, 0.55 * radius]))
    parts = [Tube(points_N3=centre[None], radii_N=np.array([radius])), neck]
    if diameter > MEDIAN_DIAMETER_MM and rng.random() < 0.4:
        aside = towards + rng.normal(scale=0.5, size=3)
        bleb = centre + aside / np.linalg.norm(aside) * 0.9 * radius
        parts.append(Tube(points_N3=bleb[None], radii_N=np.array([0.35 * radius])))
    aneurysm = Aneurysm(location=location, centre_mm=as_point(centre), diameter_mm=diameter)
    return aneurysm, [Vessel(tube=part, location=location, flow=Flow.SAC) for part in parts]
