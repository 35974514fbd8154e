"""Variants of the circle of Willis: which arteries are missing, thin or fed from elsewhere, and how often.

Each head draws its own; they say nothing about its aneurysms. (In people they do a little: an aneurysm of the anterior
communicating artery often comes with one thin A1. Left out, so that the circle gives no hint.)
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from types import MappingProxyType

import numpy as np

from harmonize.phantom.vessels.template import SIGNS

FETAL_ONE_SIDE = 0.15
FETAL_BOTH_SIDES = 0.03
"""Of heads whose posterior cerebral artery is fed by the carotid: within the 4 to 26 % and 2 to 4 % that van Raamt et
al. collected (The fetal variant of the circle of Willis, Cerebrovascular Diseases 2006; 22: 217)."""

AZYGOS = 0.01
"""Of heads whose two A2 are one trunk: 0.3 % of 381 brains (Baptista, Neurology 1963; 13: 825), 1.5 % of 455 CTAs
(PMC3962325)."""

OF_A_PAIR: Mapping[str, float] = MappingProxyType({"absent a1": 0.03, "thin a1": 0.10, "thin vertebral": 0.15})
"""Of heads with the variant on one side; never on both. Absent A1: 0.4 % (PMC3962325) to 6.4 % (Chuang, European
Neurology 2007; 57: 208); thin ones: 5.3 % of 8013 (Chen, Surgical and Radiologic Anatomy 2014; 36: 353) to 17.6 %
(PMC3962325); thin vertebrals: 18.6 %, 10.8 to 30 (PMC6453216)."""

OF_A_SIDE: Mapping[str, float] = MappingProxyType(
    {"thin p1": 0.04, "absent pcom": 0.10, "thin pcom": 0.10, "thin transverse": 0.30}
)
"""Of sides; on those that are not fetal. With the rest they leave a circle whole in 42 % of heads, as many as
angiograms by MRI of 150 healthy people showed (Krabbe-Hartkamp et al., Radiology 1998; 207: 103). A posterior
communicating artery is poor in 32 % of heads, as in 27 to 42 % of people, but on both sides too rarely (Jones, Clinical
Anatomy 2021; 34: 978: 23 %), for the sides are drawn one by one."""

FENESTRATED: Mapping[str, float] = MappingProxyType({"basilar": 0.015, "a1": 0.015, "mca": 0.005, "vertebral": 0.005})
"""Of heads with two channels in the artery for some millimetres: basilar 1.0 to 2.3 %, A1 0.8 to 2.9 %,
vertebral 0.5 %, middle cerebral 0.1 to 2.9 % (docs/phantom-sources.md)."""

_FACTORS = {"fetal pcom": 1.5, "fetal p1": 0.4, "thin": 0.5, "azygos": 1.25}


def draw_variants(rng: np.random.Generator) -> frozenset[str]:
    """The variants of one head: ``left fetal pca``, ``right absent a1``, ``azygos aca``, ``fenestrated basilar`` ..."""
    found = set()
    fetal = rng.random()
    sides = list(SIGNS)
    if fetal < FETAL_BOTH_SIDES:
        found |= {f"{side} fetal pca" for side in sides}
    elif fetal < FETAL_BOTH_SIDES + FETAL_ONE_SIDE:
        found.add(f"{rng.choice(sides)} fetal pca")
    for name, share in OF_A_PAIR.items():
        artery = name.split()[1]
        side = str(rng.choice(sides))
        if rng.random() < share and not any(artery in other for other in found):
            found.add(f"{side} {name}")
    for name, share in OF_A_SIDE.items():
        for side in sides:
            # "thin p1" is drawn before any "absent pcom": a side may have both.
            taken = name != "thin transverse" and (f"{side} fetal pca" in found or f"{side} absent pcom" in found)
            if rng.random() < share and not taken:
                found.add(f"{side} {name}")
    if rng.random() < AZYGOS:
        found.add("azygos aca")
    for artery, share in FENESTRATED.items():
        side = "" if artery == "basilar" else f"{rng.choice(sides)} "
        if rng.random() < share and f"{side}absent {artery}" not in found:
            found.add(f"{side}fenestrated {artery}")
    return frozenset(found)


def calibre_factors(variants: Set[str]) -> dict[str, float]:
    """By how much the variants change the calibre of each branch that they change; 0 for one that is not there."""
    factors: dict[str, float] = {}
    for variant in variants:
        *side, kind, artery = variant.split()
        name = " ".join([*side, artery])
        if kind == "fetal":
            factors[f"{side[0]} pcom"] = _FACTORS["fetal pcom"]
            factors[f"{side[0]} p1"] = _FACTORS["fetal p1"]
        elif kind == "absent":
            factors[name] = 0.0
        elif kind == "thin":
            factors[name] = _FACTORS["thin"]
        elif kind == "azygos":
            factors.update({f"{side} a2": _FACTORS["azygos"] for side in SIGNS})
    return factors
