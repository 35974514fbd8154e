"""The brain and the water around it: folded cortex, nuclei, ventricles, brain stem, cerebellum, and some lesions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from harmonize.phantom.canvas import Canvas, Field, Tissue, ramp
from harmonize.phantom.vessels.tubes import Tube, spline

_CORTEX_MM = 3.0
_FOLD_DEPTH_MM = 17.0
"""How far sulci reach in from the surface."""
_BLOB_PROBABILITY = 0.25
"""Share of heads with a larger lesion."""


def paint_brain(canvas: Canvas, cavity: Field) -> None:
    """Fill the skull.

    Args:
        canvas: What is painted on.
        cavity: Distance to the inner table of the skull.
    """
    atrophy = float(canvas.rng.uniform(0.7, 1.6))
    inside = cavity < -0.5
    canvas.paint(inside, Tissue.CSF)
    _paint_cerebrum(canvas, inside, -cavity - (2.0 + 0.8 * atrophy), atrophy)
    _paint_lesions(canvas)
    _paint_hindbrain(canvas, inside)
    _paint_cistern(canvas, inside)
    canvas.paint(canvas.tubes(_ventricles(canvas.rng)) < 0, Tissue.CSF)
    third = (np.abs(canvas.x) < 1.0 + atrophy) & (np.abs(canvas.y + 6) < 13) & (np.abs(canvas.z + 1) < 11)
    canvas.paint(inside & third, Tissue.CSF)


def _paint_cerebrum(canvas: Canvas, inside: NDArray[np.bool_], depth: Field, atrophy: float) -> None:
    x, y, z = canvas.x, canvas.y, canvas.z
    # A fold runs where a random field crosses zero, so it is a sheet that wanders in from the surface. All these are
    # distances to the middle of a fold in mm, roughly.
    folds = np.abs(canvas.field(19.0) + 0.4 * canvas.field(10.0)) * np.float32(4.5)
    folds += 6 * np.maximum(np.maximum(depth, 0) / np.float32(_FOLD_DEPTH_MM) - 1, 0)
    callosum = ((y + 4) / 42) ** 2 + ((z - 3) / 25) ** 2 < 1
    fissure = np.abs(x + 0.4 * np.sin(y * 0.08)) + 100 * (callosum | (z < -24)).astype(np.float32)
    sylvian = np.abs(z + 12 - 0.22 * (18 - y)) + 100 * ramp(-(np.abs(x) - 33), 1.0) + 100 * ramp(np.abs(y - 2) - 26, 2)
    valley = np.minimum(np.minimum(folds, fissure), sylvian)
    sulcus_mm = 0.55 * atrophy + 0.25
    brain = inside & (depth > 0)
    canvas.paint(brain, Tissue.WHITE)
    canvas.paint(brain & ((depth < _CORTEX_MM) | (valley < sulcus_mm + _CORTEX_MM)), Tissue.GREY)
    canvas.paint(brain & (valley < sulcus_mm), Tissue.CSF)
    for centre, half in (((25, 4, 0), (6, 17, 11)), ((11, -14, 4), (8, 14, 9)), ((14, 20, 10), (5, 14, 8))):
        canvas.paint(canvas.ellipsoid_pair(centre, half) < 0, Tissue.GREY)


def _paint_lesions(canvas: Canvas) -> None:
    """White-matter spots in every head, few or many, and a larger blob in some."""
    white = canvas.tissue_XYZ == Tissue.WHITE
    grey = canvas.tissue_XYZ == Tissue.GREY
    burden = float(canvas.rng.uniform(2.6, 3.6))
    canvas.paint(white & (canvas.field(9.0) > burden), Tissue.LESION)
    if canvas.rng.random() < _BLOB_PROBABILITY:
        x, y, z = (float(v) for v in canvas.rng.uniform((22, -45, 12), (42, 40, 35)))
        radius = float(canvas.rng.uniform(6, 15))
        blob = canvas.ellipsoid((x * float(canvas.rng.choice((-1, 1))), y, z), (radius, radius, radius))
        canvas.paint((white | grey) & (blob + 2 * canvas.field(14.0) < 0), Tissue.LESION)


def _paint_hindbrain(canvas: Canvas, inside: NDArray[np.bool_]) -> None:
    """Brain stem, cord and cerebellum under their tent, in a bath of CSF."""
    x, y, z = canvas.x, canvas.y, canvas.z
    tent = z + 20 + 0.28 * np.maximum(-y - 30, 0) + 0.004 * x**2 + 100 * ramp(y + 12, 1.5)
    below = inside & (tent < 0)
    canvas.paint(below, Tissue.CSF)
    hemispheres = canvas.ellipsoid_pair((23, -46, -42), (28, 27, 19))
    cerebellum = np.minimum(hemispheres, canvas.ellipsoid((0, -46, -38), (14, 24, 18)))
    leaves = np.abs(canvas.field((40.0, 20.0, 8.0))) * np.float32(2.2)
    body = below & (cerebellum < 0) & (tent < -1.5)
    canvas.paint(body, Tissue.GREY)
    canvas.paint(body & (leaves > 1.8) & (cerebellum < -2), Tissue.WHITE)
    canvas.paint(body & (cerebellum < -8), Tissue.WHITE)
    canvas.paint(body & (leaves < 0.3) & (cerebellum > -7), Tissue.CSF)
    bath = (np.sqrt(x**2 + (y + 6) ** 2) < 17) & (z < -17) & (z > -66) & (y > -14)
    canvas.paint(inside & bath, Tissue.CSF)
    stem = spline(
        [(0, -12, -12), (0, -12, -24), (0, -13, -38), (0, -18, -54), (0, -27, -68), (0, -37, -88), (0, -42, -142)],
        [13, 12, 12.5, 8.5, 7, 5.5, 5],
    )
    peduncles = [spline([(0, -14, -38), (15 * s, -24, -40), (22 * s, -40, -42)], [8, 6.5, 4]) for s in (-1, 1)]
    canvas.paint(canvas.tubes([stem, *peduncles]) < 0, Tissue.WHITE)


def _paint_cistern(canvas: Canvas, inside: NDArray[np.bool_]) -> None:
    """The water in which the circle of Willis lies, with the optic chiasm and the stalk of the pituitary."""
    canvas.paint(inside & (canvas.ellipsoid((0, 9, -24), (16, 15, 9)) < 0), Tissue.CSF)
    chiasm = [spline([(7 * s, 17, -29), (0, 10, -25), (-9 * s, 2, -22)], [2.0, 2.6, 2.0]) for s in (-1, 1)]
    stalk = spline([(0, 6, -20), (0, 11, -33)], [1.6, 1.4])
    canvas.paint(inside & (canvas.tubes([*chiasm, stalk]) < 0), Tissue.WHITE)


def _ventricles(rng: np.random.Generator) -> list[Tube]:
    """Both lateral ventricles with their temporal horns, the aqueduct and the fourth."""
    wide = float(np.exp(rng.normal(scale=0.25)))
    tubes = []
    for sign in (-1, 1):
        side = wide * float(rng.uniform(0.9, 1.1))
        body = [(8, 36, 7), (8, 24, 13), (9, 6, 21), (13, -18, 20), (22, -36, 9), (24, -52, 6)]
        horn = [(22, -36, 9), (29, -26, -6), (30, -10, -14), (30, 2, -17)]
        tubes.append(spline([(sign * a, b, c) for a, b, c in body], [r * side for r in (3, 5, 5.5, 6, 7, 2.5)]))
        tubes.append(spline([(sign * a, b, c) for a, b, c in horn], [r * side for r in (5, 3, 2.5, 1.5)]))
    tubes.append(spline([(0, -20, -12), (0, -27, -28), (0, -30, -42), (0, -33, -56)], [1.2, 1.5, 5.0 * wide, 1.5]))
    return tubes
