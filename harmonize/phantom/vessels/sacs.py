"""Aneurysms of medium and hard trees: where they grow, how large they are, and what they look like."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harmonize.phantom.vessels.clinics import LARGE_MM, LARGEST_MM, Sacs
from harmonize.phantom.vessels.courses import Place, across, length, nearest, place_at, stretch, widened, widest_past
from harmonize.phantom.vessels.parts import Aneurysm, Flow, Shape, Vessel, as_point
from harmonize.phantom.vessels.spreads import Even
from harmonize.phantom.vessels.template import SIGNS, Nodes, node_of, side_of, sites_of
from harmonize.phantom.vessels.tubes import Tube

ALONG_AN_ARTERY = 0.25
FUSIFORM_ALONG_AN_ARTERY = 0.30
"""Shares of all, and of those along an artery. docs/phantom-sources.md has what was published of these, and of all
below; `clinics` has what medium and hard trees differ in."""
THROMBOSED = (0.03, 0.25)
"""Of smaller ones, and from `LARGE_MM` on."""
FUSIFORM_LENGTH = (1.5, 2.5)
"""Of its width, evenly drawn."""

_TURN = 0.35
"""Standard deviation of a sac's direction along each axis, against the unit vector of its site."""

_MOST_TILTED_DEG = 55.0
"""No sac lies down on its artery."""

_ALONG: Mapping[str, Sequence[tuple[str, float, float]]] = {
    "Infraclinoid Internal Carotid Artery": (("ica_infra", 0.45, 0.95),),
    "Supraclinoid Internal Carotid Artery": (("ica_supra", 0.10, 0.90),),
    "Middle Cerebral Artery": (("mca", 0.15, 0.90), ("m2_up", 0.05, 0.40), ("m2_low", 0.05, 0.40)),
    "Anterior Cerebral Artery": (("a1", 0.15, 0.90), ("a2", 0.10, 0.60)),
    "Posterior Communicating Artery": (("pcom", 0.15, 0.85),),
    "Anterior Communicating Artery": (("acom", 0.25, 0.75),),
    "Other Posterior Circulation": (
        ("basilar", 0.10, 0.90), ("p1", 0.25, 0.80), ("p2", 0.05, 0.50), ("sca", 0.05, 0.50), ("aica", 0.05, 0.40),
        ("vertebral", 0.88, 0.98), ("pica", 0.05, 0.50),
    ),
}  # fmt: skip
"""From the side of which arteries sacs grow, and between which parts of their length; the basilar tip is none."""


class Site(NamedTuple):
    """Where a sac grows: the place on its parent artery, the way that it points to, and the artery if it has one."""

    place: Place
    towards_3: NDArray[np.float64]
    parent: tuple[Vessel, float] | None


def blow_sac(
    rng: np.random.Generator, location: str, nodes: Nodes, arteries: Mapping[str, Vessel], like: Sacs
) -> tuple[Aneurysm, list[Vessel]]:
    """Draw an aneurysm at `location`, and the tubes that it is made of.

    Args:
        rng: Where the chance comes from.
        location: Its name in the competition.
        nodes: Places of the head's nodes.
        arteries: The head's named arteries by branch, as they run.
        like: What sacs are like.
    """
    diameter = like.diameter_mm.draw(rng)
    site = draw_site(rng, location, nodes, arteries, like.tilt_deg)
    if site.parent and rng.random() < FUSIFORM_ALONG_AN_ARTERY and diameter > 3 * site.place.radius_mm:
        tube = _fusiform(rng, *site.parent, diameter)
        shape: Shape = "fusiform"
        centre, body, blebs = site.place.point_3, [tube], []
    else:
        centre, body = _sac(rng, site, diameter, like)
        blebs = list(_blebs(rng, centre, body[0], site.towards_3, like)) if rng.random() < like.lobulated else []
        shape = "lobulated" if blebs else "saccular"
    large = int(diameter >= LARGE_MM)
    thrombosed = shape != "fusiform" and rng.random() < THROMBOSED[large]
    calcified = rng.random() < like.calcified[large]
    fillings = [(tube, Flow.SAC) for tube in (*body, *blebs)]
    if thrombosed:
        fillings = [*_clot(rng, site, centre, body, like.lumen), *((tube, Flow.THROMBUS) for tube in blebs)]
    if calcified:
        fillings += [(tube, Flow.CALCIUM) for tube in shells(rng, centre, diameter / 2)]
    aneurysm = Aneurysm(
        location=location,
        centre_mm=as_point(centre),
        diameter_mm=diameter,
        shape=shape,
        at_branching=site.parent is None,
        thrombosed=thrombosed,
        calcified=calcified,
    )
    return aneurysm, [Vessel(tube=tube, location=location, flow=flow, branch="sac") for tube, flow in fillings]


def shells(rng: np.random.Generator, centre_3: NDArray[np.float64], radius_mm: float) -> Iterator[Tube]:
    """Two to four plaques in the wall of a ball."""
    for _ in range(int(rng.integers(2, 5))):
        start = rng.normal(size=3)
        ends = np.stack([start, start + rng.normal(scale=0.5, size=3) * np.linalg.norm(start)])
        ends *= radius_mm / np.linalg.norm(ends, axis=1, keepdims=True)
        yield Tube(points_N3=centre_3 + ends, radii_N=rng.uniform(0.3, 0.6, size=2))


def draw_site(
    rng: np.random.Generator,
    location: str,
    nodes: Nodes,
    arteries: Mapping[str, Vessel],
    tilt_deg: tuple[float, float] | None,
) -> Site:
    """Draw where a sac grows at a place in the competition, and which way; `blow_sac` and `Sacs` say of what."""
    side = side_of(location) or str(rng.choice(list(SIGNS)))
    name = location if side_of(location) is None else location.partition(" ")[2]
    stretches = [
        (arteries[branch], low, high)
        for base, low, high in _ALONG.get(name, ())
        if (branch := base if base in arteries else f"{side} {base}") in arteries
    ]
    if rng.random() < ALONG_AN_ARTERY and stretches:
        parent, low, high = stretches[int(rng.integers(len(stretches)))]
        fraction = float(rng.uniform(low, high))
        place = place_at(parent.tube, fraction)
        way = across(rng, place.along_3)
        if tilt_deg is None:
            way = _outward(way, side, place)
        else:
            way = way if _is_outward(way, side, place) else -way
            tilt = np.deg2rad(np.clip(rng.normal(*tilt_deg), -_MOST_TILTED_DEG, _MOST_TILTED_DEG))
            way = np.cos(tilt) * way + np.sin(tilt) * place.along_3
            if side_of(location) and not _is_outward(way, side, place):
                # It would lean over the midline: it stands upright.
                way = way * (0, 1, 1) / np.linalg.norm(way[1:])
        return Site(place, way, (parent, fraction))
    if location == "Anterior Communicating Artery":
        roots = [((nodes["left acom"] + nodes["right acom"]) / 2, towards) for _, towards, _ in sites_of(location)]
    else:
        roots = [(nodes[node_of(node, side)], towards) for node, towards, _ in sites_of(location)]
    # An artery that is missing bears no sac.
    order = [roots[index] for index in rng.permutation(len(roots))]
    there = ((at[1], way) for root, way in order if (at := widest_past(root, arteries.values())))
    place, towards = next(there, None) or (_nearest(order[0][0], arteries), order[0][1])
    way = np.asarray(towards) * (SIGNS[side], 1, 1) + rng.normal(scale=_TURN, size=3)
    return Site(place, _outward(way / np.linalg.norm(way), side, place), None)


def _nearest(root_3: NDArray[np.float64], arteries: Mapping[str, Vessel]) -> Place:
    """The place on the artery that passes nearest to a node which all have swayed away from."""
    return min((nearest(vessel.tube, root_3) for vessel in arteries.values()), key=lambda found: found[0])[1]


def _is_outward(way_3: NDArray[np.float64], side: str, place: Place) -> bool:
    """Whether a sac of one side stays on that side, even where its artery runs along the midline."""
    return bool(abs(place.point_3[0]) > LARGEST_MM or way_3[0] * SIGNS[side] >= 0)


def _outward(way_3: NDArray[np.float64], side: str, place: Place) -> NDArray[np.float64]:
    """The way itself, or its mirror image where it is not outward."""
    if _is_outward(way_3, side, place):
        return way_3
    return way_3 * (-1, 1, 1)


def _fusiform(rng: np.random.Generator, parent: Vessel, fraction: float, diameter: float) -> Tube:
    long = diameter * float(rng.uniform(*FUSIFORM_LENGTH))
    factor = diameter / 2 / place_at(parent.tube, fraction).radius_mm
    wide = widened(parent.tube, fraction, long, factor)
    return stretch(wide, fraction, min(long, length(wide)))


def _sac(rng: np.random.Generator, site: Site, diameter: float, like: Sacs) -> tuple[NDArray[np.float64], list[Tube]]:
    """A pear or a ball on a neck: its centre, and its body before its neck."""
    longer, wall = like.longer.draw(rng), site.place.radius_mm
    radius = diameter / 2 / (1 + longer)
    axis = site.towards_3 + rng.normal(scale=like.turned, size=3)
    reach = axis / np.linalg.norm(axis) * longer * radius
    neck = like.neck.draw(rng)
    if like.sunk is None:
        if site.parent is not None:
            # The way out of an artery is longer for a sac that leans.
            leans = float(site.towards_3 @ place_at(site.parent[0].tube, site.parent[1]).along_3)
            wall /= float(np.sqrt(1 - min(leans**2, 0.7)))
        # A ball that the wall cuts in a circle as wide as the neck; of one as wide as itself, half is inside.
        away = wall + abs(float(reach @ site.towards_3)) + radius * float(np.sqrt(max(0.0, 1 - neck**2)))
    else:
        away = like.sunk * wall + like.sunk * diameter / 2
    centre = site.place.point_3 + site.towards_3 * away
    body = Tube(points_N3=np.stack([centre - reach, centre + reach]), radii_N=np.full(2, radius))
    # A neck that is wider than the artery narrows within it, or it would come out of the other wall.
    within = neck * radius if like.sunk is not None else min(neck * radius, site.place.radius_mm)
    stalk = Tube(points_N3=np.stack([site.place.point_3, centre]), radii_N=np.array([within, neck * radius]))
    return centre, [body, stalk]


def _blebs(
    rng: np.random.Generator, centre_3: NDArray[np.float64], body: Tube, towards_3: NDArray[np.float64], like: Sacs
) -> Iterator[Tube]:
    """Daughter sacs, away from the neck."""
    radius = float(body.radii_N[0])
    root_3 = max(body.points_N3, key=lambda end_3: float(end_3 @ towards_3)) if like.bleb_at_tip else centre_3
    for _ in range(like.blebs[int(rng.integers(len(like.blebs)))]):
        way = towards_3 + rng.normal(scale=0.7, size=3)
        at = root_3 + way / np.linalg.norm(way) * 0.9 * radius
        yield Tube(points_N3=at[None], radii_N=np.array([like.bleb.draw(rng) * radius]))


def _clot(
    rng: np.random.Generator, site: Site, centre_3: NDArray[np.float64], body: Sequence[Tube], lumen_width: Even
) -> list[tuple[Tube, Flow]]:
    """A body that a clot fills but for a ball of blood beside the neck."""
    radius = float(body[0].radii_N[0])
    open_mm = radius * lumen_width.draw(rng)
    lumen = Tube(points_N3=(centre_3 - site.towards_3 * (radius - open_mm))[None], radii_N=np.array([open_mm]))
    short = Tube(
        points_N3=np.stack([site.place.point_3, lumen.points_N3[0]]),
        radii_N=np.full(2, min(body[1].radii_N[0], open_mm)),
    )
    return [(body[0], Flow.THROMBUS), (lumen, Flow.SAC), (short, Flow.SAC)]
