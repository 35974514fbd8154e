"""Where the pictures of a series of RSNA's phantom lie: never a word of who is ill, nor of how large a sac is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from harmonize.phantom.acquisition import CIRCLE_OF_WILLIS_MM, Grid, make_grid, order_of, place_of
from harmonize.phantom.anatomy import draw_pose, draw_vessels
from harmonize.phantom.randomness import rotation
from harmonize.phantom.rsna.coverage import MARGIN_MM, varied_grid
from harmonize.phantom.rsna.plan import SeriesPlan
from harmonize.phantom.vessels import VesselTree

MAX_SPACING_MM = 2.0
"""An aneurysm of a few mm must stay visible, so few voxels mean a smaller field of view, not larger voxels."""
MIN_FIELD_MM = 110.0

_FIELD_MM = (140.0, 220.0)
"""A series of a hospital shows so much from left to right and from front to back, whatever its modality."""
_HEIGHT_MM = (90.0, 170.0)
"""And so much from top to bottom."""
_SHIFT_MM = ((-6.0, 6.0), (-8.0, 4.0), (-4.0, 16.0))
"""Its middle lies so far from that of the circle of Willis: to the right, to the front, up."""


def draw_grid(series: SeriesPlan, size: int, spacing: float, rng: np.random.Generator) -> Grid:
    """Field of view, slice distance and orientation as the four protocols of easy trees have them, ill or healthy."""
    modality, pose = series.modality, draw_pose(*series.names)
    back, rise = float(rng.uniform(-6, 2)), 0.0
    field = size * spacing
    axes, tilt = "LPS", np.zeros(3)
    if modality == "CTA":
        height, step = float(rng.uniform(120, 180)), max(float(rng.uniform(0.6, 1.25)), spacing * 0.6)
        rise = float(rng.uniform(0, 15))
    elif modality == "MRA":
        height, step = float(rng.uniform(80, 110)), max(float(rng.uniform(0.5, 1.0)), spacing * 0.5)
        tilt = rng.uniform((-12, -3, -3), (3, 3, 3))
    elif modality == "MRI T2":
        height, step = float(rng.uniform(120, 150)), float(rng.uniform(3.0, 5.0))
        rise = float(rng.uniform(0, 15))
        tilt = rng.uniform((-12, -3, -3), (5, 3, 3))
    else:
        axes = str(rng.choice(["LPS", "PIL", "LIP"]))
        height, step = float(rng.uniform(120, 160)), max(float(rng.uniform(0.8, 1.2)), spacing * 0.6)
        tilt = rng.uniform(-3, 3, size=3)
    middle = place_of(pose, CIRCLE_OF_WILLIS_MM, (0, back, rise))
    low, high = bounds_of(series, pose)
    # Extents by anatomical axis: wide enough for every aneurysm, and no more slices than asked for.
    order, wanted = order_of(axes), [field, field, field]
    wanted[order[2]] = min(height, size * max(step, spacing))
    for axis in range(3):
        reach = 2 * float(np.max(np.abs(np.stack([low, high])[:, axis] - middle[axis])) + MARGIN_MM)
        wanted[axis] = max(wanted[axis], reach)
    extent = [wanted[axis] for axis in order]
    spacings = [max(extent[0] / size, spacing), max(extent[1] / size, spacing), max(step, extent[2] / size)]
    return make_grid(extent_mm=extent, spacing_mm=spacings, centre_mm=middle, axes=axes, tilt_deg=tilt)


def hospital_grid(series: SeriesPlan, size: int, rng: np.random.Generator) -> Grid:
    """A field of view that tells neither modality nor hospital, in slices as the hospital's protocol has them.

    Args:
        series: What is scanned, and where.
        size: Voxels along the largest axis.
        rng: Where the chance comes from.
    """
    pose, protocol = draw_pose(*series.names), series.protocol
    field_mm = min(float(rng.uniform(*_FIELD_MM)), max(size * MAX_SPACING_MM, MIN_FIELD_MM))
    height_mm = min(float(rng.uniform(*_HEIGHT_MM)), field_mm)
    middle = place_of(pose, CIRCLE_OF_WILLIS_MM, [rng.uniform(*side) for side in _SHIFT_MM])
    tilt = rng.uniform(-1, 1, size=3) * (protocol.tilt_deg, protocol.tilt_deg / 3, protocol.tilt_deg / 3)
    axes, step = str(rng.choice(protocol.axes)), float(rng.uniform(*protocol.step_mm))
    sites_N3 = np.array([place_of(pose, CIRCLE_OF_WILLIS_MM), *(s.centre_mm for s in would_be(series, pose).aneurysms)])
    offsets_N3 = (sites_N3 - middle) @ rotation(tilt)  # in the axes of the slices
    along = np.maximum((field_mm, field_mm, height_mm), 2 * (np.abs(offsets_N3).max(axis=0) + MARGIN_MM))
    extent = along[order_of(axes)].tolist()
    pixel = max(extent[0], extent[1]) / size
    spacings = [pixel, pixel, max(step, extent[2] / size)]
    return make_grid(extent_mm=extent, spacing_mm=spacings, centre_mm=middle, axes=axes, tilt_deg=tilt)


def would_be(series: SeriesPlan, pose: NDArray[np.float64]) -> VesselTree:
    """The vessels of a head with sacs at all sites, whether it has them or not."""
    return draw_vessels(*series.names, pose=pose, locations=series.sites, difficulty=series.difficulty)


def varied_grid_of(series: SeriesPlan, turn: NDArray[np.float64], size: int, rng: np.random.Generator) -> Grid:
    """One of `varied_grid` around the sites of a head that `turned` has turned."""
    pose = turn @ draw_pose(*series.names)
    sites_N3 = np.array([sac.centre_mm for sac in would_be(series, pose).aneurysms]).reshape(-1, 3)
    return varied_grid(series.modality, place_of(pose, CIRCLE_OF_WILLIS_MM), sites_N3, size, rng)


def bounds_of(series: SeriesPlan, pose: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Box around the circle of Willis and the aneurysms, or where they would be: else an image's size tells of them."""
    sacs = would_be(series, pose).aneurysms
    centres = np.array([place_of(pose, CIRCLE_OF_WILLIS_MM), *(sac.centre_mm for sac in sacs)])
    return centres.min(axis=0), centres.max(axis=0)
