"""A random head: tissues on a rectangular grid in template coordinates, and its vessels.

Template coordinates are RAS+ mm with the origin near the middle of the skull. Each head gets its own shape by a pose
(shift, rotation, scale) that leads from the template to the scanner, and by random fields that fold its cortex, swell
its bones and spread its fat. Nothing here is measured on a person.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from harmonize.phantom.brain import paint_brain
from harmonize.phantom.canvas import Canvas, Tissue
from harmonize.phantom.randomness import rng_of, rotation, smooth_field
from harmonize.phantom.skull import (
    cavity_distance,
    paint_face_and_neck,
    paint_head_rest,
    paint_sinuses,
    paint_skull,
    paint_soft_tissue,
    skin_distance,
)
from harmonize.phantom.vessels import Difficulty, VesselTree, grow_tree

BOX_LOW_MM = (-94.0, -120.0, -140.0)
BOX_HIGH_MM = (94.0, 120.0, 88.0)
"""What of the template is drawn: from the chin and the third vertebra to above the vertex."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A head ready to be scanned.

    Attributes:
        tissue_XYZ: uint8 of `Tissue`.
        texture_XYZ: float32 of zero mean and about unit variance, what makes a tissue uneven.
        inside_XYZ: bool, within the skin (air cavities included).
        affine: (4, 4), voxel index to template mm.
        pose: (4, 4), template mm to scanner mm (RAS+).
        vessels: The tree in scanner mm.
        resolution_mm: Voxel size of the three volumes.
    """

    tissue_XYZ: NDArray[np.uint8]
    texture_XYZ: NDArray[np.float32]
    inside_XYZ: NDArray[np.bool_]
    affine: NDArray[np.float64]
    pose: NDArray[np.float64]
    vessels: VesselTree
    resolution_mm: float


@lru_cache(maxsize=1)
def make_head(
    *names: object, resolution_mm: float = 1.5, locations: tuple[str, ...] = (), difficulty: Difficulty = "easy"
) -> Head:
    """Draw the head that belongs to `names` (a seed first), with one aneurysm at each of `locations`.

    The same names give the same anatomy at any resolution. The last head is remembered, because several series of a
    subject show the same one: do not write into it.
    """
    canvas = Canvas.blank(BOX_LOW_MM, BOX_HIGH_MM, resolution_mm, rng_of(*names, "tissue"))
    inside_XYZ = _paint(canvas)
    pose = draw_pose(*names)
    axes = (canvas.x.ravel(), canvas.y.ravel(), canvas.z.ravel())
    return Head(
        tissue_XYZ=canvas.tissue_XYZ,
        texture_XYZ=smooth_field(axes, 9.0, rng_of(*names, "texture")),
        inside_XYZ=inside_XYZ,
        affine=canvas.affine,
        pose=pose,
        vessels=draw_vessels(*names, pose=pose, locations=locations, difficulty=difficulty),
        resolution_mm=resolution_mm,
    )


def draw_vessels(
    *names: object, pose: NDArray[np.float64], locations: tuple[str, ...], difficulty: Difficulty = "easy"
) -> VesselTree:
    """The vessels of the head that `names` stand for, in scanner mm, with an aneurysm at each of `locations`."""
    return _grown(names, locations, difficulty).moved(pose)


@lru_cache(maxsize=2)
def _grown(names: tuple[object, ...], locations: tuple[str, ...], difficulty: Difficulty) -> VesselTree:
    """A tree before it is posed; remembered, because its sites are asked for before the head is drawn."""
    return grow_tree(rng_of(*names, "vessels"), locations, difficulty=difficulty)


def draw_pose(*names: object) -> NDArray[np.float64]:
    """(4, 4), template mm to scanner mm, of the head that `names` stand for."""
    rng = rng_of(*names, "pose")
    pose = np.eye(4)
    size = rng.normal(1.0, 0.025) * rng.normal(1.0, 0.02, size=3)
    pose[:3, :3] = rotation(rng.uniform((-8, -4, -5), (8, 4, 5))) @ np.diag(np.clip(size, 0.92, 1.08))
    pose[:3, 3] = rng.uniform((-2.5, -12, -15), (2.5, 12, 15))
    return pose


def _paint(canvas: Canvas) -> NDArray[np.bool_]:
    """Lay the tissues one over the other, from the skin inwards; gives what is within the skin."""
    swell = canvas.field(60.0)
    skin = skin_distance(canvas) + 1.2 * swell
    inside = skin < 0
    paint_head_rest(canvas)
    paint_soft_tissue(canvas, skin)
    paint_face_and_neck(canvas, inside)
    cavity = cavity_distance(canvas) + 1.5 * swell
    paint_skull(canvas, cavity)
    paint_sinuses(canvas)
    paint_brain(canvas, cavity)
    canvas.paint(~inside & (canvas.tissue_XYZ != Tissue.COUCH), Tissue.AIR)
    return np.asarray(inside)
