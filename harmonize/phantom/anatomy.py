"""A random head: tissues on a rectangular grid in template coordinates, and its vessels.

Template coordinates are RAS+ mm with the origin near the middle of the skull. Each head gets its own shape by a pose
(shift, rotation, scale) that leads from the template to the scanner, and by random fields that fold its cortex, swell
its bones and spread its fat. Nothing here is measured on a person.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harmonize.phantom.arteries import VesselTree, grow_tree
from harmonize.phantom.randomness import rng_of, rotation, smooth_field
from harmonize.phantom.tubes import FAR_MM, Tube, distances, spline

BOX_LOW_MM = (-94.0, -120.0, -140.0)
BOX_HIGH_MM = (94.0, 120.0, 88.0)
"""What of the template is drawn: from the chin and the third vertebra to above the vertex."""

_CRANIUM_MM = (67.0, 83.0, 65.0)
"""Half axes of the inner table of the skull."""
_CRANIUM_CENTRE_MM = (0.0, -4.0, 0.0)

_WALL_MARGIN_MM = 6.0
"""Distances are needed this far outside an ellipsoid that is painted: more than any wall."""
_UNION_MARGIN_MM = 30.0
"""And this far outside one that is joined smoothly with another."""

_Field = NDArray[np.float32]


class Tissue(IntEnum):
    """What a voxel of the head is made of."""

    AIR = 0
    SKIN = 1
    FAT = 2
    MUSCLE = 3
    BONE = 4
    MARROW = 5
    CSF = 6
    GREY = 7
    WHITE = 8
    EYE = 9
    MUCOSA = 10
    LESION = 11
    DISC = 12
    COUCH = 13


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
def make_head(*names: object, resolution_mm: float = 1.5, locations: tuple[str, ...] = ()) -> Head:
    """Draw the head that belongs to `names` (a seed first), with one aneurysm at each of `locations`.

    The same names give the same anatomy at any resolution. The last head is remembered, because several series of a
    subject show the same one: do not write into it.
    """
    axes = tuple(
        np.arange(low, high + resolution_mm / 2, resolution_mm, dtype=np.float32)
        for low, high in zip(BOX_LOW_MM, BOX_HIGH_MM, strict=True)
    )
    affine = np.diag([resolution_mm, resolution_mm, resolution_mm, 1.0])
    affine[:3, 3] = BOX_LOW_MM
    tissue_XYZ, inside_XYZ = _paint(axes, affine, rng_of(*names, "tissue"))
    pose = _draw_pose(rng_of(*names, "pose"))
    return Head(
        tissue_XYZ=tissue_XYZ,
        texture_XYZ=smooth_field(axes, 9.0, rng_of(*names, "texture")),
        inside_XYZ=inside_XYZ,
        affine=affine,
        pose=pose,
        vessels=grow_tree(rng_of(*names, "vessels"), locations).moved(pose),
        resolution_mm=resolution_mm,
    )


def _draw_pose(rng: np.random.Generator) -> NDArray[np.float64]:
    pose = np.eye(4)
    size = rng.normal(1.0, 0.025) * rng.normal(1.0, 0.02, size=3)
    pose[:3, :3] = rotation(rng.uniform((-8, -4, -5), (8, 4, 5))) @ np.diag(np.clip(size, 0.92, 1.08))
    pose[:3, 3] = rng.uniform((-2.5, -12, -15), (2.5, 12, 15))
    return pose


def _paint(
    axes: tuple[_Field, ...], affine: NDArray[np.float64], rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Lay the tissues one over the other, from the skin inwards."""
    x, y, z = axes[0][:, None, None], axes[1][None, :, None], axes[2][None, None, :]
    tissue = np.zeros((x.size, y.size, z.size), dtype=np.uint8)
    slow = smooth_field(axes, 60.0, rng)
    skin = _skin(x, y, z) + 1.2 * slow
    inside = skin < 0
    _paint_couch(tissue, x, y, z)
    _paint_soft_tissue(tissue, skin, smooth_field(axes, 40.0, rng))

    cavity = _cavity(x, y, z) + 1.5 * slow
    _paint_face_and_neck(tissue, (x, y, z), affine, inside, axes, rng)
    _paint_skull(tissue, cavity, (x, y, z), axes, rng)
    _paint_sinuses(tissue, (x, y, z), rng)
    _paint_brain(tissue, cavity, (x, y, z), axes, affine, rng)
    tissue[~inside & (tissue != Tissue.COUCH)] = Tissue.AIR
    return tissue, inside


def _ellipsoid(
    xyz: tuple[_Field, _Field, _Field],
    centre: tuple[float, float, float],
    half: tuple[float, float, float],
    power: float = 2.0,
    margin_mm: float = _WALL_MARGIN_MM,
) -> _Field:
    """Radial distance in mm to a (super)ellipsoid, negative inside; `FAR_MM` beyond the box around it."""
    offsets = [np.abs(axis - np.float32(middle)) for axis, middle in zip(xyz, centre, strict=True)]
    found = np.full(np.broadcast_shapes(*(axis.shape for axis in xyz)), FAR_MM)
    near = [np.flatnonzero(offset < semi + margin_mm) for offset, semi in zip(offsets, half, strict=True)]
    offsets = [offset.ravel()[index] for offset, index in zip(offsets, near, strict=True)]
    a, b, c = (
        offset.reshape(shape) for offset, shape in zip(offsets, ((-1, 1, 1), (1, -1, 1), (1, 1, -1)), strict=True)
    )
    reach = np.sqrt(a * a + b * b + c * c)
    scaled = [(offset / np.float32(semi)) ** np.float32(power) for offset, semi in zip((a, b, c), half, strict=True)]
    total = scaled[0] + scaled[1] + scaled[2]
    level = np.sqrt(total) if power == 2 else total ** np.float32(1 / power)
    found[np.ix_(*near)] = reach - reach / np.maximum(level, np.float32(1e-2))
    return found


def _blend(a: _Field, b: _Field, width_mm: float) -> _Field:
    """Smooth union of two distance fields."""
    h = np.maximum(width_mm - np.abs(a - b), 0) / np.float32(width_mm)
    return np.minimum(a, b) - h * h * np.float32(width_mm / 4)


def _step(values: _Field, width: float) -> _Field:
    return 1 / (1 + np.exp(-np.clip(values / np.float32(width), -20, 20)))


def _skin(x: _Field, y: _Field, z: _Field) -> _Field:
    xyz = (x, y, z)
    half = [semi + extra for semi, extra in zip(_CRANIUM_MM, (12.0, 12.5, 12.5), strict=True)]
    head = _ellipsoid(xyz, _CRANIUM_CENTRE_MM, (half[0], half[1], half[2]), margin_mm=_UNION_MARGIN_MM)
    face = _ellipsoid(xyz, (0, 34, -62), (56, 54, 66), power=2.6, margin_mm=_UNION_MARGIN_MM)
    nose = _ellipsoid(xyz, (0, 86, -58), (13, 20, 18), margin_mm=12)
    ears = _ellipsoid((np.abs(x), y, z), (79, -12, -40), (9, 14, 27), margin_mm=8)
    neck = np.maximum((np.sqrt((x / 56) ** 2 + ((y + 14) / 60) ** 2) - 1) * np.float32(54), z + np.float32(50))
    return _blend(_blend(_blend(_blend(head, face, 20), neck, 24), nose, 10), ears, 6)


def _cavity(x: _Field, y: _Field, z: _Field) -> _Field:
    """Distance to the inner table: an ellipsoid cut from below by the three steps of the skull base."""
    dome = _ellipsoid((x, y, z), _CRANIUM_CENTRE_MM, _CRANIUM_MM, margin_mm=_UNION_MARGIN_MM)
    middle = np.interp(y, [-90, -40, -8, 9, 12, 20, 24, 90], [-58, -66, -66, -38, -33, -33, -27, -22])
    lateral = np.interp(y, [-90, -40, -18, -11, -5, 26, 32, 90], [-54, -64, -62, -34, -45, -44, -27, -22])
    # The petrous ridge and the middle fossa begin beside the sella.
    beside = _step(np.abs(x) - 16, 2.0)
    floor = (middle + (lateral - middle) * beside).astype(np.float32)
    return -_blend(-dome, -(floor - z), 8)


def _paint_couch(tissue: NDArray[np.uint8], x: _Field, y: _Field, z: _Field) -> None:
    """The head rest of a CT scanner: a thin shell behind the head."""
    shell = np.abs(np.sqrt((x / 98) ** 2 + ((y + 8) / 108) ** 2) - 1) * 100 < 1.3
    tissue[np.broadcast_to(shell & (y < -60) & (z > -70), tissue.shape)] = Tissue.COUCH


def _paint_soft_tissue(tissue: NDArray[np.uint8], skin: _Field, spread: _Field) -> None:
    depth = -skin
    fat_to = 4.5 + 1.6 * spread
    tissue[depth > 0] = Tissue.SKIN
    tissue[depth > 2.0] = Tissue.FAT
    tissue[depth > fat_to] = Tissue.MUSCLE


def _paint_face_and_neck(
    tissue: NDArray[np.uint8],
    xyz: tuple[_Field, _Field, _Field],
    affine: NDArray[np.float64],
    inside: NDArray[np.bool_],
    axes: tuple[_Field, ...],
    rng: np.random.Generator,
) -> None:
    x, y, z = xyz
    mirrored = (np.abs(x), y, z)
    deep = inside & (_ellipsoid(xyz, (0, 38, -62), (48, 44, 56)) < 0)
    # Fat and muscle lie in streaks behind the face.
    streaks = smooth_field(axes, (24.0, 24.0, 30.0), rng)
    tissue[deep & (streaks > -0.1)] = Tissue.FAT
    neck = inside & np.broadcast_to(z < -70, inside.shape)
    tissue[neck & (np.abs(streaks) < 0.1)] = Tissue.FAT

    def tube(points: ArrayLike, radii: ArrayLike) -> _Field:
        return distances([spline(points, radii)], affine, tissue.shape, 2.0)[0]

    for sign in (-1, 1):
        jaw = [(48 * sign, 2, -62), (47 * sign, 6, -92), (38 * sign, 36, -106), (12 * sign, 68, -112), (0, 71, -112)]
        zygoma = [(60 * sign, 20, -42), (52 * sign, 44, -46), (40 * sign, 58, -52)]
        _shell(tissue, tube(jaw, [5, 7, 7, 8, 8]), 1.8)
        _shell(tissue, tube(zygoma, [3.5, 4.5, 6]), 1.6)
    arch = tube([(-24, 46, -84), (-15, 68, -84), (0, 74, -84), (15, 68, -84), (24, 46, -84)], [6, 6, 6, 6, 6])
    _shell(tissue, arch, 1.5)
    teeth = np.abs(np.hypot(x / 1.05, y - 44) - 27) < 3
    tissue[np.broadcast_to(teeth & (y > 46) & (np.abs(z + 95) < 6), tissue.shape) & inside] = Tissue.BONE

    spine = tube([(0, -24, -82), (0, -27, -110), (0, -28, -142)], [11, 10, 10])
    disc = np.broadcast_to(np.abs((z + 82) % 19 - 9.5) < 2.2, tissue.shape)
    _shell(tissue, spine, 1.6)
    tissue[(spine < 0) & disc] = Tissue.DISC
    arch_bone = tube([(-13, -34, -90), (-9, -52, -94), (0, -58, -96), (9, -52, -94), (13, -34, -90)], [4, 4, 5, 4, 4])
    _shell(tissue, np.minimum(arch_bone, np.roll(arch_bone, -round(19 / affine[2, 2]), axis=2)), 1.5)
    canal = tube([(0, -36, -70), (0, -41, -95), (0, -42, -142)], [12, 9, 9])
    tissue[canal < 0] = Tissue.CSF

    orbit = _ellipsoid(mirrored, (33, 54, -38), (19, 28, 17))
    globe = _ellipsoid(mirrored, (33, 70 + float(rng.uniform(-2, 2)), -38), (12.2, 12.2, 12.2))
    tissue[(orbit < 2) & (orbit >= 0) & inside & np.broadcast_to(y < 74, tissue.shape)] = Tissue.BONE
    tissue[(orbit < 0) & inside] = Tissue.FAT
    nerve = [spline([(33 * s, 58, -38), (22 * s, 36, -35), (6 * s, 16, -29)], [2.2, 2.0, 2.0]) for s in (-1, 1)]
    muscles = [
        spline([(22 * s, 28, -37), (33 * s + dx, 56, -38 + dz), (33 * s + 0.8 * dx, 70, -38 + 0.8 * dz)], [1.5, 2.2, 1])
        for s in (-1, 1)
        for dx, dz in ((13, 0), (-13, 0), (0, 13), (0, -13))
    ]
    tissue[distances([*nerve, *muscles], affine, tissue.shape, 2.0)[0] < 0] = Tissue.MUSCLE
    tissue[(globe < 1.0) & inside] = Tissue.MUSCLE
    tissue[globe < 0] = Tissue.EYE

    airway = tube([(0, 30, -74), (0, 6, -92), (0, 8, -120), (0, 6, -142)], [8, 8, 7, 9])
    tissue[airway < 1.2] = Tissue.MUCOSA
    tissue[airway < 0] = Tissue.AIR


def _shell(tissue: NDArray[np.uint8], distance: _Field, cortex_mm: float) -> None:
    """A bone with marrow inside its cortex."""
    tissue[distance < 0] = Tissue.BONE
    tissue[distance < -cortex_mm] = Tissue.MARROW


def _paint_skull(
    tissue: NDArray[np.uint8],
    cavity: _Field,
    xyz: tuple[_Field, _Field, _Field],
    axes: tuple[_Field, ...],
    rng: np.random.Generator,
) -> None:
    x, y, z = xyz
    thickness = 6.2 + 0.8 * float(rng.normal()) + 1.1 * smooth_field(axes, 35.0, rng)
    np.maximum(thickness, 3.0, out=thickness)
    # Only the occiput keeps its shell low behind; in front of the spine it is open for the cord.
    magnum = np.sqrt(x**2 + (y + 30) ** 2) < 15
    wall = (cavity > -0.5) & (cavity < thickness) & ~(magnum & (z < -50))
    tissue[wall] = Tissue.BONE
    tissue[wall & (cavity > 1.7) & (cavity < thickness - 2.0)] = Tissue.MARROW
    ridge = _ellipsoid((np.abs(x), y, z), (38, -12, -46), (24, 9, 9))
    clivus = _ellipsoid(xyz, (0, 12, -50), (11, 9, 16))
    mastoid = _ellipsoid((np.abs(x), y, z), (56, -22, -56), (13, 15, 20))
    cells = smooth_field(axes, 7.0, rng)
    tissue[(ridge < 0) | (mastoid < 0)] = Tissue.BONE
    tissue[clivus < 0] = Tissue.BONE
    tissue[clivus < -2.5] = Tissue.MARROW
    tissue[((mastoid < -2) | (ridge < -4)) & (cells > 0.15)] = Tissue.AIR


def _paint_sinuses(tissue: NDArray[np.uint8], xyz: tuple[_Field, _Field, _Field], rng: np.random.Generator) -> None:
    x, y, z = xyz
    mirrored = (np.abs(x + np.float32(rng.normal(scale=0.8))), y, z)
    swell = [float(value) for value in rng.uniform(0.75, 1.15, size=4)]
    frontal = _ellipsoid(mirrored, (11, 79, -18), (12 * swell[0], 5, 11 * swell[0]))
    maxillary = _ellipsoid(mirrored, (29, 48, -65), (13 * swell[1], 17, 15 * swell[1]))
    sphenoid = _ellipsoid(mirrored, (8, 24, -45), (8 * swell[2], 11, 7))
    nose = _ellipsoid(mirrored, (6, 56, -62), (6, 30, 18 * swell[3]))
    ethmoid = _ellipsoid(mirrored, (8, 52, -40), (6, 20, 9))
    for cavity, wall_mm, lining_mm in (
        (frontal, 2.0, 0.0), (maxillary, 1.8, 1.2), (sphenoid, 1.8, 0.8), (nose, 1.0, 1.8), (ethmoid, 1.2, 1.0),
    ):  # fmt: skip
        tissue[cavity < wall_mm] = Tissue.BONE
        tissue[cavity < 0] = Tissue.MUCOSA
        tissue[cavity < -lining_mm] = Tissue.AIR
    tissue[(ethmoid < 0) & (np.sin(y * 0.9) * np.sin(z * 0.8) > 0.55)] = Tissue.BONE
    turbinates = (nose < -1) & (np.sin(z * 0.55 + 1) > 0.45) & (np.abs(x) > 3.5)
    tissue[turbinates] = Tissue.MUCOSA
    tissue[(nose < -1) & np.broadcast_to(np.abs(x) < 1.2, nose.shape)] = Tissue.MUCOSA


def _paint_brain(
    tissue: NDArray[np.uint8],
    cavity: _Field,
    xyz: tuple[_Field, _Field, _Field],
    axes: tuple[_Field, ...],
    affine: NDArray[np.float64],
    rng: np.random.Generator,
) -> None:
    x, y, z = xyz
    mirrored = (np.abs(x), y, z)
    atrophy = float(rng.uniform(0.7, 1.6))
    inside = cavity < -0.5
    depth = -cavity - (2.0 + 0.8 * atrophy)
    tissue[inside] = Tissue.CSF

    # Cortex: a fold runs where a random field crosses zero, so it is a sheet that wanders in from the surface.
    folds = np.abs(smooth_field(axes, 19.0, rng) + 0.4 * smooth_field(axes, 10.0, rng)) * np.float32(4.5)
    callosum = ((y + 4) / 42) ** 2 + ((z - 3) / 25) ** 2 < 1
    fissure = np.abs(x + 0.4 * np.sin(y * 0.08)) + 100 * (callosum | (z < -24)).astype(np.float32)
    sylvian = (
        np.abs(z + 12 - 0.22 * (18 - y)) + 100 * _step(-(np.abs(x) - 33), 1.0) + 100 * _step(np.abs(y - 2) - 26, 2)
    )
    fold_depth = np.maximum(depth, 0) / 17
    valley = np.minimum(np.minimum(folds + 6 * np.maximum(fold_depth - 1, 0), fissure), sylvian)
    sulcus_mm = 0.55 * atrophy + 0.25
    brain = inside & (depth > 0)
    grey = brain & ((depth < 3.0) | (valley < sulcus_mm + 3.0))
    tissue[brain] = Tissue.WHITE
    tissue[grey] = Tissue.GREY
    tissue[brain & (valley < sulcus_mm)] = Tissue.CSF

    nuclei = np.minimum(
        np.minimum(
            _ellipsoid(mirrored, (25, 4, 0), (6, 17, 11)),
            _ellipsoid(mirrored, (11, -14, 4), (8, 14, 9)),
        ),
        _ellipsoid(mirrored, (14, 20, 10), (5, 14, 8)),
    )
    tissue[nuclei < 0] = Tissue.GREY
    _paint_lesions(tissue, axes, rng)
    _paint_hindbrain(tissue, inside, xyz, axes, affine, rng)

    cistern = _ellipsoid(xyz, (0, 9, -24), (16, 15, 9))
    tissue[inside & (cistern < 0)] = Tissue.CSF
    chiasm = [spline([(7 * s, 17, -29), (0, 10, -25), (-9 * s, 2, -22)], [2.0, 2.6, 2.0]) for s in (-1, 1)]
    stalk = spline([(0, 6, -20), (0, 11, -33)], [1.6, 1.4])
    tissue[inside & (distances([*chiasm, stalk], affine, tissue.shape, 2.0)[0] < 0)] = Tissue.WHITE
    tissue[distances(_ventricles(rng), affine, tissue.shape, 2.0)[0] < 0] = Tissue.CSF
    third = (np.abs(x) < 1.0 + atrophy) & (np.abs(y + 6) < 13) & (np.abs(z + 1) < 11)
    tissue[np.broadcast_to(third, tissue.shape) & inside] = Tissue.CSF


def _ventricles(rng: np.random.Generator) -> list[Tube]:
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


def _paint_hindbrain(
    tissue: NDArray[np.uint8],
    inside: NDArray[np.bool_],
    xyz: tuple[_Field, _Field, _Field],
    axes: tuple[_Field, ...],
    affine: NDArray[np.float64],
    rng: np.random.Generator,
) -> None:
    """Brain stem, cord and cerebellum under their tent, in a bath of CSF."""
    x, y, z = xyz
    tent = z + 20 + 0.28 * np.maximum(-y - 30, 0) + 0.004 * x**2 + 100 * _step(y + 12, 1.5)
    below = inside & (tent < 0)
    tissue[below] = Tissue.CSF
    cerebellum = np.minimum(
        _ellipsoid((np.abs(x), y, z), (23, -46, -42), (28, 27, 19)), _ellipsoid(xyz, (0, -46, -38), (14, 24, 18))
    )
    leaves = np.abs(smooth_field(axes, (40.0, 20.0, 8.0), rng)) * np.float32(2.2)
    body = below & (cerebellum < 0) & (tent < -1.5)
    tissue[body] = Tissue.GREY
    tissue[body & (leaves > 1.8) & (cerebellum < -2)] = Tissue.WHITE
    tissue[body & (cerebellum < -8)] = Tissue.WHITE
    tissue[body & (leaves < 0.3) & (cerebellum > -7)] = Tissue.CSF
    around = np.sqrt(x**2 + (y + 6) ** 2) < 17
    tissue[inside & np.broadcast_to(around & (z < -17) & (z > -66) & (y > -14), tissue.shape)] = Tissue.CSF
    stem = spline(
        [(0, -12, -12), (0, -12, -24), (0, -13, -38), (0, -18, -54), (0, -27, -68), (0, -37, -88), (0, -42, -142)],
        [13, 12, 12.5, 8.5, 7, 5.5, 5],
    )
    peduncles = [spline([(0, -14, -38), (15 * s, -24, -40), (22 * s, -40, -42)], [8, 6.5, 4]) for s in (-1, 1)]
    stem_distance = distances([stem, *peduncles], affine, tissue.shape, 2.0)[0]
    tissue[stem_distance < 0] = Tissue.WHITE


def _paint_lesions(tissue: NDArray[np.uint8], axes: tuple[_Field, ...], rng: np.random.Generator) -> None:
    """White-matter spots in every head, few or many, and a larger blob in some."""
    burden = float(rng.uniform(2.6, 3.6))
    spots = smooth_field(axes, 9.0, rng) > burden
    white = tissue == Tissue.WHITE
    tissue[white & spots] = Tissue.LESION
    if rng.random() < 0.25:
        centre = tuple(float(v) for v in rng.uniform((22, -45, 12), (42, 40, 35)) * (rng.choice((-1, 1)), 1, 1))
        xyz = (axes[0][:, None, None], axes[1][None, :, None], axes[2][None, None, :])
        radius = float(rng.uniform(6, 15))
        blob = _ellipsoid(xyz, (centre[0], centre[1], centre[2]), (radius, radius, radius)) + 2 * smooth_field(
            axes, 14.0, rng
        )
        tissue[(blob < 0) & (white | (tissue == Tissue.GREY))] = Tissue.LESION
