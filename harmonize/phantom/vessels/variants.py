"""Variants of the circle of Willis: which arteries are missing, thin or fed from elsewhere, and how often.

Each head draws its own; they say nothing about its aneurysms. (In people they do a little: an aneurysm of the anterior
communicating artery often comes with one thin A1. Left out, so that the circle gives no hint.)
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from harmonize.phantom.vessels.template import SIGNS

FETAL_ONE_SIDE = 0.15
FETAL_BOTH_SIDES = 0.03
"""Of heads whose posterior cerebral artery is fed by the carotid: within the 4 to 26 % and 2 to 4 % that van Raamt et
al. collected (The fetal variant of the circle of Willis, Cerebrovascular Diseases 2006; 22: 217)."""

AZYGOS = 0.01
"""Of heads whose two A2 are one trunk: 0.3 % of 381 brains (Baptista, Neurology 1963; 13: 825), 1.5 % of 455 CTAs
(PMC3962325)."""

FENESTRATED: Mapping[str, float] = MappingProxyType({"basilar": 0.015, "a1": 0.015, "mca": 0.005, "vertebral": 0.005})
"""Of heads with two channels in the artery for some millimetres: basilar 1.0 to 2.3 %, A1 0.8 to 2.9 %,
vertebral 0.5 %, middle cerebral 0.1 to 2.9 % (docs/phantom-sources.md)."""

_FETAL = {"pcom": 1.5, "p1": 0.4}
_ONE_TRUNK = 1.25
"""Factors on calibres."""


class OneSide(NamedTuple):
    """Of heads: the share that has a variant on one side, whichever, and never on both."""

    share: float


class EachSide(NamedTuple):
    """Of sides: the share that has a variant, whatever the other side has."""

    share: float


class Sides(NamedTuple):
    """Of heads: the shares that have a variant on the left alone, on the right alone, and on both sides."""

    left: float
    right: float
    both: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Circle:
    """How the arteries of a circle of Willis differ from head to head, besides what all heads share.

    Attributes:
        sides: How common variants of one side or the other are, drawn in this order: ``absent``, ``thin`` or ``poor``
            (either of the two, as often) and the artery.
        thin: Calibre of a thin artery, of the usual one.
        calibres: Factors on the calibres of arteries in all heads.
    """

    sides: Mapping[str, OneSide | EachSide | Sides]
    thin: Mapping[str, float]
    calibres: Mapping[str, float]


def draw_variants(rng: np.random.Generator, circle: Circle) -> frozenset[str]:
    """The variants of one head: ``left fetal pca``, ``right absent a1``, ``azygos aca``, ``fenestrated basilar`` ..."""
    found = set[str]()
    fetal = rng.random()
    sides = list(SIGNS)
    if fetal < FETAL_BOTH_SIDES:
        found |= {f"{side} fetal pca" for side in sides}
    elif fetal < FETAL_BOTH_SIDES + FETAL_ONE_SIDE:
        found.add(f"{rng.choice(sides)} fetal pca")
    for name, how_common in circle.sides.items():
        kind, artery = name.split()
        for side in _sides_with(rng, how_common):
            ways = ("absent", "thin") if kind == "poor" else (kind,)
            way = ways[int(rng.integers(len(ways)))] if len(ways) > 1 else ways[0]
            if not _taken(side, artery, found, alone=isinstance(how_common, OneSide) or artery == "a1"):
                found.add(f"{side} {way} {artery}")
    if rng.random() < AZYGOS:
        found.add("azygos aca")
    for artery, share in FENESTRATED.items():
        side = "" if artery == "basilar" else f"{rng.choice(sides)} "
        if rng.random() < share and f"{side}absent {artery}" not in found:
            found.add(f"{side}fenestrated {artery}")
    return frozenset(found)


def calibre_factors(variants: Set[str], circle: Circle) -> dict[str, float]:
    """By how much the calibre of each branch differs that does; 0 for one that is not there."""
    factors: dict[str, float] = {}
    for variant in variants:
        *side, kind, artery = variant.split()
        name = " ".join([*side, artery])
        if kind == "fetal":
            factors.update({f"{side[0]} {artery}": factor for artery, factor in _FETAL.items()})
        elif kind == "absent":
            factors[name] = 0.0
        elif kind == "thin":
            factors[name] = circle.thin[artery]
        elif kind == "azygos":
            factors.update({f"{side} a2": _ONE_TRUNK for side in SIGNS})
    return factors


def _sides_with(rng: np.random.Generator, how_common: OneSide | EachSide | Sides) -> list[str]:
    """The sides that are drawn for a variant."""
    sides = list(SIGNS)
    if isinstance(how_common, OneSide):
        side = str(rng.choice(sides))
        return [side] if rng.random() < how_common.share else []
    if isinstance(how_common, EachSide):
        return [side for side in sides if rng.random() < how_common.share]
    drawn, left, right, both = rng.random(), *how_common
    ends = np.cumsum([both, left, right])
    return next((found for found, end in zip((sides, sides[:1], sides[1:]), ends, strict=True) if drawn < end), [])


def _taken(side: str, artery: str, found: Set[str], *, alone: bool) -> bool:
    """Whether what a head has leaves no room for a variant.

    An artery has one, of two A1 one alone, and the posterior cerebral artery has a good feeder on each side.
    """
    if artery == "transverse":
        return False
    if artery in ("p1", "pcom") and {f"{side} fetal pca", f"{side} absent pcom"} & found:
        return True
    if artery == "p1" and f"{side} thin pcom" in found:
        return True
    return any(other.split()[-1] == artery and (alone or other.startswith(side)) for other in found)
