"""Where the arteries and veins of the template head run, by the nodes that they pass, and how two trees differ.

Coordinates are those of the template head in `anatomy`: RAS+ mm, right is positive x. The courses follow common
textbook anatomy; every node is displaced by chance, separately on the two sides, so that no two trees are alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harmonize.labels import LOCATIONS
from harmonize.phantom.vessels.parts import Flow, Vessel
from harmonize.phantom.vessels.tubes import spline

Nodes = Mapping[str, NDArray[np.float64]]
"""Places in mm by name; those of a pair begin with ``left`` or ``right``."""

SIGNS = {"left": -1.0, "right": 1.0}
"""Of x, by side."""

_NODE_JITTER_MM = 1.0
_NODE_JITTER_NEAR_MIDLINE_MM = 0.5

# Nodes of the right side; the left side has -x.
_PAIRED = {
    "neck": (26, 0, -138), "c1": (27, -1, -100), "entry": (24, -4, -62), "petrous": (18, 3, -51),
    "lacerum": (12, 6, -45), "siphon_back": (11, 4, -38), "siphon_front": (11.5, 17, -35), "genu": (10.5, 20, -31),
    "clinoid": (9.5, 16.5, -27.5), "supra": (10, 12, -24.5), "terminus": (13.5, 10.5, -19),
    "m1": (22, 12, -17.5), "bifurcation": (32, 10, -15),
    "m2_up": (38, 5, -8), "m3_up": (43, -6, 0), "m4_up": (52, -18, 12), "m5_up": (60, -28, 24),
    "m2_low": (39, 3, -15), "m3_low": (45, -12, -9), "m4_low": (54, -30, -2), "m5_low": (59, -48, 8),
    "m2_front": (40, 14, -7), "m3_front": (46, 25, 4), "m4_front": (49, 33, 18),
    "a1": (8, 15.5, -17.5), "acom": (2.7, 21, -16.5), "a2": (2.8, 28, -9), "a2_genu": (3, 35, 3),
    "a3": (2.5, 30, 17), "a4": (2.2, 8, 27), "a5": (2.2, -14, 30), "marginal": (3, 44, 20), "marginal_up": (3, 34, 40),
    "marginal_end": (3, 6, 52),
    "pcom": (9.5, 3, -23.5), "p1": (8, -5, -23.5), "p2": (15, -13, -21), "p2_back": (19, -26, -17),
    "p3": (17, -46, -9), "p4": (13, -66, -2), "p5": (10, -79, 2),
    "sca": (11, -6, -30), "sca_side": (21, -22, -30), "sca_end": (23, -42, -30),
    "aica": (12, -4, -46), "aica_end": (25, -14, -46),
    "v_neck": (17, -34, -138), "v_atlas": (21, -32, -92), "v_loop": (13, -33, -79), "v4": (8, -17, -65),
    "pica": (12, -26, -62), "pica_back": (14, -40, -58), "pica_end": (12, -54, -50),
    "e_neck": (35, 3, -138), "e_jaw": (47, -2, -95), "e_ear": (67, -2, -55), "e_temple": (77, 8, -10),
    "e_top": (71, 20, 30),
    "transverse": (36, -74, -22), "sigmoid": (56, -42, -28), "sigmoid_low": (50, -22, -48), "jugular": (33, -13, -66),
    "jugular_neck": (37, -6, -138),
}  # fmt: skip
_MIDLINE = {
    "join": (0, -4.5, -54), "basilar": (0, 1, -44), "basilar_sca": (0, 2.5, -33), "tip": (0, 1.5, -27),
    "s_front": (0, 72, 20), "s_high": (0, 40, 55), "s_top": (0, -4, 63.5), "s_back": (0, -52, 50),
    "s_low": (0, -79, 22),
    "confluence": (0, -84, -10), "straight": (0, -56, 0), "galen": (0, -32, 8),
}  # fmt: skip

# (name, nodes, radius in mm at each node, location without its side or None)
_PAIRED_BRANCHES = (
    ("ica_neck", "neck c1 entry", (2.5, 2.4, 2.4), None),
    ("ica_infra", "entry petrous lacerum siphon_back siphon_front genu clinoid", (2.4, 2.4, 2.4, 2.3, 2.3, 2.2, 2.0),
     "Infraclinoid Internal Carotid Artery"),
    ("ica_supra", "clinoid supra terminus", (2.0, 1.9, 1.8), "Supraclinoid Internal Carotid Artery"),
    ("mca", "terminus m1 bifurcation", (1.7, 1.6, 1.5), "Middle Cerebral Artery"),
    ("m2_up", "bifurcation m2_up m3_up m4_up m5_up", (1.3, 1.2, 1.1, 0.9, 0.6), "Middle Cerebral Artery"),
    ("m2_low", "bifurcation m2_low m3_low m4_low m5_low", (1.3, 1.2, 1.1, 0.9, 0.6), "Middle Cerebral Artery"),
    ("m2_front", "bifurcation m2_front m3_front m4_front", (1.0, 0.9, 0.8, 0.6), "Middle Cerebral Artery"),
    ("a1", "terminus a1 acom", (1.3, 1.25, 1.2), "Anterior Cerebral Artery"),
    ("a2", "acom a2 a2_genu a3 a4 a5", (1.2, 1.15, 1.1, 1.0, 0.8, 0.6), "Anterior Cerebral Artery"),
    ("marginal", "a2_genu marginal marginal_up marginal_end", (0.9, 0.9, 0.8, 0.6), "Anterior Cerebral Artery"),
    ("pcom", "supra pcom p1", (0.95, 0.85, 0.85), "Posterior Communicating Artery"),
    ("p1", "tip p1", (1.2, 1.1), "Other Posterior Circulation"),
    ("p2", "p1 p2 p2_back p3 p4 p5", (1.15, 1.1, 1.1, 1.0, 0.8, 0.6), "Other Posterior Circulation"),
    ("sca", "basilar_sca sca sca_side sca_end", (0.8, 0.75, 0.7, 0.5), "Other Posterior Circulation"),
    ("aica", "basilar aica aica_end", (0.7, 0.6, 0.5), "Other Posterior Circulation"),
    ("vertebral", "v_neck v_atlas v_loop v4 join", (1.8, 1.8, 1.7, 1.6, 1.5), "Other Posterior Circulation"),
    ("pica", "v4 pica pica_back pica_end", (0.8, 0.8, 0.7, 0.5), "Other Posterior Circulation"),
    ("external", "e_neck e_jaw e_ear e_temple e_top", (2.0, 1.6, 1.1, 0.9, 0.7), None),
    ("transverse", "confluence transverse sigmoid sigmoid_low jugular jugular_neck",
     (3.0, 3.0, 3.4, 3.4, 4.0, 4.5), None),
)  # fmt: skip
_MIDLINE_BRANCHES = (
    ("acom", "left acom,right acom", (0.9, 0.9), "Anterior Communicating Artery"),
    ("basilar", "join,basilar,basilar_sca", (1.8, 1.7, 1.6), "Other Posterior Circulation"),
    ("tip", "basilar_sca,tip", (1.6, 1.6), "Basilar Tip"),
    ("sagittal", "s_front,s_high,s_top,s_back,s_low,confluence", (1.2, 2.0, 2.6, 3.0, 3.4, 3.6), None),
    ("straight", "galen,straight,confluence", (1.8, 2.0, 2.4), None),
)
_VEINS = ("transverse", "sagittal", "straight")

# Where sacs grow: node, direction on the right side, radius of the parent vessel in mm.
SITES: dict[str, tuple[tuple[str, tuple[float, float, float], float], ...]] = {
    "Infraclinoid Internal Carotid Artery": (
        ("siphon_front", (0.9, 0.2, -0.3), 2.3), ("siphon_back", (0.9, -0.3, 0.3), 2.3),
        ("genu", (0.6, 0.7, -0.1), 2.2),
    ),
    "Supraclinoid Internal Carotid Artery": (
        ("terminus", (0.1, -0.1, 1.0), 1.8), ("clinoid", (-0.3, 0.4, 0.9), 2.0), ("supra", (-0.7, -0.2, 0.6), 1.9),
    ),
    "Middle Cerebral Artery": (
        ("bifurcation", (0.9, 0.2, -0.35), 1.5), ("bifurcation", (0.7, 0.5, 0.3), 1.5), ("m1", (0.1, 0.3, 0.9), 1.6),
    ),
    "Anterior Cerebral Artery": (("a2_genu", (0.5, 0.85, 0.2), 1.1), ("a1", (0.3, 0.3, 0.9), 1.2)),
    "Posterior Communicating Artery": (("supra", (0.5, -0.75, -0.5), 1.9), ("pcom", (0.5, -0.2, -0.8), 0.9)),
    "Anterior Communicating Artery": (("acom", (0.0, 0.75, 0.6), 0.9), ("acom", (0.0, 0.8, -0.6), 0.9)),
    "Basilar Tip": (("tip", (0.0, 0.25, 1.0), 1.6),),
    "Other Posterior Circulation": (
        ("v4", (0.5, 0.3, 0.5), 1.6), ("sca", (0.6, 0.6, 0.3), 0.8), ("p1", (0.6, 0.2, -0.5), 1.1),
        ("p2", (0.7, 0.3, 0.5), 1.1), ("basilar", (0.5, 0.6, 0.0), 1.7),
    ),
}  # fmt: skip


class Branch(NamedTuple):
    """A branch before it is drawn: name, side, nodes, calibre in mm at each, name in the competition, what it holds."""

    name: str
    side: str
    nodes: Sequence[str]
    calibres_mm: Sequence[float]
    location: str | None
    flow: Flow


def draw_nodes(rng: np.random.Generator) -> dict[str, NDArray[np.float64]]:
    """Places of all nodes in one head, template mm."""
    nodes = {}
    for side, sign in SIGNS.items():
        for name, place in _PAIRED.items():
            jitter = rng.normal(scale=_NODE_JITTER_MM, size=3)
            if place[0] < 5:
                # The two anterior cerebral arteries run side by side: they may sway, but never cross the midline.
                jitter[0] = np.clip(jitter[0], -_NODE_JITTER_NEAR_MIDLINE_MM, _NODE_JITTER_NEAR_MIDLINE_MM)
            nodes[f"{side} {name}"] = (np.asarray(place) + jitter) * (sign, 1, 1)
    for name, place in _MIDLINE.items():
        nodes[name] = np.asarray(place) + rng.normal(scale=_NODE_JITTER_MM, size=3)
    return nodes


def draw_factors(rng: np.random.Generator) -> dict[str, float]:
    """Factors on the calibres: one a side (``middle`` among them) and one a branch."""
    names = [f"{side} {branch[0]}" for side in SIGNS for branch in _PAIRED_BRANCHES] + [b[0] for b in _MIDLINE_BRANCHES]
    factors = {name: float(np.clip(rng.normal(1.0, 0.12), 0.75, 1.3)) for name in names}
    whole = float(rng.uniform(0.9, 1.15))
    factors.update({side: whole * float(rng.uniform(0.95, 1.05)) for side in (*SIGNS, "middle")})
    return factors


def branches() -> list[Branch]:
    """All branches of the template."""
    found = []
    for side in SIGNS:
        for name, course, calibre, place in _PAIRED_BRANCHES:
            nodes = [node if node in _MIDLINE else f"{side} {node}" for node in course.split()]
            flow = Flow.VEIN if name in _VEINS else Flow.ARTERY
            found.append(Branch(f"{side} {name}", side, nodes, calibre, _full_name(place, side), flow))
    for name, course, calibre, place in _MIDLINE_BRANCHES:
        flow = Flow.VEIN if name in _VEINS else Flow.ARTERY
        found.append(Branch(name, "middle", course.split(","), calibre, place, flow))
    return found


def lay(branch: Branch, nodes: Nodes, factors: Mapping[str, float], step_mm: float = 4.0) -> Vessel:
    """The branch as it runs through the nodes of one head, with capsules of about `step_mm`."""
    width = factors[branch.side] * factors[branch.name]
    tube = spline(np.stack([nodes[node] for node in branch.nodes]), [width * r for r in branch.calibres_mm], step_mm)
    return Vessel(tube=tube, location=branch.location, flow=branch.flow, branch=branch.name)


def side_of(location: str) -> str | None:
    """``left`` or ``right`` for a place in the competition that has a side."""
    side = location.partition(" ")[0].lower()
    return side if side in SIGNS else None


def sites_of(location: str) -> tuple[tuple[str, tuple[float, float, float], float], ...]:
    """Where sacs grow at a place in the competition: node, direction on the right side, radius of the parent in mm."""
    return SITES[location if side_of(location) is None else location.partition(" ")[2]]


def node_of(name: str, side: str) -> str:
    """The full name of a node that may be one of a pair."""
    return name if name in _MIDLINE else f"{side} {name}"


def _full_name(place: str | None, side: str) -> str | None:
    if place is None or place in LOCATIONS:
        return place
    return f"{side.capitalize()} {place}"
