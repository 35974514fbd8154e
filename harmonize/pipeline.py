"""One scan harmonized in memory: RAS grid, normalised intensities, int16, and what the manifest says about it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harmonize.decisions import Decision, DecisionKind
from harmonize.errors import Reason, Rejection
from harmonize.scan import AIR_HU, HU, Scan
from harmonize.settings import PERCENTILES, Settings
from harmonize.voxels import intensity, interleaving, nyul, spatial
from harmonize.voxels.affines import voxel_spacing
from harmonize.voxels.brain import brain_mask
from harmonize.voxels.foreground import CROP_CAUTION, bounding_box, find_foreground, values_inside
from harmonize.voxels.grids import Grid, check_geometry, target_grid
from harmonize.voxels.stored import StoredVolume, real_value

MIN_VOXELS_PER_AXIS = 3
"""Fewer slices make no volume."""

MAX_BAD_SHARE = 0.5
"""A scan with more NaN or infinite voxels than this is rejected; fewer are filled with its lowest value."""

CROP_MARGIN_MM = 10.0
"""Air kept around the foreground by ``crop_foreground``, so that nothing at its border is cut."""

HEAD, DEFACED = 1, 2
"""Values of an anatomy mask."""

WINDOWED = "window"
"""Unit of CT stored as windows: three channels from 0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HarmonizedScan:
    """The voxels of a scan as the corpus holds them, and what is measured on them.

    Attributes:
        volume: int16, shape (X, Y, Z), or (X, Y, Z, 3) with baked windows.
        mask_XYZ: uint8, shape (X, Y, Z), or None.
        mask_kind: ``anatomy`` (0 background, 1 head, 2 defaced), ``vessels`` (1..13), or None.
        modality: As in `harmonize.scan.Scan`.
        unit: ``HU``, ``window``, the normaliser's name, or the scan's own unit for ``none``.
        foreground_box: Half-open voxel box x0, x1, y0, y1, z0, z1.
        percentiles: Of the real foreground values at `harmonize.settings.PERCENTILES`.
        raw_percentiles: Of what they were on the target grid before they were normalised or cut into windows.
        raw_shape: Before resampling.
        raw_spacing: Before resampling, in mm.
        decisions: What was found and done, in order.
        brain_XYZ: bool, shape (X, Y, Z), where a brain was looked for and found, else None.
    """

    volume: StoredVolume
    mask_XYZ: NDArray[np.uint8] | None
    mask_kind: str | None
    modality: str
    unit: str
    foreground_box: tuple[int, int, int, int, int, int]
    percentiles: tuple[float, ...]
    raw_percentiles: tuple[float, ...]
    raw_shape: tuple[int, int, int]
    raw_spacing: tuple[float, float, float]
    decisions: tuple[Decision, ...] = ()
    brain_XYZ: NDArray[np.bool_] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Resampled:
    """A scan on its target grid, before its intensities are normalised.

    Attributes:
        values_XYZ: Finite real values.
        grid: Where they lie.
        foreground_XYZ: bool, same shape.
        mask_XYZ: uint8 or None.
        mask_kind: Its kind.
        decisions: So far.
        brain_XYZ: bool, same shape, or None.
    """

    values_XYZ: NDArray[Any]
    grid: Grid
    foreground_XYZ: NDArray[np.bool_]
    mask_XYZ: NDArray[np.uint8] | None
    mask_kind: str | None
    decisions: tuple[Decision, ...]
    brain_XYZ: NDArray[np.bool_] | None = None


def harmonize_scan(scan: Scan, settings: Settings) -> HarmonizedScan:
    """Resample, normalise and encode one scan. Pure: reads no file but the standard histogram that `settings` names.

    The scan's annotations stay beside it: points are in mm, so that they hold on every grid.

    Raises:
        Rejection: The scan cannot be used; says why.
        UserError: ``nyul`` without a standard histogram of the scan's modality.
    """
    return normalise_scan(scan, resample_scan(scan, settings), settings)


def normalise_scan(scan: Scan, resampled: Resampled, settings: Settings) -> HarmonizedScan:
    """Normalise and encode what `resample_scan` made of a scan.

    Raises:
        Rejection: The intensities cannot be normalised.
        UserError: ``nyul`` without a standard histogram of the scan's modality.
    """
    if settings.brain_model is not None and not settings.apply_brain:
        resampled = _with_brain(resampled, settings.brain_model)
    if settings.crop_foreground:
        resampled = _cropped(resampled, scan)
    decisions = resampled.decisions
    raw_percentiles = _percentiles(values_inside(resampled.values_XYZ, resampled.foreground_XYZ))
    if scan.unit == HU:
        encode = intensity.encode_windows if settings.bake_windows else intensity.encode_hu
        (voxels, clipped), unit = encode(resampled.values_XYZ), WINDOWED if settings.bake_windows else HU
    else:
        normalised = _normalise(scan, resampled, settings)
        if settings.n4:
            decisions += (DecisionKind.BIAS_CORRECTED(),)
        voxels, clipped = intensity.encode_int16(normalised)
        unit = scan.unit if settings.mri_norm == "none" else settings.mri_norm
    if clipped:
        decisions += (DecisionKind.CLIPPED_INT16(count=clipped),)
    stored_percentiles = _percentiles(values_inside(voxels.stored_XYZ, resampled.foreground_XYZ))
    x, y, z = scan.voxels_XYZ.shape
    raw_x, raw_y, raw_z = voxel_spacing(scan.affine)
    if scan.slice_offsets is not None:
        raw_z *= float(np.median(np.diff(scan.slice_offsets)))
    return HarmonizedScan(
        volume=StoredVolume(
            stored_XYZ=voxels.stored_XYZ, slope=voxels.slope, inter=voxels.inter, affine=resampled.grid.affine
        ),
        mask_XYZ=resampled.mask_XYZ,
        mask_kind=resampled.mask_kind,
        modality=scan.modality,
        unit=unit,
        foreground_box=bounding_box(resampled.foreground_XYZ),
        percentiles=tuple(real_value(value, voxels.slope, voxels.inter) for value in stored_percentiles),
        raw_percentiles=raw_percentiles,
        raw_shape=(x, y, z),
        raw_spacing=(float(raw_x), float(raw_y), float(raw_z)),
        decisions=decisions,
        brain_XYZ=resampled.brain_XYZ,
    )


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
    grid = target_grid(scan.voxels_XYZ.shape, affine, settings.spacing, scan.slice_offsets)
    woven = interleaving.notes(scan.voxels_XYZ, voxel_spacing(scan.affine))
    voxels, lowest, filled = _finite(scan.voxels_XYZ)
    outside = float(AIR_HU) if scan.unit == HU else lowest
    values = spatial.resample(voxels, affine, grid, slice_offsets=scan.slice_offsets, outside=outside)
    del voxels
    foreground, mask, kind, missed = _masks(scan, values, grid)
    if not foreground.any():
        raise Rejection(Reason.NO_FOREGROUND, "nothing stands out from the background")
    resampled = Resampled(
        values_XYZ=values,
        grid=grid,
        foreground_XYZ=foreground,
        mask_XYZ=mask,
        mask_kind=kind,
        decisions=(*scan.decisions, *woven, *filled, *missed),
    )
    if settings.apply_brain and settings.brain_model is not None:
        resampled = _brain_alone(_with_brain(resampled, settings.brain_model), outside)
    return resampled


def without_bias(resampled: Resampled, settings: Settings) -> NDArray[Any]:
    """The values that MRI is normalised from: divided by the bias field where that is asked for.

    Raises:
        Rejection: N4 finds no field.
    """
    if not settings.n4:
        return resampled.values_XYZ
    return intensity.correct_bias(resampled.values_XYZ, resampled.foreground_XYZ, resampled.grid.spacing)


def _percentiles(foreground: NDArray[Any]) -> tuple[float, ...]:
    return tuple(float(value) for value in np.percentile(nyul.thin_out(foreground), PERCENTILES))


def _finite(voxels_XYZ: NDArray[Any]) -> tuple[NDArray[Any], float, list[Decision]]:
    """The voxels with NaN and infinities replaced by the lowest finite value, that value, and the decisions."""
    if voxels_XYZ.dtype.kind != "f":
        return voxels_XYZ, float(voxels_XYZ.min()), []
    finite = np.isfinite(voxels_XYZ)
    if finite.all():
        return voxels_XYZ, float(voxels_XYZ.min()), []
    share = 1 - finite.mean()
    if share > MAX_BAD_SHARE:
        raise Rejection(Reason.BAD_INTENSITY, f"{share:.0%} of the voxels are not finite")
    lowest = float(voxels_XYZ[finite].min())
    filled = DecisionKind.NOT_FINITE(count=voxels_XYZ.size - int(finite.sum()))
    return np.where(finite, voxels_XYZ, voxels_XYZ.dtype.type(lowest)), lowest, [filled]


def _masks(
    scan: Scan, values_XYZ: NDArray[Any], grid: Grid
) -> tuple[NDArray[np.bool_], NDArray[np.uint8] | None, str | None, list[Decision]]:
    """Foreground, the mask to store with its kind, and the decisions."""
    decisions: list[Decision] = []
    found = {}
    for kind, mask in scan.masks.items():
        check_geometry(mask.labels_XYZ.shape, mask.affine)
        found[kind] = spatial.resample_labels(mask.labels_XYZ, mask.affine, grid)
    anatomy, defaced = found.get("anatomy"), found.get("deface")
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
    if "vessels" in found:
        return foreground, found["vessels"], "vessels", decisions
    if anatomy is None and defaced is None:
        return foreground, None, None, decisions
    mask_XYZ = np.where(foreground, np.uint8(HEAD), np.uint8(0))
    if defaced is not None:
        mask_XYZ[defaced > 0] = DEFACED
    return foreground, mask_XYZ, "anatomy", decisions


def _with_brain(resampled: Resampled, model_file: Path) -> Resampled:
    found = brain_mask(resampled.values_XYZ, resampled.grid.affine, model_file)
    if not found.any():
        return replace(resampled, decisions=(*resampled.decisions, DecisionKind.NO_BRAIN()))
    volume_ml = np.count_nonzero(found) * float(np.prod(resampled.grid.spacing)) / 1000
    decision = DecisionKind.BRAIN_FOUND(volume_ml=volume_ml)
    return replace(resampled, brain_XYZ=found, decisions=(*resampled.decisions, decision))


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


def _normalise(scan: Scan, resampled: Resampled, settings: Settings) -> NDArray[Any]:
    values = without_bias(resampled, settings)
    histogram = None
    if settings.mri_norm == "nyul":
        if settings.nyul_folder is None:
            raise ValueError("nyul needs nyul_folder")
        path = nyul.histogram_path(settings.nyul_folder, scan.modality)
        if not path.is_file():
            raise Rejection(
                Reason.MISSING_METADATA,
                "no standard histogram was fitted for this modality; use --mri-norm zscore",
            )
        histogram = nyul.load(path)
    return intensity.normalise(
        values, resampled.foreground_XYZ, method=settings.mri_norm, modality=scan.modality, histogram=histogram
    )


def _cropped(resampled: Resampled, scan: Scan) -> Resampled:
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
    x, y, z = (int(size) for size in high - low)
    affine = affine.copy()
    affine[:3, 3] += affine[:3, :3] @ low
    within = ", ".join(f"{a}:{b}" for a, b in zip(low, high, strict=True))
    decision = DecisionKind.CROPPED(box=within, shape=" x ".join(str(size) for size in shape))
    return replace(
        resampled,
        values_XYZ=resampled.values_XYZ[cut],
        grid=Grid(shape=(x, y, z), affine=affine.astype(np.float32).astype(np.float64)),
        foreground_XYZ=resampled.foreground_XYZ[cut],
        mask_XYZ=None if mask_XYZ is None else mask_XYZ[cut],
        brain_XYZ=None if brain_XYZ is None else brain_XYZ[cut],
        decisions=(*resampled.decisions, decision),
    )
