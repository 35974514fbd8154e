"""Cut the air around a head away: the foreground with a margin, wider where masks and points lie outside of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from harmonize.decisions import DecisionKind
from harmonize.pipeline.resampled import Resampled
from harmonize.scan import Scan
from harmonize.voxels.foreground import CROP_CAUTION, bounding_box, find_foreground
from harmonize.voxels.grids import part_of

CROP_MARGIN_MM = 10.0
"""Air kept around the foreground by ``crop_foreground``, so that nothing at its border is cut."""


def cropped(resampled: Resampled, scan: Scan) -> Resampled:
    """`resampled` without the air around the foreground, masks and points."""
    kept = find_foreground(resampled.values_XYZ, resampled.grid.spacing, scan.unit, caution=CROP_CAUTION)
    kept |= resampled.foreground_XYZ
    unlabelled = np.asarray(bounding_box(kept)).reshape(3, 2)
    if resampled.mask_XYZ is not None:
        kept |= resampled.mask_XYZ > 0
    box = np.asarray(bounding_box(kept)).reshape(3, 2)
    shape, affine = np.asarray(resampled.values_XYZ.shape), resampled.grid.affine
    for point in scan.annotations.points:
        place = np.rint((np.asarray(point.xyz_mm) - affine[:3, 3]) / np.diagonal(affine)[:3])
        if (place >= 0).all() and (place < shape).all():
            box = np.stack((np.minimum(box[:, 0], place), np.maximum(box[:, 1], place + 1)), axis=1).astype(int)
    margin = np.ceil(CROP_MARGIN_MM / np.asarray(resampled.grid.spacing)).astype(int)
    low, high = np.maximum(box[:, 0] - margin, 0), np.minimum(box[:, 1] + margin, shape)
    if (low < np.maximum(unlabelled[:, 0] - margin, 0)).any() or (high > unlabelled[:, 1] + margin).any():
        # Nothing of this kind is known of a scan that comes without labels.
        resampled = replace(resampled, decisions=(*resampled.decisions, DecisionKind.CROP_WIDENED()))
    if (low == 0).all() and (high == shape).all():
        return resampled
    cut = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    mask_XYZ, brain_XYZ = resampled.mask_XYZ, resampled.brain_XYZ
    within = ", ".join(f"{a}:{b}" for a, b in zip(low, high, strict=True))
    decision = DecisionKind.CROPPED(box=within, shape=" x ".join(str(size) for size in shape))
    return replace(
        resampled,
        values_XYZ=resampled.values_XYZ[cut],
        grid=part_of(resampled.grid, low, high),
        foreground_XYZ=resampled.foreground_XYZ[cut],
        mask_XYZ=None if mask_XYZ is None else mask_XYZ[cut],
        brain_XYZ=None if brain_XYZ is None else brain_XYZ[cut],
        decisions=(*resampled.decisions, decision),
    )
