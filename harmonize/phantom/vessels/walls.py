"""Mimics that are arteries themselves: funnels, bulbs, wide stretches, loops, kinks, two channels.

In people bulbs, wide stretches, loops and kinks are rarer (docs/phantom-sources.md). Here a head has about as many
blobs as would hide one more, so that their number tells nothing. How many it has, how large they are and where they lie
is drawn without a look at any aneurysm.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace

import numpy as np

from harmonize.phantom.vessels.clinics import Mimics
from harmonize.phantom.vessels.courses import (
    Place,
    across,
    bent,
    length,
    looped,
    place_at,
    stretch,
    widened,
    widest_past,
)
from harmonize.phantom.vessels.parts import Flow, Mimic, MimicKind, Vessel, as_point
from harmonize.phantom.vessels.spreads import Spread
from harmonize.phantom.vessels.template import SIGNS, Nodes, node_of
from harmonize.phantom.vessels.tubes import Tube

BULBS_A_HEAD, STRETCHES_A_HEAD, WINDINGS_A_HEAD = 2.0, 2.5, 1.5
"""Mean numbers of bulbs, of wide stretches, and of loops and kinks. Some heads have many and others none: the number is
geometric, as a Poisson number is whose mean differs from head to head."""

_BULBS = ("bifurcation", "terminus", "tip", "join", "acom", "a2_genu", "supra", "m1", "basilar_sca", "v4", "p1", "p2")
_WIDE = ("ica_infra", "ica_supra", "mca", "basilar", "vertebral", "a1", "p1", "p2", "m2_up", "m2_low")
_WINDING = ("ica_infra", "ica_neck", "mca", "a1", "m2_up", "m2_low", "p2", "vertebral", "a2", "sca")
_WIDEST_MM = 5.0
"""Radius that no wide stretch exceeds."""
_FROM = {"vertebral": 0.8, "ica_infra": 0.3}
"""Where the part of an artery begins that is near the circle, as a share of its length."""

Arteries = dict[str, Vessel]


def fenestrate(rng: np.random.Generator, arteries: Arteries, variants: Set[str], length_mm: Spread) -> list[Mimic]:
    """Part the arteries that the variants say into two channels for some millimetres; changes `arteries`."""
    mimics = []
    for variant in sorted(variants):
        if "fenestrated" not in variant:
            continue
        name = variant.replace("fenestrated ", "")
        vessel = arteries[name]
        at, long = float(rng.uniform(*_near(name))), length_mm.draw(rng)
        place = place_at(vessel.tube, at)
        aside = across(rng, place.along_3) * float(rng.uniform(1.0, 1.6)) * place.radius_mm
        thin = widened(vessel.tube, at, long, 0.75)
        other = stretch(bent(thin, at, long, -aside), at, long)
        arteries[name] = replace(vessel, tube=bent(thin, at, long, aside))
        arteries[f"{name} second"] = replace(vessel, tube=other, branch=f"{name} second")
        mimics.append(Mimic(kind="fenestration", centre_mm=as_point(place.point_3)))
    return mimics


def wind(rng: np.random.Generator, arteries: Arteries, *, often: float) -> list[Mimic]:
    """Wind arteries into loops and kinks; changes `arteries`."""
    mimics = []
    for _ in range(_number(rng, often * WINDINGS_A_HEAD)):
        name, at, place = _spot(rng, _WINDING, arteries)
        vessel = arteries[name]
        aside = across(rng, place.along_3)
        # Not over the midline, where the arteries of the other side are.
        aside[0] = abs(aside[0]) * (1 if place.point_3[0] > 0 else -1)
        kind: MimicKind = "loop" if rng.random() < 0.6 else "kink"
        # A loop whose sides touch is a ball to whoever does not follow it.
        size = place.radius_mm * float(rng.uniform(1.0, 1.8))
        far = float(rng.uniform(2.5, 4.0))
        if kind == "loop":
            tube, top = looped(vessel.tube, at, size, aside), place.point_3 + size * aside
        else:
            tube = bent(vessel.tube, at, 4 * place.radius_mm + 2, far * aside)
            top = place.point_3 + far * aside
        arteries[name] = replace(vessel, tube=tube)
        mimics.append(Mimic(kind=kind, centre_mm=as_point(top)))
    return mimics


def widen(rng: np.random.Generator, arteries: Arteries, *, often: float) -> list[Mimic]:
    """Make stretches of arteries wide, without a neck and longer than a fusiform aneurysm; changes `arteries`."""
    mimics = []
    for _ in range(_number(rng, often * STRETCHES_A_HEAD)):
        name, at, place = _spot(rng, _WIDE, arteries)
        vessel = arteries[name]
        factor = float(np.clip(1 + rng.lognormal(np.log(0.7), 0.5), 1.2, 2.8))
        long = 2 * factor * place.radius_mm * float(rng.uniform(3.0, 5.0))
        wide = widened(vessel.tube, at, min(long, length(vessel.tube)), factor)
        arteries[name] = replace(vessel, tube=replace(wide, radii_N=np.minimum(wide.radii_N, _WIDEST_MM)))
        mimics.append(Mimic(kind="ectasia", centre_mm=as_point(place.point_3)))
    return mimics


def swell(
    rng: np.random.Generator, arteries: Arteries, nodes: Nodes, *, often: float
) -> tuple[list[Mimic], list[Vessel]]:
    """Bulbs where arteries part: round, on the axis of their parent, with no neck."""
    mimics, vessels = [], []
    for _ in range(_number(rng, often * BULBS_A_HEAD)):
        node = node_of(str(rng.choice(_BULBS)), str(rng.choice(list(SIGNS))))
        factor = float(rng.uniform(1.3, 2.0))
        found = widest_past(nodes[node], arteries.values())
        if found is not None:
            vessel, place = found
            ball = Tube(points_N3=place.point_3[None], radii_N=np.array([factor * place.radius_mm]))
            vessels.append(Vessel(tube=ball, location=vessel.location, flow=Flow.ARTERY, branch="bulb"))
            mimics.append(Mimic(kind="bulb", centre_mm=as_point(place.point_3)))
    return mimics, vessels


def funnel(rng: np.random.Generator, arteries: Arteries, common: Mimics) -> tuple[list[Mimic], list[Vessel]]:
    """Funnels by which thin arteries leave the carotid: the vessel goes on from their tip."""
    mimics, vessels = [], []
    for base, share in common.infundibula.items():
        for side in SIGNS:
            chance, width, long = rng.random(), common.infundibulum_mm.draw(rng), rng.uniform(2.0, 3.5)
            vessel = arteries.get(f"{side} {base}")
            if vessel is None or chance >= share:
                continue
            carotid = place_at(arteries[f"{side} ica_supra"].tube, 0.5).radius_mm
            # The mouth of a thin artery without a name counts as the carotid.
            place = vessel.location or arteries[f"{side} ica_supra"].location
            whole = length(vessel.tube)
            begin, end = (place_at(vessel.tube, min(1.0, mm / whole)) for mm in (0.7 * carotid, carotid + long))
            cone = Tube(points_N3=np.stack([begin.point_3, end.point_3]), radii_N=np.array([width / 2, end.radius_mm]))
            vessels.append(Vessel(tube=cone, location=place, flow=Flow.ARTERY, branch="infundibulum"))
            mimics.append(
                Mimic(kind="infundibulum", centre_mm=as_point(begin.point_3 + 0.3 * (end.point_3 - begin.point_3)))
            )
    return mimics, vessels


def _number(rng: np.random.Generator, mean: float) -> int:
    return int(rng.geometric(1 / (1 + mean))) - 1


def _spot(rng: np.random.Generator, names: tuple[str, ...], arteries: Arteries) -> tuple[str, float, Place]:
    """A place on one of the arteries that a head has, and where on it; left and right of a pair are as likely."""
    here = [name for name in arteries if name.split()[-1] in names]
    name = here[int(rng.integers(len(here)))]
    at = float(rng.uniform(*_near(name)))
    return name, at, place_at(arteries[name].tube, at)


def _near(name: str) -> tuple[float, float]:
    return _FROM.get(name.split()[-1], 0.2), 0.85
