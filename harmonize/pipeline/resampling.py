"""Put a scan with its masks on its target grid, in one interpolation, and find its foreground."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harmonize.decisions import Decision, DecisionKind
from harmonize.errors import Reason, Rejection
from harmonize.pipeline import circle
from harmonize.pipeline.resampled import Resampled
from harmonize.pipeline.source import read_source
from harmonize.scan import Scan
from harmonize.settings import Settings
from harmonize.voxels import spatial
from harmonize.voxels.brain import brain_mask
from harmonize.voxels.foreground import find_foreground
from harmonize.voxels.grids import Grid, check_geometry, covering_grid, target_grid

MIN_VOXELS_PER_AXIS = 3
"""Fewer slices make no volume."""

HEAD, DEFACED = 1, 2
"""Values of an anatomy mask."""

DRAWN = ("vessels", "labels")
"""Kinds of masks whose values people gave."""


def resample_scan(scan: Scan, settings: Settings) -> Resampled:
    """Check a scan, put it with its masks on the target grid, and find its foreground.

    Raises:
        Rejection: The geometry or the voxels cannot be used.
    """
    if scan.voxels_XYZ.dtype.kind not in "biuf":
        raise Rejection(Reason.UNSUPPORTED_ENCODING, f"voxels of type {scan.voxels_XYZ.dtype}")
    affine = np.asarray(scan.affine, dtype=np.float64)
    check_geometry(scan.voxels_XYZ.shape, affine, scan.slice_offsets)
    if min(scan.voxels_XYZ.shape) < MIN_VOXELS_PER_AXIS:
        size = " x ".join(str(count) for count in scan.voxels_XYZ.shape)
        raise Rejection(Reason.TOO_FEW_SLICES, f"{size} voxels make no volume")
    if settings.circle_mm is not None:
        return _resample_circle(scan, affine, settings.spacing, settings.circle_mm)
    grid = target_grid(scan.voxels_XYZ.shape, affine, settings.spacing, scan.slice_offsets)
    source = read_source(scan, affine)
    values, outside, decisions = source.on(grid), source.outside, source.decisions
    del source  # its voxels may be a copy
    resampled = _described(scan, values, grid, decisions)
    if settings.apply_brain and settings.brain_model is not None:
        resampled = _brain_alone(with_brain(resampled, settings.brain_model), outside)
    return resampled


def with_brain(resampled: Resampled, model_file: Path) -> Resampled:
    """`resampled` with the brain that SynthStrip finds in it."""
    found = brain_mask(resampled.values_XYZ, resampled.grid.affine, model_file)
    if not found.any():
        return replace(resampled, decisions=(*resampled.decisions, DecisionKind.NO_BRAIN()))
    volume_ml = np.count_nonzero(found) * float(np.prod(resampled.grid.spacing)) / 1000
    decision = DecisionKind.BRAIN_FOUND(volume_ml=volume_ml)
    return replace(resampled, brain_XYZ=found, decisions=(*resampled.decisions, decision))


def _described(scan: Scan, values_XYZ: NDArray[Any], grid: Grid, decisions: tuple[Decision, ...]) -> Resampled:
    """Values on a grid with the foreground in them, and the scan's masks beside them."""
    labels = _labels(scan, grid)
    foreground, missed = _foreground(scan, values_XYZ, labels, grid)
    if not foreground.any():
        raise Rejection(Reason.NO_FOREGROUND, "nothing stands out from the background")
    mask, kind = _stored_mask(labels, foreground)
    return Resampled(
        values_XYZ=values_XYZ,
        grid=grid,
        foreground_XYZ=foreground,
        mask_XYZ=mask,
        mask_kind=kind,
        decisions=(*decisions, *missed),
    )


def _resample_circle(
    scan: Scan, affine: NDArray[np.float64], spacing: tuple[float, float, float], size_mm: tuple[float, float, float]
) -> Resampled:
    """The box around the circle of Willis alone: a coarse look at the whole scan says where it lies."""
    shape, offsets = scan.voxels_XYZ.shape, scan.slice_offsets
    survey = target_grid(shape, affine, circle.survey_spacing(spacing), offsets)
    source = read_source(scan, affine)
    whole = _described(scan, source.thinned(survey.spacing).on(survey), survey, source.decisions)
    everything = covering_grid(shape, affine, spacing, offsets)
    grid, cut = circle.lay_box(whole, everything, size_mm)
    foreground = spatial.resample_labels(whole.foreground_XYZ.astype(np.uint8), survey.affine, grid).astype(bool)
    if not foreground.any():
        raise Rejection(Reason.NO_FOREGROUND, "nothing of the head lies in the box around the circle of Willis")
    mask, kind = _stored_mask(_labels(scan, grid), foreground)
    return Resampled(
        values_XYZ=source.around(grid).on(grid),
        grid=grid,
        foreground_XYZ=foreground,
        mask_XYZ=mask,
        mask_kind=kind,
        decisions=(*whole.decisions, cut, *circle.left_out(scan, grid)),
        whole=whole,
    )


def _labels(scan: Scan, grid: Grid) -> dict[str, NDArray[Any]]:
    """The scan's masks on a grid, by kind."""
    found = {}
    for kind, mask in scan.masks.items():
        check_geometry(mask.labels_XYZ.shape, mask.affine)
        found[kind] = spatial.resample_labels(mask.labels_XYZ, mask.affine, grid)
    return found


def _foreground(
    scan: Scan, values_XYZ: NDArray[Any], labels: Mapping[str, NDArray[Any]], grid: Grid
) -> tuple[NDArray[np.bool_], list[Decision]]:
    """The foreground, by the masks or by the values, and the decisions."""
    decisions: list[Decision] = []
    anatomy, defaced = labels.get("anatomy"), labels.get("deface")
    if anatomy is not None and anatomy.any():
        foreground = anatomy > 0
    else:
        if anatomy is not None:
            decisions.append(DecisionKind.ANATOMY_MISSES())
        foreground = find_foreground(values_XYZ, grid.spacing, scan.unit)
    if defaced is not None:
        foreground &= defaced == 0
        if not defaced.any():
            decisions.append(DecisionKind.DEFACE_EMPTY())
    return foreground, decisions


def _stored_mask(
    labels: Mapping[str, NDArray[Any]], foreground_XYZ: NDArray[np.bool_]
) -> tuple[NDArray[Any] | None, str | None]:
    """The mask to store, with its kind: what people drew goes before what was found."""
    for drawn in DRAWN:
        if drawn in labels:
            return labels[drawn], drawn
    anatomy, defaced = labels.get("anatomy"), labels.get("deface")
    if anatomy is None and defaced is None:
        return None, None
    mask_XYZ = np.where(foreground_XYZ, np.uint8(HEAD), np.uint8(0))
    if defaced is not None:
        mask_XYZ[defaced > 0] = DEFACED
    return mask_XYZ, "anatomy"


def _brain_alone(resampled: Resampled, outside: float) -> Resampled:
    brain_XYZ = resampled.brain_XYZ
    if brain_XYZ is None:
        raise Rejection(Reason.NO_FOREGROUND, "SynthStrip found no brain to keep")
    foreground_XYZ = resampled.foreground_XYZ & brain_XYZ
    if not foreground_XYZ.any():
        raise Rejection(Reason.NO_FOREGROUND, "the brain lies outside the foreground")
    return replace(
        resampled,
        values_XYZ=np.where(brain_XYZ, resampled.values_XYZ, np.asarray(outside, dtype=np.float32)),
        foreground_XYZ=foreground_XYZ,
        decisions=(*resampled.decisions, DecisionKind.BRAIN_ALONE()),
    )
