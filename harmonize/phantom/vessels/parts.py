"""What a tree of vessels is made of: branches and what runs in them, sacs, and what merely looks like a sac."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from harmonize.phantom.vessels.tubes import Tube

Difficulty = Literal["easy", "medium", "hard"]
"""``easy``: sacs are balls at fixed nodes, and nothing else looks like one; ``hard``: small and odd sacs, and
much that does; ``medium``: larger sacs and fewer wide places (`clinics.CLINICS`)."""
DIFFICULTIES: tuple[Difficulty, ...] = get_args(Difficulty)

Shape = Literal["saccular", "lobulated", "fusiform"]
MimicKind = Literal[
    "infundibulum", "bulb", "ectasia", "loop", "kink", "fenestration", "vein", "calcium", "clip", "coil", "blood"
]
MIMIC_KINDS: tuple[MimicKind, ...] = get_args(MimicKind)

Point = tuple[float, float, float]


class Flow(Enum):
    """What a tube is filled with, which decides its brightness; those after `SAC` are not of easy trees."""

    ARTERY = "artery"
    VEIN = "vein"
    SAC = "sac"
    THROMBUS = "thrombus"
    CALCIUM = "calcium"
    METAL = "metal"
    BLOOM = "bloom"
    """The signal that MR loses around metal; CT shows none of it."""
    BLOOD = "blood"
    """Outside the vessels, and fresh: dense in CT, dark in T2."""
    OLD_BLOOD = "old blood"
    """Methaemoglobin: bright in T1, and so in a time-of-flight MRA."""


LAYERS = (
    frozenset({Flow.BLOOD, Flow.OLD_BLOOD, Flow.THROMBUS}),
    frozenset({Flow.ARTERY, Flow.VEIN, Flow.SAC}),
    frozenset({Flow.CALCIUM}),
    frozenset({Flow.METAL, Flow.BLOOM}),
)
"""What is drawn over what, the lowest first: arteries run through blood, calcium lies in their walls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vessel:
    """One branch: its course, what it is called in the competition (or None), what runs in it, and its own name."""

    tube: Tube
    location: str | None
    flow: Flow
    branch: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Aneurysm:
    """An aneurysm; all but its first three attributes say what those that are not easy may be.

    Attributes:
        location: Its name in the competition.
        centre_mm: Centre of its sac, in the frame of its tree: the template's as it is drawn, the scanner's once moved.
        diameter_mm: Its largest extent, without daughter sacs; of a fusiform one, its largest width.
        shape: ``saccular``, ``lobulated`` (with daughter sacs) or ``fusiform`` (the artery itself widens).
        at_branching: Whether it grows where arteries part, or else from the side of one.
        thrombosed: Whether a clot fills the larger part of it.
        calcified: Whether there is calcium in its wall.
    """

    location: str
    centre_mm: Point
    diameter_mm: float
    shape: Shape = "saccular"
    at_branching: bool = True
    thrombosed: bool = False
    calcified: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Mimic:
    """What looks like a sac and is none: its kind, one of `MIMIC_KINDS`, and its centre in mm in its tree's frame."""

    kind: MimicKind
    centre_mm: Point


@dataclass(frozen=True, slots=True, kw_only=True)
class VesselTree:
    """All vessels of a head, in template coordinates as they are drawn, in the scanner's once they are `moved`.

    Attributes:
        vessels: Sacs and mimics included.
        aneurysms: What of them is a sac.
        mimics: What of them merely looks like one.
        variants: How its circle of Willis departs from the textbook, as `variants.draw_variants` names it.
    """

    vessels: tuple[Vessel, ...]
    aneurysms: tuple[Aneurysm, ...]
    mimics: tuple[Mimic, ...] = ()
    variants: frozenset[str] = frozenset()

    def moved(self, affine: NDArray[np.float64]) -> VesselTree:
        """The same tree after `affine` (4, 4); calibres and diameters stay."""

        def moved(centre_mm: Point) -> Point:
            return as_point(affine[:3, :3] @ np.asarray(centre_mm) + affine[:3, 3])

        return replace(
            self,
            vessels=tuple(replace(vessel, tube=vessel.tube.moved(affine)) for vessel in self.vessels),
            aneurysms=tuple(replace(a, centre_mm=moved(a.centre_mm)) for a in self.aneurysms),
            mimics=tuple(replace(mimic, centre_mm=moved(mimic.centre_mm)) for mimic in self.mimics),
        )


def as_point(xyz: NDArray[np.float64]) -> Point:
    """Three plain numbers."""
    x, y, z = (float(value) for value in xyz)
    return x, y, z
