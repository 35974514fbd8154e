"""What each cell of the classifier's grid should say about a patch: aneurysm or not, and which place it belongs to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.losses import IGNORE
from finetune.views.box import Patch
from harmonize.labels import LOCATIONS

RADIUS_MM = 5.0
"""Reach of a point: the sphere that the competition's winner drew around each localizer."""


def cell_targets(patch: Patch, *, stride: int, spacing: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Heat map and places on the grid of cells.

    The cell that holds an aneurysm's point has heat 1, its surroundings a Gaussian with half of `RADIUS_MM` as its
    deviation, or half a cell's edge if that is more. Cells within the radius belong to the aneurysm's location; of
    the others, those with vessel voxels belong to the most frequent location among them; the rest is `IGNORE`.

    Args:
        patch: With points as indices into its voxels.
        stride: Edge of a cell in voxels.
        spacing: Voxel size in mm.

    Returns:
        heat_dhw float32 in [0, 1] and territory_dhw int64.
    """
    shape = [-(-n // stride) for n in patch.values_XYZ.shape]
    findings = patch.findings
    cell_mm = np.array(spacing) * stride
    heat = np.zeros(shape, dtype=np.float32)
    territory = _vessel_places(findings.vessels_XYZ, shape, stride)
    points = (findings.points_K3 + 0.5) / stride
    inside = _in_patch(patch)
    deviation_mm = max(RADIUS_MM / 2, float(cell_mm.max()) / 2)
    nearest_mm2 = np.full(shape, np.inf)
    centres = np.stack(np.meshgrid(*(np.arange(n) + 0.5 for n in shape), indexing="ij"), axis=-1)
    for point, place in zip(points[inside], findings.places_K[inside], strict=True):
        distance_mm2 = (((centres - point) * cell_mm) ** 2).sum(-1)
        own = tuple(np.floor(point).astype(int))
        distance_mm2[own] = 0
        heat = np.maximum(heat, np.exp(-distance_mm2 / (2 * deviation_mm**2)).astype(np.float32))
        closer = (distance_mm2 < nearest_mm2) & (distance_mm2 <= RADIUS_MM**2)
        territory[closer] = place
        nearest_mm2 = np.minimum(nearest_mm2, distance_mm2)
    return torch.from_numpy(heat), torch.from_numpy(territory)


def is_located(patch: Patch) -> bool:
    """Whether the heat map says all there is: else empty cells would be taught as negatives that may be none.

    That asks for a point at each positive location and at no other, every point inside the patch, and none that was
    lost on the way; a negative series without points is located too.
    """
    findings = patch.findings
    positive = set(np.flatnonzero(findings.labels_14[: len(LOCATIONS)]).tolist())
    told = positive == set(findings.places_K.tolist()) and (len(findings.points_K3) > 0) == bool(findings.labels_14[-1])
    return told and findings.points_complete and bool(_in_patch(patch).all())


def _in_patch(patch: Patch) -> NDArray[np.bool_]:
    """Which points lie in a voxel of the patch, (K,)."""
    points = patch.findings.points_K3
    inside_K3: NDArray[np.bool_] = (points >= -0.5) & (points < np.array(patch.values_XYZ.shape) - 0.5)
    return np.all(inside_K3, axis=1)


def _vessel_places(vessels_XYZ: NDArray[np.uint8] | None, shape: Sequence[int], stride: int) -> NDArray[np.int64]:
    """Most frequent place among the vessel voxels of each cell."""
    if vessels_XYZ is None:
        return np.full(shape, IGNORE, dtype=np.int64)
    voxels = np.nonzero(vessels_XYZ)
    cell = np.ravel_multi_index([index // stride for index in voxels], tuple(shape))
    count = np.bincount(
        cell * len(LOCATIONS) + (vessels_XYZ[voxels].astype(np.int64) - 1),
        minlength=int(np.prod(shape)) * len(LOCATIONS),
    ).reshape(*shape, len(LOCATIONS))
    return np.where(count.any(-1), count.argmax(-1), IGNORE)
