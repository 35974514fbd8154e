"""Scan a head: choose a grid in scanner space and sample tissues and vessels into it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from harmonize.labels import LOCATIONS, MASK_VALUES
from harmonize.phantom.anatomy import Head
from harmonize.phantom.canvas import Tissue
from harmonize.phantom.contrast import Contrast
from harmonize.phantom.randomness import COIL_MM, rotation, smooth_field
from harmonize.phantom.vessels import LAYERS, Flow, Vessel
from harmonize.phantom.vessels.tubes import distances
from harmonize.scan import AIR_HU

_VESSEL_STEP_MM = 0.8
"""Voxels are cut into pieces of at most about this size to find the share that is vessel."""

_MOST_VESSEL_PIECES = 8
"""But into no more than this many along an axis."""

_MASK_TOLERANCE = 0.25
"""A voxel belongs to a vessel when its centre lies within this part of a voxel outside the wall: thin vessels stay
connected, as in masks drawn by hand."""

_FINEST_HEAD_MM = 1.0
_COARSEST_HEAD_MM = 2.5

HEAD_CENTRE_MM = (0.0, 0.0, -5.0)
"""Middle of a field of view that holds the head, in template mm."""
CIRCLE_OF_WILLIS_MM = (0.0, 4.0, -22.0)
"""Middle of a field of view for the vessels, in template mm."""


FlowLoss = Callable[
    [Sequence[Vessel], NDArray[np.int64], NDArray[np.float32], NDArray[np.float64]], NDArray[np.float64]
]
"""Share of the signal that is left in pieces of vessels: all vessels, and of each piece P the number of its vessel, its
depth below the wall and its height in the scanner in mm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Where the voxels of an acquisition lie.

    Attributes:
        shape: Their number along each axis.
        affine: (4, 4), voxel index to RAS+ mm; may be sheared.
        first: Index of the first voxel: not 0 in a part of a larger grid, which has the affine of the whole.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    first: tuple[int, int, int] = (0, 0, 0)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Length of a step along each axis in mm."""
        a, b, c = (float(value) for value in np.linalg.norm(self.affine[:3, :3], axis=0))
        return a, b, c

    def world(self, index: ArrayLike) -> NDArray[np.float64]:
        """RAS+ mm of a (fractional) voxel index."""
        return self.affine[:3, :3] @ np.asarray(index, dtype=np.float64) + self.affine[:3, 3]

    def index(self, world_mm: ArrayLike) -> NDArray[np.float64]:
        """Fractional voxel index of a place in RAS+ mm."""
        offset = np.asarray(world_mm, dtype=np.float64) - self.affine[:3, 3]
        return np.asarray(np.linalg.solve(self.affine[:3, :3], offset), dtype=np.float64)

    def shows(self, world_mm: ArrayLike) -> bool:
        """Whether a place in RAS+ mm lies in a voxel."""
        index = np.rint(self.index(world_mm)) - self.first
        return bool(((index >= 0) & (index < self.shape)).all())


def make_grid(
    *,
    extent_mm: Sequence[float],
    spacing_mm: Sequence[float],
    centre_mm: ArrayLike,
    axes: str = "LPS",
    tilt_deg: ArrayLike = (0.0, 0.0, 0.0),
    shear_deg: float = 0.0,
) -> Grid:
    """Lay a grid around a place in the scanner.

    Args:
        extent_mm: Field of view along the three voxel axes.
        spacing_mm: Voxel size along them.
        centre_mm: Middle of the grid in RAS+ mm.
        axes: Where each voxel axis points, one letter each: ``LPS`` is a common axial scan.
        tilt_deg: Small rotation of the whole grid about x, y and z.
        shear_deg: Gantry tilt: the first two axes turn about x, the third keeps its way.
    """
    shape = tuple(max(2, round(extent / step)) for extent, step in zip(extent_mm, spacing_mm, strict=True))
    units = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
    directions = rotation(tilt_deg) @ np.array([units[letter] for letter in axes], dtype=np.float64).T
    directions[:, :2] = rotation((shear_deg, 0, 0)) @ directions[:, :2]
    affine = np.eye(4)
    affine[:3, :3] = directions * np.asarray(spacing_mm)
    affine[:3, 3] = np.asarray(centre_mm) - affine[:3, :3] @ (np.asarray(shape) - 1) / 2
    return Grid(shape=(shape[0], shape[1], shape[2]), affine=affine)


def order_of(axes: str) -> list[int]:
    """Which of x, y and z each voxel axis runs along, by the letters of `make_grid`.

    Example:
        >>> order_of("PIL")
        [1, 2, 0]
    """
    return [next(number for number, pair in enumerate(("RL", "AP", "SI")) if letter in pair) for letter in axes]


def resolution_for(spacing_mm: float) -> float:
    """Voxel size in mm at which a head is drawn for a scan: somewhat finer than the raw spacing.

    Example:
        >>> resolution_for(0.5), resolution_for(2.0), resolution_for(5.0)
        (1.0, 1.5, 2.5)
    """
    return min(max(round(0.75 * spacing_mm * 4) / 4, _FINEST_HEAD_MM), _COARSEST_HEAD_MM)


def place_of(pose: NDArray[np.float64], template_mm: ArrayLike, shift_mm: ArrayLike = 0.0) -> NDArray[np.float64]:
    """Where a place of the template lies in the scanner by a head's pose, RAS+ mm, moved there by `shift_mm`."""
    place = pose[:3, :3] @ np.asarray(template_mm, dtype=np.float64) + pose[:3, 3]
    return np.asarray(place + np.asarray(shift_mm, dtype=np.float64))


def scan_head(head: Head, grid: Grid, contrast: Contrast, rng: np.random.Generator) -> NDArray[np.float32]:
    """Image a head.

    Args:
        head: What is scanned.
        grid: Where it is sampled.
        contrast: What it looks like; `Contrast.varied` gives one for the day.
        rng: For noise and bias.

    Returns:
        float32, shape `grid.shape`: HU for CT, positive arbitrary units for MR, Bq/ml for PET.
    """
    image = sample_tissues(tissue_values(head, contrast), head, grid, contrast)
    add_vessels(image, head.vessels.vessels, grid, contrast)
    if contrast.blur_mm:
        image = ndimage.gaussian_filter(image, [contrast.blur_mm / step for step in grid.spacing], truncate=3.0)
    if contrast.bias:
        image *= np.exp(np.float32(contrast.bias) * _bias_field(grid, rng))
    return _add_noise(image, contrast, rng)


def add_vessels(
    image_XYZ: NDArray[np.float32],
    vessels: Sequence[Vessel],
    grid: Grid,
    contrast: Contrast,
    flow_loss: FlowLoss | None = None,
) -> None:
    """Lay vessels, and what else tubes are filled with, over an image of tissues, in place and layer by layer.

    Args:
        image_XYZ: Values, shape `grid.shape`.
        vessels: In scanner mm.
        grid: Where the image lies.
        contrast: What each `Flow` looks like; those that it does not name are not drawn.
        flow_loss: Share of its signal that flowing blood keeps; None for all of it.
    """
    for layer in LAYERS:
        chosen = [v for v in vessels if v.flow in layer and v.flow in contrast.vessel]
        if chosen:
            # Arteries and veins are everywhere; what lies under or over them fills a small part of the grid.
            flowing = Flow.ARTERY in layer
            box, within = (..., grid) if flowing else _cropped(grid, chosen)
            share, part = _vessel_share(chosen, within, contrast, flow_loss if flowing else None)
            image_XYZ[box] += part - share * image_XYZ[box]


def vessel_mask(head: Head, grid: Grid) -> NDArray[np.uint8]:
    """Label the arteries (sacs included) with the values of the competition's masks, 0 elsewhere."""
    value_of = dict(zip(LOCATIONS, MASK_VALUES, strict=True))
    return label_vessels(head, grid, lambda vessel: value_of.get(str(vessel.location)))


def label_vessels(head: Head, grid: Grid, value_of: Callable[[Vessel], int | None]) -> NDArray[np.uint8]:
    """Label vessels with values of one's own, 0 elsewhere.

    Args:
        head: Whose.
        grid: Where.
        value_of: The value of a vessel, or None for one that is not labelled.
    """
    named = [(vessel.tube, value) for vessel in head.vessels.vessels if (value := value_of(vessel)) is not None]
    tolerance = _MASK_TOLERANCE * float(np.mean(grid.spacing))
    distance, nearest = distances([tube for tube, _ in named], grid.affine, grid.shape, 2 * tolerance, grid.first)
    values = np.array([0, *(value for _, value in named)], dtype=np.uint8)
    return np.where(distance < tolerance, values[nearest], 0).astype(np.uint8)


def head_mask(head: Head, grid: Grid) -> NDArray[np.bool_]:
    """True within the skin."""
    return _nearest(head, grid, head.inside_XYZ)


def hemisphere_mask(head: Head, grid: Grid) -> NDArray[np.uint8]:
    """1 in the brain's left half, 2 in its right one, cerebellum and stem included; 0 elsewhere, and in its fluid."""
    brain = _nearest(head, grid, np.isin(head.tissue_XYZ, (Tissue.GREY, Tissue.WHITE, Tissue.LESION)))
    to_template = (np.linalg.inv(head.pose) @ grid.affine)[0]
    i, j, k = _indices(grid)
    right = to_template[0] * i + to_template[1] * j + to_template[2] * k + to_template[3] > 0
    return np.where(brain, 1 + right, 0).astype(np.uint8)


def face_mask(head: Head, grid: Grid) -> NDArray[np.bool_]:
    """True where a defacing program would cut: everything before and below a plane under the forehead."""
    to_template = np.linalg.inv(head.pose) @ grid.affine
    i, j, k = _indices(grid)
    y, z = (row[0] * i + row[1] * j + row[2] * k + row[3] for row in to_template[1:3])
    # From the glabella (y 84, z -18) to behind the chin (y 22, z -112).
    return np.asarray((94 * (y - 84) - 62 * (z + 18) > 0) & (z < -18))


def _indices(grid: Grid) -> tuple[NDArray[np.int_], ...]:
    """Index of each voxel along each axis; they broadcast to the grid's shape."""
    return np.ix_(*(np.arange(start, start + count) for start, count in zip(grid.first, grid.shape, strict=True)))


def _to_voxels(head: Head, affine: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.linalg.inv(head.pose @ head.affine) @ affine


def _nearest(head: Head, grid: Grid, volume: NDArray[np.bool_]) -> NDArray[np.bool_]:
    matrix = _to_voxels(head, grid.affine)
    offset = matrix[:3, :3] @ grid.first + matrix[:3, 3]
    found = ndimage.affine_transform(
        volume.astype(np.uint8), matrix[:3, :3], offset, grid.shape, order=0, mode="constant"
    )
    return found.astype(bool)


def tissue_values(head: Head, contrast: Contrast) -> NDArray[np.float32]:
    """The value of each voxel of a head as it is drawn, vessels left out."""
    values = contrast.tissue[head.tissue_XYZ]
    amplitude = contrast.texture if contrast.family == "CT" else contrast.texture * contrast.tissue
    values += amplitude[head.tissue_XYZ] * head.texture_XYZ
    return values


def sample_tissues(values_XYZ: NDArray[np.float32], head: Head, grid: Grid, contrast: Contrast) -> NDArray[np.float32]:
    """Sample the `tissue_values` of a head into a grid, float32 of `grid.shape`."""
    # Trilinear sampling of the fine head averages over one of its voxels; thicker ones are cut into such pieces.
    factors = [max(1, round(step / head.resolution_mm)) for step in grid.spacing]
    fine = _refined(grid, factors)
    matrix = _to_voxels(head, fine.affine)
    offset = matrix[:3, :3] @ fine.first + matrix[:3, 3]
    sampled = ndimage.affine_transform(
        values_XYZ, matrix[:3, :3], offset, fine.shape, order=1, mode="constant",
        cval=float(contrast.tissue[Tissue.AIR]), output=np.float32,
    )  # fmt: skip
    return _block_mean(sampled, factors)


def _vessel_share(
    vessels: Sequence[Vessel], grid: Grid, contrast: Contrast, flow_loss: FlowLoss | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Share of each voxel that is vessel, and what the vessel part of the voxel adds to its value."""
    factors = [int(np.clip(round(step / _VESSEL_STEP_MM), 1, _MOST_VESSEL_PIECES)) for step in grid.spacing]
    fine = _refined(grid, factors)
    edge = np.float32(np.mean(fine.spacing))
    distance, nearest = distances(
        [vessel.tube for vessel in vessels], fine.affine, fine.shape, float(edge) / 2, fine.first
    )
    # Vessels fill little of a head: gather the few pieces that have some, and add them up voxel by voxel.
    pieces = np.flatnonzero(nearest)
    shares = np.clip(np.float32(0.5) - distance.ravel()[pieces] / edge, 0, 1)
    number = nearest.ravel()[pieces]
    value = np.array([0.0, *(contrast.vessel[vessel.flow] for vessel in vessels)])[number]
    places = np.unravel_index(pieces, fine.shape)
    if flow_loss is not None:
        up, height = fine.affine[2], fine.affine[2, 3]
        for axis in range(3):
            height = height + up[axis] * (places[axis] + fine.first[axis])
        value *= flow_loss(vessels, number.astype(np.int64) - 1, -distance.ravel()[pieces], height)
    coarse = [index // factor for index, factor in zip(places, factors, strict=True)]
    voxels = np.ravel_multi_index(tuple(coarse), grid.shape)
    share, part = (
        (np.bincount(voxels, weights, minlength=int(np.prod(grid.shape))) / np.prod(factors)).astype(np.float32)
        for weights in (shares, shares * value)
    )
    return share.reshape(grid.shape), part.reshape(grid.shape)


def _cropped(grid: Grid, vessels: Sequence[Vessel]) -> tuple[tuple[slice, ...], Grid]:
    """The part of a grid that some vessels reach into: where it lies in the grid, and its own grid."""
    tubes = [vessel.tube for vessel in vessels]
    points_N3 = np.concatenate([tube.points_N3 for tube in tubes]) - grid.affine[:3, 3]
    indices_N3 = np.linalg.solve(grid.affine[:3, :3], points_N3.T).T
    reach_mm = np.concatenate([tube.radii_N for tube in tubes]).max() + max(grid.spacing)
    reach = reach_mm * np.linalg.norm(np.linalg.inv(grid.affine[:3, :3]), axis=1)
    last = np.add(grid.first, grid.shape) - 1
    low = np.clip(np.floor(indices_N3.min(axis=0) - reach), grid.first, last).astype(int)
    high = np.clip(np.ceil(indices_N3.max(axis=0) + reach), low, last).astype(int)
    (x, y, z), (a, b, c) = low.tolist(), (high - low + 1).tolist()
    box = tuple(slice(start, start + count) for start, count in zip(low - grid.first, (a, b, c), strict=True))
    return box, Grid(shape=(a, b, c), affine=grid.affine, first=(x, y, z))


def _refined(grid: Grid, factors: Sequence[int]) -> Grid:
    affine = grid.affine.copy()
    affine[:3, :3] /= np.asarray(factors)
    # The first piece begins half a voxel before the centre of the first voxel.
    affine[:3, 3] = grid.world([(1 / factor - 1) / 2 for factor in factors])
    a, b, c = (count * factor for count, factor in zip(grid.shape, factors, strict=True))
    x, y, z = (start * factor for start, factor in zip(grid.first, factors, strict=True))
    return Grid(shape=(a, b, c), affine=affine, first=(x, y, z))


def _block_mean(volume: NDArray[np.float32], factors: Sequence[int]) -> NDArray[np.float32]:
    for axis, factor in enumerate(factors):
        if factor > 1:
            parts = [volume[(slice(None),) * axis + (slice(part, None, factor),)] for part in range(factor)]
            volume = np.add.reduce(parts) / np.float32(factor)
    return volume


def _bias_field(grid: Grid, rng: np.random.Generator) -> NDArray[np.float32]:
    axes = [
        np.arange(count, dtype=np.float32) * np.float32(step)
        for count, step in zip(grid.shape, grid.spacing, strict=True)
    ]
    return np.clip(smooth_field(axes, COIL_MM, rng), -2, 2)


def _add_noise(image: NDArray[np.float32], contrast: Contrast, rng: np.random.Generator) -> NDArray[np.float32]:
    noise = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(contrast.noise)
    if contrast.family == "CT":
        # A reconstruction kernel correlates the noise within a slice.
        noise = np.float32(1.6) * ndimage.gaussian_filter(noise, (0.6, 0.6, 0))
        return np.maximum(image + noise, np.float32(AIR_HU))
    if contrast.family == "PT":
        return np.maximum(image + noise * np.sqrt(np.maximum(image, 0) / np.float32(4000)), 0)
    # The magnitude of a complex signal: Rician noise.
    imaginary = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(contrast.noise)
    return np.hypot(image + noise, imaginary)
