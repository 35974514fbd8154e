"""What the cells of dense outputs should say about an input, made of its points and its mask, in millimetres."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.series import Sample
from headspark.page_locked import copied

RADIUS_MM = 5.0
"""Reach of a point, if nothing else is said. The competition's winner drew a sphere of 5 around each localizer, in
voxels of his box."""

LARGEST_VALUE = np.iinfo(np.uint16).max
"""Of a mask."""

IGNORE = -1
"""Class of a cell that nothing is known about."""


def points_and_mask_targets(
    sample: Sample, *, places: int, any_label: int | None, radius_mm: float = RADIUS_MM
) -> dict[str, Tensor]:
    """Targets of a task whose points and masks name the places that its labels are about.

    Args:
        sample: With labels.
        places: How many of the labels are places, the first ones.
        any_label: The label that is positive where any other is.
        radius_mm: Reach of a point.

    Returns:
        ``labels`` (L,) float; and of the outputs that `Sample.cells` names:

        - ``presence`` (d, h, w) float: 1 in the cell of a point, falling to 0 around it; with ``presence_known``, ()
          bool: whether all that there is lies in it.
        - ``territory`` (d, h, w) int64: the place that a cell belongs to, or `IGNORE`.
        - ``spheres`` (d, h, w) float: 1 within the radius of a point, else 0; ``blobs``, likewise: 1 at a point,
          falling evenly to 0 at the radius. With ``spheres_known`` and ``blobs_known``, () bool: whether the points
          are all that there is. One that lies outside of the input reaches into it as far as its radius goes.
        - ``vessels`` (d, h, w) int64: one more than the place whose mask lies in a cell, 0 where there is none; with
          ``vessels_known``, () bool: whether there is a mask.
    """
    targets = {"labels": torch.from_numpy(sample.findings.labels_L).float()}
    cells = sample.cells
    if "presence" in cells:
        heat = point_heat(sample, stride=cells["presence"], radius_mm=radius_mm)
        targets |= {"presence": heat, "presence_known": torch.tensor(is_located(sample, places, any_label))}
    if "territory" in cells:
        targets["territory"] = cell_places(sample, stride=cells["territory"], places=places, radius_mm=radius_mm)
    for name, draw in (("spheres", point_spheres), ("blobs", point_blobs)):
        if name in cells:
            told = torch.tensor(is_told(sample, places, any_label))
            targets |= {name: draw(sample, stride=cells[name], radius_mm=radius_mm), f"{name}_known": told}
    if "vessels" in cells:
        has_mask = torch.tensor(sample.findings.mask_XYZ is not None)
        targets |= {
            "vessels": mask_classes(sample, stride=cells["vessels"], places=places),
            "vessels_known": has_mask,
        }
    return targets


def class_targets(sample: Sample, *, modalities: Sequence[str], sources: Sequence[str]) -> dict[str, Tensor]:
    """Of which class a series is, () int64, or `IGNORE` where it is none of them.

    Args:
        sample: With modality and source.
        modalities: Names of the classes of ``modality``.
        sources: Those of ``source``.
    """
    known = {"modality": (sample.modality, modalities), "source": (sample.source, sources)}
    return {
        name: torch.tensor(list(classes).index(one) if one in classes else IGNORE)
        for name, (one, classes) in known.items()
    }


def point_heat(sample: Sample, *, stride: int, radius_mm: float = RADIUS_MM) -> Tensor:
    """Heat of the points on the grid of cells.

    The cell that holds a point has heat 1, its surroundings a Gaussian with half of the radius as its deviation, or
    half a cell's edge if that is more.

    Args:
        sample: With points as indices into its voxels.
        stride: Edge of a cell in voxels.
        radius_mm: Reach of a point.

    Returns:
        (d, h, w) float32 in [0, 1].
    """
    shape, cell_mm = _grid(sample, stride)
    heat = np.zeros(shape, dtype=np.float32)
    deviation_mm = max(radius_mm / 2, float(cell_mm.max()) / 2)
    for _, distance_mm2 in _squared_distances(sample, shape, cell_mm, stride):
        heat = np.maximum(heat, np.exp(-distance_mm2 / (2 * deviation_mm**2)).astype(np.float32))
    return torch.from_numpy(heat)


def cell_places(sample: Sample, *, stride: int, places: int, radius_mm: float = RADIUS_MM) -> Tensor:
    """The place that each cell belongs to.

    Cells within the radius of a point belong to its place; of the others, those with mask voxels belong to the most
    frequent place among them; the rest is `IGNORE`.

    Args:
        sample: With points as indices into its voxels.
        stride: Edge of a cell in voxels.
        places: How many there are.
        radius_mm: Reach of a point.

    Returns:
        (d, h, w) int64.
    """
    shape, cell_mm = _grid(sample, stride)
    territory = np.full(shape, IGNORE, dtype=np.int64)
    nearest_mm2 = np.full(shape, np.inf)
    for place, distance_mm2 in _squared_distances(sample, shape, cell_mm, stride):
        closer = (distance_mm2 < nearest_mm2) & (distance_mm2 <= radius_mm**2)
        territory[closer] = place
        nearest_mm2 = np.minimum(nearest_mm2, distance_mm2)
    of_points, mask_XYZ = torch.from_numpy(territory), sample.findings.mask_XYZ
    if mask_XYZ is None:
        return of_points
    of_points = copied(of_points, mask_XYZ.device)
    return torch.where(of_points == IGNORE, _mask_places(mask_XYZ, shape, stride, places), of_points)


def point_spheres(sample: Sample, *, stride: int, radius_mm: float = RADIUS_MM) -> Tensor:
    """Balls around the points: 1 where a cell's centre lies within the radius and in the cell of a point, else 0.

    Args:
        sample: With points as indices into its voxels, inside or not.
        stride: Edge of a cell in voxels.
        radius_mm: Of the balls.

    Returns:
        (d, h, w) float32.
    """
    shape, cell_mm = _grid(sample, stride)
    spheres = np.zeros(shape, dtype=np.float32)
    for box, distance_mm in _near_points(sample, shape, cell_mm, stride, radius_mm):
        spheres[box][distance_mm <= radius_mm] = 1
    return torch.from_numpy(spheres)


def point_blobs(sample: Sample, *, stride: int, radius_mm: float = RADIUS_MM) -> Tensor:
    """How near the next point is: 1 in its cell, falling evenly to 0 at the radius; arguments as for `point_spheres`.

    Returns:
        (d, h, w) float32 in [0, 1].
    """
    shape, cell_mm = _grid(sample, stride)
    blobs = np.zeros(shape, dtype=np.float32)
    for box, distance_mm in _near_points(sample, shape, cell_mm, stride, radius_mm):
        np.maximum(blobs[box], 1 - distance_mm / radius_mm, out=blobs[box], casting="same_kind")
    return torch.from_numpy(blobs)


def mask_classes(sample: Sample, *, stride: int, places: int) -> Tensor:
    """What the mask says of each cell.

    Args:
        sample: With a mask, or without.
        stride: Edge of a cell in voxels.
        places: How many there are.

    Returns:
        (d, h, w) int64: 0 where no voxel of a cell is masked, else one more than the most frequent place among those
        that are; `IGNORE` everywhere without a mask.
    """
    shape, _ = _grid(sample, stride)
    mask_XYZ = sample.findings.mask_XYZ
    if mask_XYZ is None:
        return torch.full(tuple(shape), IGNORE)
    return _mask_places(mask_XYZ, shape, stride, places) + 1


def is_located(sample: Sample, places: int, any_label: int | None) -> bool:
    """Whether the points inside say all there is: else empty cells would be taught as negatives that may be none.

    That asks for a point at each positive place and at no other, every point inside the input, and none that was lost
    on the way; a negative series without points is located too.
    """
    return is_told(sample, places, any_label) and bool(sample.within().all())


def is_told(sample: Sample, places: int, any_label: int | None) -> bool:
    """Whether the points say all there is, wherever they lie: as `is_located`, but some may be outside of the input."""
    findings = sample.findings
    positive = set(np.flatnonzero(findings.labels_L[:places]).tolist())
    told = positive == set(findings.places_K.tolist())
    if any_label is not None:
        told = told and (len(findings.points_K3) > 0) == bool(findings.labels_L[any_label])
    return told and findings.points_complete


def label_of_value(pairs: Sequence[tuple[int, int]]) -> NDArray[np.uint8]:
    """Lookup from a value of a mask to one more than the index of its label, 0 for values that are in no pair."""
    table = np.zeros(LARGEST_VALUE + 1, dtype=np.uint8)
    for value, label in pairs:
        table[value] = label + 1
    return table


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


def _near_points(
    sample: Sample, shape: Sequence[int], cell_mm: NDArray[np.float64], stride: int, reach_mm: float
) -> Iterator[tuple[tuple[slice, ...], NDArray[np.float64]]]:
    """Around each point: a box of cells that has all in its reach, and mm from it to their centres.

    The cell that holds the point is at 0 mm. Boxes may be empty, for points may lie far outside.
    """
    for point in (sample.findings.points_K3 + 0.5) / stride:
        low = np.clip(np.floor(point - reach_mm / cell_mm), 0, shape).astype(int)
        high = np.clip(np.ceil(point + reach_mm / cell_mm), low, shape).astype(int)
        x, y, z = (
            (np.arange(first, last) + 0.5 - at) * mm
            for first, last, at, mm in zip(low, high, point, cell_mm, strict=True)
        )
        distance_mm = np.sqrt(x[:, None, None] ** 2 + y[:, None] ** 2 + z**2)
        own = np.floor(point).astype(int)
        if np.all((own >= 0) & (own < shape)):
            distance_mm[tuple(own - low)] = 0
        yield tuple(slice(first, last) for first, last in zip(low, high, strict=True)), distance_mm


def _mask_places(mask_XYZ: Tensor, shape: Sequence[int], stride: int, places: int) -> Tensor:
    """Most frequent place among the mask voxels of each cell, int64; `IGNORE` where there is none."""
    classes = places + 1
    x, y, z = (torch.arange(edge, device=mask_XYZ.device) // stride for edge in mask_XYZ.shape)
    cells_XYZ = ((x[:, None, None] * shape[1] + y[:, None]) * shape[2] + z).mul_(classes).add_(mask_XYZ).flatten()
    one = torch.ones(1, dtype=torch.int32, device=mask_XYZ.device)
    voxels = one.new_zeros(math.prod(shape) * classes).scatter_add_(0, cells_XYZ, one.expand(len(cells_XYZ)))
    most, place = voxels.view(*shape, classes)[..., 1:].max(-1)
    return torch.where(most > 0, place, IGNORE)
