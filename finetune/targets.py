"""What the cells of dense outputs should say about an input, made of its points and its mask, in millimetres."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.series import Sample

RADIUS_MM = 5.0
"""Reach of a point. The competition's winner drew a sphere of 5 around each localizer, in voxels of his box."""

IGNORE = -1
"""Class of a cell that nothing is known about."""


def points_and_mask_targets(sample: Sample, *, places: int, any_label: int | None) -> dict[str, Tensor]:
    """Targets of a task whose points and masks name the places that its labels are about.

    Args:
        sample: With labels.
        places: How many of the labels are places, the first ones.
        any_label: The label that is positive where any other is.

    Returns:
        ``labels`` (L,) float; and of the outputs that `Sample.cells` names:

        - ``presence`` (d, h, w) float: 1 in the cell of a point, falling to 0 around it; with ``presence_known``, ()
          bool: whether all that there is lies in it.
        - ``territory`` (d, h, w) int64: the place that a cell belongs to, or `IGNORE`.
    """
    targets = {"labels": torch.from_numpy(sample.findings.labels_L).float()}
    if "presence" in sample.cells:
        heat = point_heat(sample, stride=sample.cells["presence"])
        targets |= {"presence": heat, "presence_known": torch.tensor(is_located(sample, places, any_label))}
    if "territory" in sample.cells:
        targets["territory"] = cell_places(sample, stride=sample.cells["territory"], places=places)
    return targets


def point_heat(sample: Sample, *, stride: int) -> Tensor:
    """Heat of the points on the grid of cells.

    The cell that holds a point has heat 1, its surroundings a Gaussian with half of `RADIUS_MM` as its deviation, or
    half a cell's edge if that is more.

    Args:
        sample: With points as indices into its voxels.
        stride: Edge of a cell in voxels.

    Returns:
        (d, h, w) float32 in [0, 1].
    """
    shape, cell_mm = _grid(sample, stride)
    heat = np.zeros(shape, dtype=np.float32)
    deviation_mm = max(RADIUS_MM / 2, float(cell_mm.max()) / 2)
    for _, distance_mm2 in _squared_distances(sample, shape, cell_mm, stride):
        heat = np.maximum(heat, np.exp(-distance_mm2 / (2 * deviation_mm**2)).astype(np.float32))
    return torch.from_numpy(heat)


def cell_places(sample: Sample, *, stride: int, places: int) -> Tensor:
    """The place that each cell belongs to.

    Cells within `RADIUS_MM` of a point belong to its place; of the others, those with mask voxels belong to the most
    frequent place among them; the rest is `IGNORE`.

    Args:
        sample: With points as indices into its voxels.
        stride: Edge of a cell in voxels.
        places: How many there are.

    Returns:
        (d, h, w) int64.
    """
    shape, cell_mm = _grid(sample, stride)
    territory = _mask_places(sample.findings.mask_XYZ, shape, stride, places)
    nearest_mm2 = np.full(shape, np.inf)
    for place, distance_mm2 in _squared_distances(sample, shape, cell_mm, stride):
        closer = (distance_mm2 < nearest_mm2) & (distance_mm2 <= RADIUS_MM**2)
        territory[closer] = place
        nearest_mm2 = np.minimum(nearest_mm2, distance_mm2)
    return torch.from_numpy(territory)


def is_located(sample: Sample, places: int, any_label: int | None) -> bool:
    """Whether the points say all there is: else empty cells would be taught as negatives that may be none.

    That asks for a point at each positive place and at no other, every point inside the input, and none that was lost
    on the way; a negative series without points is located too.
    """
    findings = sample.findings
    positive = set(np.flatnonzero(findings.labels_L[:places]).tolist())
    told = positive == set(findings.places_K.tolist())
    if any_label is not None:
        told = told and (len(findings.points_K3) > 0) == bool(findings.labels_L[any_label])
    return told and findings.points_complete and bool(sample.within().all())


def _grid(sample: Sample, stride: int) -> tuple[list[int], NDArray[np.float64]]:
    """Cells along each axis, and their edges in mm."""
    return [-(-n // stride) for n in sample.shape], np.array(sample.spacing) * stride


def _squared_distances(
    sample: Sample, shape: Sequence[int], cell_mm: NDArray[np.float64], stride: int
) -> list[tuple[int, NDArray[np.float64]]]:
    """Of each point inside: its place, and mm^2 from it to the centre of each cell, 0 for the cell that holds it."""
    inside = sample.within()
    points = (sample.findings.points_K3 + 0.5) / stride
    centres = np.stack(np.meshgrid(*(np.arange(n) + 0.5 for n in shape), indexing="ij"), axis=-1)
    found = []
    for point, place in zip(points[inside], sample.findings.places_K[inside], strict=True):
        distance_mm2 = (((centres - point) * cell_mm) ** 2).sum(-1)
        distance_mm2[tuple(np.floor(point).astype(int))] = 0
        found.append((int(place), distance_mm2))
    return found


def _mask_places(
    mask_XYZ: NDArray[np.uint8] | None, shape: Sequence[int], stride: int, places: int
) -> NDArray[np.int64]:
    """Most frequent place among the mask voxels of each cell."""
    if mask_XYZ is None:
        return np.full(shape, IGNORE, dtype=np.int64)
    voxels = np.nonzero(mask_XYZ)
    cell = np.ravel_multi_index([index // stride for index in voxels], tuple(shape))
    count = np.bincount(
        cell * places + (mask_XYZ[voxels].astype(np.int64) - 1),
        minlength=int(np.prod(shape)) * places,
    ).reshape(*shape, places)
    return np.where(count.any(-1), count.argmax(-1), IGNORE)
