"""Vessels of a head: arteries around the circle of Willis, veins, aneurysms, and what only looks like one."""

from harmonize.phantom.vessels.parts import (
    DIFFICULTIES,
    LAYERS,
    Aneurysm,
    Difficulty,
    Flow,
    Mimic,
    Vessel,
    VesselTree,
)
from harmonize.phantom.vessels.tree import (
    LOCATION_WEIGHTS,
    MAX_DIAMETER_MM,
    MIN_DIAMETER_MM,
    draw_locations,
    grow_tree,
)

__all__ = [
    "DIFFICULTIES",
    "LAYERS",
    "LOCATION_WEIGHTS",
    "MAX_DIAMETER_MM",
    "MIN_DIAMETER_MM",
    "Aneurysm",
    "Difficulty",
    "Flow",
    "Mimic",
    "Vessel",
    "VesselTree",
    "draw_locations",
    "grow_tree",
]
