"""Everything of a head but its brain: skin, fat, muscle, bones, eyes and the cavities filled with air."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from harmonize.phantom.canvas import UNION_MARGIN_MM, Canvas, Field, Tissue, ramp, union
from harmonize.phantom.vessels.tubes import spline

CRANIUM_CENTRE_MM = (0.0, -4.0, 0.0)
CRANIUM_MM = (67.0, 83.0, 65.0)
"""Half axes of the inner table of the skull."""

_SCALP_MM = (12.0, 12.5, 12.5)
"""From the inner table to the skin, along the three axes."""
_VERTEBRA_MM = 19.0
"""From one vertebra to the next."""


def skin_distance(canvas: Canvas) -> Field:
    """Distance to the skin: vault, face, nose, ears and neck, joined smoothly."""
    vault = (CRANIUM_MM[0] + _SCALP_MM[0], CRANIUM_MM[1] + _SCALP_MM[1], CRANIUM_MM[2] + _SCALP_MM[2])
    head = canvas.ellipsoid(CRANIUM_CENTRE_MM, vault, margin_mm=UNION_MARGIN_MM)
    face = canvas.ellipsoid((0, 34, -62), (56, 54, 66), power=2.6, margin_mm=UNION_MARGIN_MM)
    nose = canvas.ellipsoid((0, 86, -58), (13, 20, 18), margin_mm=12)
    ears = canvas.ellipsoid_pair((79, -12, -40), (9, 14, 27))
    column = (np.sqrt((canvas.x / 56) ** 2 + ((canvas.y + 14) / 60) ** 2) - 1) * np.float32(54)
    neck = np.maximum(column, canvas.z + np.float32(50))
    return union(union(union(union(head, face, 20), neck, 24), nose, 10), ears, 6)


def cavity_distance(canvas: Canvas) -> Field:
    """Distance to the inner table: an ellipsoid cut from below by the three steps of the skull base."""
    dome = canvas.ellipsoid(CRANIUM_CENTRE_MM, CRANIUM_MM, margin_mm=UNION_MARGIN_MM)
    y = canvas.y
    middle = np.interp(y, [-90, -40, -8, 9, 12, 20, 24, 90], [-58, -66, -66, -38, -33, -33, -27, -22])
    lateral = np.interp(y, [-90, -40, -18, -11, -5, 26, 32, 90], [-54, -64, -62, -34, -45, -44, -27, -22])
    # The petrous ridge and the middle fossa begin beside the sella.
    beside = ramp(np.abs(canvas.x) - 16, 2.0)
    floor = (middle + (lateral - middle) * beside).astype(np.float32)
    return -union(-dome, -(floor - canvas.z), 8)


def paint_head_rest(canvas: Canvas) -> None:
    """The head rest of a CT scanner: a thin shell behind the head."""
    shell = np.abs(np.sqrt((canvas.x / 98) ** 2 + ((canvas.y + 8) / 108) ** 2) - 1) * 100 < 1.3
    canvas.paint(shell & (canvas.y < -60) & (canvas.z > -70), Tissue.COUCH)


def paint_soft_tissue(canvas: Canvas, skin: Field) -> None:
    """Skin, a layer of fat that is thicker here and thinner there, and muscle as the ground for all that follows."""
    depth = -skin
    fat_to = 4.5 + 1.6 * canvas.field(40.0)
    canvas.paint(depth > 0, Tissue.SKIN)
    canvas.paint(depth > 2.0, Tissue.FAT)
    canvas.paint(depth > fat_to, Tissue.MUSCLE)


def paint_face_and_neck(canvas: Canvas, inside: NDArray[np.bool_]) -> None:
    """Fat, jaws and teeth, spine and cord, orbits, and the way of the air."""
    # Fat and muscle lie in streaks behind the face.
    streaks = canvas.field((24.0, 24.0, 30.0))
    deep = inside & (canvas.ellipsoid((0, 38, -62), (48, 44, 56)) < 0)
    canvas.paint(deep & (streaks > -0.1), Tissue.FAT)
    canvas.paint(inside & (canvas.z < -70) & (np.abs(streaks) < 0.1), Tissue.FAT)
    _paint_jaws(canvas, inside)
    _paint_spine(canvas)
    _paint_orbits(canvas, inside)
    airway = canvas.tube([(0, 30, -74), (0, 6, -92), (0, 8, -120), (0, 6, -142)], [8, 8, 7, 9])
    canvas.paint(airway < 1.2, Tissue.MUCOSA)
    canvas.paint(airway < 0, Tissue.AIR)


def paint_skull(canvas: Canvas, cavity: Field) -> None:
    """The vault with its diploe, open below for the cord, and the dense bones of the base.

    Args:
        canvas: What is painted on.
        cavity: Distance to the inner table.
    """
    x, y, z = canvas.x, canvas.y, canvas.z
    thickness = 6.2 + 0.8 * float(canvas.rng.normal()) + 1.1 * canvas.field(35.0)
    np.maximum(thickness, 3.0, out=thickness)
    magnum = (np.sqrt(x**2 + (y + 30) ** 2) < 15) & (z < -50)
    wall = (cavity > -0.5) & (cavity < thickness) & ~magnum
    canvas.paint(wall, Tissue.BONE)
    canvas.paint(wall & (cavity > 1.7) & (cavity < thickness - 2.0), Tissue.MARROW)
    ridge = canvas.ellipsoid_pair((38, -12, -46), (24, 9, 9))
    clivus = canvas.ellipsoid((0, 12, -50), (11, 9, 16))
    mastoid = canvas.ellipsoid_pair((56, -22, -56), (13, 15, 20))
    canvas.paint((ridge < 0) | (mastoid < 0), Tissue.BONE)
    canvas.shell(clivus, 2.5)
    canvas.paint(((mastoid < -2) | (ridge < -4)) & (canvas.field(7.0) > 0.15), Tissue.AIR)


def paint_sinuses(canvas: Canvas) -> None:
    """Frontal, maxillary, sphenoid and ethmoid sinuses and the nose: bone, lining, air."""
    a, b, c, d = (float(value) for value in canvas.rng.uniform(0.75, 1.15, size=4))
    nose = canvas.ellipsoid_pair((6, 56, -62), (6, 30, 18 * d))
    ethmoid = canvas.ellipsoid_pair((8, 52, -40), (6, 20, 9))
    for cavity, wall_mm, lining_mm in (
        (canvas.ellipsoid_pair((11, 79, -18), (12 * a, 5, 11 * a)), 2.0, 0.0),
        (canvas.ellipsoid_pair((29, 48, -65), (13 * b, 17, 15 * b)), 1.8, 1.2),
        (canvas.ellipsoid_pair((8, 24, -45), (8 * c, 11, 7)), 1.8, 0.8),
        (nose, 1.0, 1.8),
        (ethmoid, 1.2, 1.0),
    ):
        canvas.paint(cavity < wall_mm, Tissue.BONE)
        canvas.paint(cavity < 0, Tissue.MUCOSA)
        canvas.paint(cavity < -lining_mm, Tissue.AIR)
    canvas.paint((ethmoid < 0) & (np.sin(canvas.y * 0.9) * np.sin(canvas.z * 0.8) > 0.55), Tissue.BONE)
    turbinates = (np.sin(canvas.z * 0.55 + 1) > 0.45) & (np.abs(canvas.x) > 3.5)
    septum = np.abs(canvas.x) < 1.2
    canvas.paint((nose < -1) & (turbinates | septum), Tissue.MUCOSA)


def _paint_jaws(canvas: Canvas, inside: NDArray[np.bool_]) -> None:
    for sign in (-1, 1):
        jaw = [(48 * sign, 2, -62), (47 * sign, 6, -92), (38 * sign, 36, -106), (12 * sign, 68, -112), (0, 71, -112)]
        zygoma = [(60 * sign, 20, -42), (52 * sign, 44, -46), (40 * sign, 58, -52)]
        canvas.shell(canvas.tube(jaw, [5, 7, 7, 8, 8]), 1.8)
        canvas.shell(canvas.tube(zygoma, [3.5, 4.5, 6]), 1.6)
    arch = [(-24, 46, -84), (-15, 68, -84), (0, 74, -84), (15, 68, -84), (24, 46, -84)]
    canvas.shell(canvas.tube(arch, [6] * 5), 1.5)
    teeth = np.abs(np.hypot(canvas.x / 1.05, canvas.y - 44) - 27) < 3
    canvas.paint(inside & teeth & (canvas.y > 46) & (np.abs(canvas.z + 95) < 6), Tissue.BONE)


def _paint_spine(canvas: Canvas) -> None:
    bodies = canvas.tube([(0, -24, -82), (0, -27, -110), (0, -28, -142)], [11, 10, 10])
    canvas.shell(bodies, 1.6)
    disc = np.abs((canvas.z + 82) % _VERTEBRA_MM - _VERTEBRA_MM / 2) < 2.2
    canvas.paint((bodies < 0) & disc, Tissue.DISC)
    for level in range(3):
        drop = level * _VERTEBRA_MM
        arch = [(-13, -34, -90), (-9, -52, -94), (0, -58, -96), (9, -52, -94), (13, -34, -90)]
        canvas.shell(canvas.tube([(x, y, z - drop) for x, y, z in arch], [4, 4, 5, 4, 4]), 1.5)
    canvas.paint(canvas.tube([(0, -36, -70), (0, -41, -95), (0, -42, -142)], [12, 9, 9]) < 0, Tissue.CSF)


def _paint_orbits(canvas: Canvas, inside: NDArray[np.bool_]) -> None:
    orbit = canvas.ellipsoid_pair((33, 54, -38), (19, 28, 17))
    globe = canvas.ellipsoid_pair((33, 70 + float(canvas.rng.uniform(-2, 2)), -38), (12.2, 12.2, 12.2))
    canvas.paint(inside & (orbit < 2) & (canvas.y < 74), Tissue.BONE)
    canvas.paint(inside & (orbit < 0), Tissue.FAT)
    strands = []
    for s in (-1, 1):
        strands.append(spline([(33 * s, 58, -38), (22 * s, 36, -35), (6 * s, 16, -29)], [2.2, 2.0, 2.0]))
        for dx, dz in ((13, 0), (-13, 0), (0, 13), (0, -13)):
            way = [(22 * s, 28, -37), (33 * s + dx, 56, -38 + dz), (33 * s + 0.8 * dx, 70, -38 + 0.8 * dz)]
            strands.append(spline(way, [1.5, 2.2, 1]))
    canvas.paint(canvas.tubes(strands) < 0, Tissue.MUSCLE)
    canvas.paint(inside & (globe < 1.0), Tissue.MUSCLE)
    canvas.paint(globe < 0, Tissue.EYE)
