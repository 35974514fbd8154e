"""Mimics that are no arteries: veins beside them, calcium in their walls, clips, coils and blood.

Wide places of veins are seen more often than in the clinic (see `walls`); docs/phantom-sources.md has its numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from harmonize.labels import LOCATIONS
from harmonize.phantom.vessels.clinics import Clinic, Mimics
from harmonize.phantom.vessels.courses import across, place_at
from harmonize.phantom.vessels.parts import Aneurysm, Flow, Mimic, Vessel, as_point
from harmonize.phantom.vessels.sacs import Site, draw_site
from harmonize.phantom.vessels.spreads import Spread
from harmonize.phantom.vessels.template import SIGNS, Nodes
from harmonize.phantom.vessels.tubes import Tube, spline

Found = tuple[list[Mimic], list[Vessel]]

VARICES_A_HEAD = 1.0
PLAQUES_A_HEAD = 4.0
"""Besides the first, in heads that have any."""
BLEEDING_HEADS, OLD = 0.05, 0.3
"""Of heads: blood around the arteries; and of heads with blood, those where it is some weeks old."""

_TRIES = 8
"""Places that are tried for metal that must hide no sac."""

_JITTER_MM = 1.0
_VEINS: Mapping[str, tuple[tuple[tuple[float, float, float], ...], tuple[float, ...]]] = {
    "basal vein": (
        ((12, 7, -21), (15.5, -8, -18), (17, -22, -11), (9, -32, 2), (0.5, -33, 8)), (0.7, 0.9, 1.1, 1.2, 1.3),
    ),
    "sylvian vein": (((46, -2, -3), (36, 13, -13), (25, 17, -21), (15, 13, -31)), (0.8, 1.0, 1.1, 1.2)),
    "internal cerebral vein": (((2, 6, 11), (2, -14, 12), (1, -32, 8)), (0.8, 1.0, 1.2)),
}  # fmt: skip
"""Right side: nodes in template mm, and the radius at each."""
_HALVES = (slice(None, 3), slice(2, None))
"""Of the nodes of a basal vein that is not whole: one of the two."""
_CAVERNOUS = ("lacerum", "siphon_back", "siphon_front", "genu")

_CALCIFIED = (("ica_infra", 0.45, 1.0), ("ica_supra", 0.0, 0.6), ("vertebral", 0.85, 1.0), ("basilar", 0.0, 1.0))
_CISTERNS: Sequence[tuple[tuple[tuple[float, float, float], ...], float]] = (
    (((0, 10, -21), (0, 2, -22)), 5.0),
    (((0, 1, -30), (0, -2, -44)), 4.0),
    (((0, 24, -13), (0, 36, 0)), 2.5),
    (((12, 12, -19), (24, 12, -17), (35, 9, -11)), 3.0),
    (((-12, 12, -19), (-24, 12, -17), (-35, 9, -11)), 3.0),
)
"""Where blood gathers around the arteries: courses in template mm and radius."""


def draw_veins(rng: np.random.Generator, nodes: Nodes, clinic: Clinic) -> Found:
    """Veins that run beside arteries, the cavernous sinus where it is filled, and wide places of them."""
    mimics, vessels, common = [], [], clinic.mimics
    for side, sign in SIGNS.items():
        for name, (course, radii) in _VEINS.items():
            points = [np.array(point) * (sign, 1, 1) + rng.normal(scale=_JITTER_MM, size=3) for point in course]
            wide = np.array(radii) * rng.uniform(0.7, 1.3)
            whole = name != "basal vein" or common.basal_vein_whole == 1 or rng.random() < common.basal_vein_whole
            part = slice(None) if whole else _HALVES[int(rng.integers(2))]
            tube = spline(points[part], wide[part])
            vessels.append(_vein(tube, f"{side} {name}"))
        chance, width = rng.random(), rng.uniform(1.3, 2.6)
        beside = rng.normal((3.4 * sign, 0, 0), 0.5)
        if chance < common.cavernous_filled:
            points = [nodes[f"{side} {node}"] + beside for node in _CAVERNOUS]
            vessels.append(_vein(spline(points, width * rng.uniform(0.7, 1.2, size=4), 2.5), f"{side} cavernous sinus"))
    courses = list(vessels)
    mimics = [
        Mimic(kind="vein", centre_mm=as_point(place_at(vein.tube, 0.5).point_3))
        for vein in courses
        if "cavernous" in vein.branch
    ]
    for _ in range(int(rng.poisson(common.wide_places * VARICES_A_HEAD))):
        vein = courses[int(rng.integers(len(courses)))]
        place = place_at(vein.tube, float(rng.uniform(0.1, 0.7)))
        radius = max(1.5 * place.radius_mm, clinic.sacs.diameter_mm.draw(rng) / 2)
        ball = Tube(points_N3=place.point_3[None], radii_N=np.array([radius]))
        vessels.append(_vein(ball, "varix"))
        mimics.append(Mimic(kind="vein", centre_mm=as_point(place.point_3)))
    return mimics, vessels


def calcify(rng: np.random.Generator, arteries: Mapping[str, Vessel], common: Mimics) -> Found:
    """Plaques in the walls of the carotid, vertebral and basilar arteries, in the heads that have any."""
    mimics: list[Mimic] = []
    vessels: list[Vessel] = []
    if rng.random() >= common.calcified_heads:
        return mimics, vessels
    parts = [
        (vessel, low, high)
        for base, low, high in _CALCIFIED
        for name, vessel in arteries.items()
        if name.split()[-1] == base
        for _ in range(common.plaques[base])
    ]
    for _ in range(1 + int(rng.poisson(PLAQUES_A_HEAD))):
        artery, low, high = parts[int(rng.integers(len(parts)))]
        place = place_at(artery.tube, float(rng.uniform(low, high)))
        centre = place.point_3 + across(rng, place.along_3) * place.radius_mm
        half = place.along_3 * float(rng.uniform(0.3, 2.5))
        plaque = Tube(points_N3=np.stack([centre - half, centre + half]), radii_N=rng.uniform(0.4, 1.2, size=2))
        vessels.append(Vessel(tube=plaque, location=artery.location, flow=Flow.CALCIUM, branch="plaque"))
        mimics.append(Mimic(kind="calcium", centre_mm=as_point(centre)))
    return mimics, vessels


def treat(
    rng: np.random.Generator,
    nodes: Nodes,
    arteries: Mapping[str, Vessel],
    sites: Sequence[Aneurysm],
    clinic: Clinic,
) -> Found:
    """Clips and coils of aneurysms that were treated, where they hide none of `sites`, the places of sacs."""
    mimics: list[Mimic] = []
    vessels: list[Vessel] = []
    for kind, share in clinic.mimics.treated.items():
        chance, bloom = rng.random(), clinic.mimics.bloom_mm[kind].draw(rng)
        sites_drawn = (
            draw_site(rng, str(rng.choice(LOCATIONS)), nodes, arteries, clinic.sacs.tilt_deg) for _ in range(_TRIES)
        )
        tries = [_metal(rng, kind, site, clinic.sacs.diameter_mm) for site in sites_drawn]
        metal = next((tube for tube in tries if not _hides(tube, sites)), None)
        if chance >= share or metal is None:
            continue
        around = Tube(points_N3=metal.points_N3, radii_N=metal.radii_N + bloom)
        vessels += [
            Vessel(tube=tube, location=None, flow=flow, branch=kind)
            for tube, flow in ((metal, Flow.METAL), (around, Flow.BLOOM))
        ]
        mimics.append(Mimic(kind=kind, centre_mm=as_point(metal.points_N3.mean(axis=0))))
    return mimics, vessels


def bleed(rng: np.random.Generator, haematomas: tuple[float, float]) -> Found:
    """Blood in the cisterns around the arteries, and within the brain; `Mimics` says how often."""
    mimics: list[Mimic] = []
    vessels: list[Vessel] = []

    def spill(tube: Tube, flow: Flow) -> None:
        vessels.append(Vessel(tube=tube, location=None, flow=flow, branch="blood"))
        mimics.append(Mimic(kind="blood", centre_mm=as_point(place_at(tube, 0.5).point_3)))

    flow = Flow.OLD_BLOOD if rng.random() < OLD else Flow.BLOOD
    around = rng.random() < BLEEDING_HEADS
    within = rng.random() < haematomas[int(around)]
    if around:
        reached = rng.random(len(_CISTERNS)) < 0.6
        reached[int(rng.integers(len(_CISTERNS)))] = True
        for (course, radius), wet in zip(_CISTERNS, reached, strict=True):
            if wet:
                points = np.array(course) + rng.normal(scale=1.5, size=(len(course), 3))
                spill(spline(points, radius * rng.uniform(0.5, 1.3, size=len(course))), flow)
    if within:
        start = rng.uniform((12, -55, -5), (42, 45, 35)) * (rng.choice((-1, 1)), 1, 1)
        steps = np.cumsum(rng.normal(scale=3.5, size=(4, 3)), axis=0)
        spill(Tube(points_N3=start + steps, radii_N=rng.uniform(3.0, 10.0, size=4)), flow)
    return mimics, vessels


def _vein(tube: Tube, name: str) -> Vessel:
    return Vessel(tube=tube, location=None, flow=Flow.VEIN, branch=name)


def _metal(rng: np.random.Generator, kind: Literal["clip", "coil"], site: Site, diameter_mm: Spread) -> Tube:
    """A ball of coils of the size of a sac, or a clip across the neck of one."""
    root, towards, wall = site.place.point_3, site.towards_3, site.place.radius_mm
    if kind == "coil":
        radius = diameter_mm.draw(rng) / 2
        return Tube(points_N3=(root + towards * (0.8 * wall + radius))[None], radii_N=np.array([radius]))
    ends = wall + np.array([0.0, rng.uniform(7.0, 12.0)])
    return Tube(points_N3=root + ends[:, None] * towards, radii_N=np.array([0.7, 1.1]))


def _hides(metal: Tube, sites: Sequence[Aneurysm]) -> bool:
    """Whether metal reaches into the inner half of a sac."""
    for site in sites:
        gaps = np.linalg.norm(np.linspace(metal.points_N3[0], metal.points_N3[-1], 5) - site.centre_mm, axis=1)
        if gaps.min() < metal.radii_N.max() + site.diameter_mm / 4:
            return True
    return False
