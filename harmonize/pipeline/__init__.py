"""One scan harmonized in memory: RAS grid, normalised intensities, int16, and what the manifest says about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harmonize.decisions import Decision, DecisionKind
from harmonize.errors import Reason, Rejection
from harmonize.pipeline.cropping import cropped
from harmonize.pipeline.resampled import Resampled
from harmonize.pipeline.resampling import DEFACED, DRAWN, HEAD, resample_scan, with_brain
from harmonize.scan import HU, Scan
from harmonize.settings import PERCENTILES, Settings
from harmonize.voxels import intensity, nyul, spatial
from harmonize.voxels.affines import voxel_spacing
from harmonize.voxels.foreground import bounding_box, values_inside
from harmonize.voxels.stored import StoredVolume, real_value

__all__ = [
    "DEFACED",
    "DRAWN",
    "HEAD",
    "WINDOWED",
    "HarmonizedScan",
    "Resampled",
    "harmonize_scan",
    "normalise_scan",
    "resample_scan",
    "unbiased",
]

WINDOWED = "window"
"""Unit of CT stored as windows: three channels from 0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HarmonizedScan:
    """The voxels of a scan as the corpus holds them, and what is measured on them.

    Attributes:
        volume: int16, shape (X, Y, Z), or (X, Y, Z, 3) with baked windows.
        mask_XYZ: uint8, or uint16 for ``labels`` that need it; shape (X, Y, Z), or None.
        mask_kind: ``anatomy`` (0 background, 1 head, 2 defaced), ``vessels`` (1..13), ``labels`` (a user's own), or
            None.
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
    mask_XYZ: NDArray[Any] | None
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
        resampled = with_brain(resampled, settings.brain_model)
    if settings.crop_foreground:
        resampled = cropped(resampled, scan)
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


def unbiased(resampled: Resampled, settings: Settings) -> tuple[NDArray[Any], NDArray[Any]]:
    """The values that MRI is normalised from, divided by the bias field where that is asked for, and its foreground's.

    Args:
        resampled: From `resample_scan`.
        settings: How.

    Returns:
        Values of shape (X, Y, Z), and of shape (n,) those of the foreground, that of the whole head where this is a
        part of it.

    Raises:
        Rejection: N4 finds no field.
    """
    values, whole = resampled.values_XYZ, resampled.whole
    if not settings.n4:
        return values, _foreground_of(resampled if whole is None else whole)
    if whole is None:
        corrected = intensity.correct_bias(values, resampled.foreground_XYZ, resampled.grid.spacing)
        return corrected, values_inside(corrected, resampled.foreground_XYZ)
    field = intensity.bias_field(
        whole.values_XYZ, whole.foreground_XYZ, whole.grid.spacing, shrink=max(1, intensity.N4_SHRINK // 2)
    )
    here = spatial.resample(field, whole.grid.affine, resampled.grid, outside=1.0)
    return values.astype(np.float32) / here, values_inside(whole.values_XYZ / field, whole.foreground_XYZ)


def _foreground_of(resampled: Resampled) -> NDArray[Any]:
    return values_inside(resampled.values_XYZ, resampled.foreground_XYZ)


def _percentiles(foreground: NDArray[Any]) -> tuple[float, ...]:
    return tuple(float(value) for value in np.percentile(nyul.thin_out(foreground), PERCENTILES))


def _normalise(scan: Scan, resampled: Resampled, settings: Settings) -> NDArray[Any]:
    if settings.mri_norm == "none" and not settings.n4:
        return resampled.values_XYZ
    values, foreground = unbiased(resampled, settings)
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
    return intensity.normalise_by(
        values, foreground, method=settings.mri_norm, modality=scan.modality, histogram=histogram
    )
