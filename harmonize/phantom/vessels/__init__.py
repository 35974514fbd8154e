"""Vessels of a head: arteries around the circle of Willis, veins, aneurysms, and what only looks like one."""

from harmonize.phantom.vessels.easy import MAX_DIAMETER_MM, MIN_DIAMETER_MM
from harmonize.phantom.vessels.parts import (
    DIFFICULTIES,
    LAYERS,
    MIMIC_KINDS,
    Aneurysm,
    Difficulty,
    Flow,
    Mimic,
    Vessel,
    VesselTree,
)
from harmonize.phantom.vessels.tree import (
    LOCATION_WEIGHTS,
    MEAN_COUNT,
    SITE_WEIGHTS,
    draw_locations,
    grow_tree,
)

__all__ = [
    "DIFFICULTIES",
    "LAYERS",
    "LOCATION_WEIGHTS",
    "MAX_DIAMETER_MM",
    "MEAN_COUNT",
    "MIMIC_KINDS",
    "MIN_DIAMETER_MM",
    "SITE_WEIGHTS",
    "Aneurysm",
    "Difficulty",
    "Flow",
    "Mimic",
    "Vessel",
    "VesselTree",
    "draw_locations",
    "grow_tree",
]
