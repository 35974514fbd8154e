"""Intensity: CT windows, the normalisers of MRI, and int16 with a scale."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from harmonize.errors import Reason, Rejection
from harmonize.scan import AIR_HU
from harmonize.voxels import nyul
from harmonize.voxels.foreground import values_inside
from harmonize.voxels.stored import INT16, StoredVoxels, stored_value

CT_WINDOWS = {"brain": (80.0, 40.0), "blood": (200.0, 80.0), "bone": (2800.0, 600.0)}
"""Width and level in HU, in the order of the channels (Flanders et al. 2020, Radiol. AI 2:e190211, use the same)."""

ROBUST_PERCENTILES = (0.1, 99.9)
ROBUST_MARGIN = 2.0
"""The int16 range covers the robust range and this many times its width on either side: hot voxels beyond are clipped
instead of costing all others their precision (1e-4 of the robust range at worst)."""

STATISTICS_VOXELS = 100_000
"""Foreground voxels that the slow normalisers (KDE, fuzzy c-means) are fitted on."""

N4_SHRINK = 4
N4_ITERATIONS = (50, 50, 30)


def window(values_hu: NDArray[Any], width: float, level: float) -> NDArray[np.float32]:
    """Cut a CT window: 0 at ``level - width / 2`` and below, 1 at ``level + width / 2`` and above; all three in HU.

    Example:
        >>> window(np.array([-100.0, 40.0, 60.0, 500.0]), *CT_WINDOWS["brain"]).tolist()
        [0.0, 0.5, 0.75, 1.0]
    """
    scaled = (np.asarray(values_hu, dtype=np.float32) - np.float32(level - width / 2)) / np.float32(width)
    return np.clip(scaled, 0, 1)


def encode_hu(values_XYZ: NDArray[Any]) -> tuple[StoredVoxels, int]:
    """CT as int16 in HU: whole numbers from `AIR_HU` up, slope 1, inter 0; and how many were clipped from above."""
    stored_XYZ = np.empty_like(values_XYZ, dtype=np.int16)
    # Plane by plane in memory order, so that no second copy of the volume is needed.
    turned = values_XYZ.flags.f_contiguous
    clipped = 0
    # With a bound of their own type, integers are not taken through float64.
    least = AIR_HU if values_XYZ.dtype == np.int16 else float(AIR_HU)
    for plane, out in zip(*((values_XYZ.T, stored_XYZ.T) if turned else (values_XYZ, stored_XYZ)), strict=True):
        if plane.max() > INT16.max:
            clipped += int(np.count_nonzero(plane > INT16.max))
        limited = np.clip(plane, least, INT16.max)
        out[...] = np.rint(limited, out=limited) if limited.dtype.kind == "f" else limited
    return StoredVoxels(stored_XYZ=stored_XYZ), clipped


def encode_windows(values_XYZ: NDArray[Any]) -> tuple[StoredVoxels, int]:
    """CT as its three windows, int16 of shape (X, Y, Z, 3), values from 0 to 1; and 0, for windows clip nothing."""
    channels = [np.rint(window(values_XYZ, *one) * INT16.max) for one in CT_WINDOWS.values()]
    stored = np.stack(channels, axis=-1).astype(np.int16)
    return StoredVoxels(stored_XYZ=stored, slope=float(np.float32(1 / INT16.max))), 0


def encode_int16(values_XYZ: NDArray[Any]) -> tuple[StoredVoxels, int]:
    """Real values as int16: lossless for integers that fit, else linear over a robust range.

    Args:
        values_XYZ: Finite values, any real dtype.

    Returns:
        The voxels with a slope and inter that float32 holds exactly, as the NIfTI header does; and how many of them
        were clipped.
    """
    low, high = float(values_XYZ.min()), float(values_XYZ.max())
    if values_XYZ.dtype.kind in "iu" and INT16.min <= low and high <= INT16.max:
        return StoredVoxels(stored_XYZ=values_XYZ.astype(np.int16)), 0
    robust_low, robust_high = np.percentile(nyul.thin_out(values_XYZ), ROBUST_PERCENTILES)
    margin = ROBUST_MARGIN * (robust_high - robust_low)
    if margin > 0:
        low, high = max(low, robust_low - margin), min(high, robust_high + margin)
    slope = np.float32((high - low) / (INT16.max - INT16.min - 1)) if high > low else np.float32(1)
    inter = np.float32((high + low) / 2)
    stored = np.rint(stored_value(values_XYZ.astype(np.float32), slope, inter))
    clipped = int((np.abs(stored) > INT16.max).sum())
    np.clip(stored, -INT16.max, INT16.max, out=stored)
    return StoredVoxels(stored_XYZ=stored.astype(np.int16), slope=float(slope), inter=float(inter)), clipped


def normalise(
    values_XYZ: NDArray[Any],
    foreground_XYZ: NDArray[np.bool_],
    *,
    method: str,
    modality: str,
    histogram: nyul.StandardHistogram | None = None,
) -> NDArray[Any]:
    """Normalise MRI by its foreground.

    ``zscore``: mean 0, deviation 1. ``nyul``: onto the standard histogram. ``whitestripe``: mean 0, deviation 1 of
    the white-matter stripe. ``fcm`` and ``kde``: white matter, or the tissue mode, at 1. ``none``: as it is.

    Args:
        values_XYZ: Finite real values.
        foreground_XYZ: bool, same shape.
        method: One of `harmonize.settings.MRI_NORMS`.
        modality: Tells whitestripe and kde which peak of the histogram is the tissue's.
        histogram: For ``nyul``.

    Raises:
        Rejection: No foreground, or a constant one.
        ValueError: ``nyul`` without a histogram.
    """
    if method == "none":
        return values_XYZ
    foreground = values_inside(values_XYZ, foreground_XYZ)
    return normalise_by(values_XYZ, foreground, method=method, modality=modality, histogram=histogram)


def normalise_by(
    values_XYZ: NDArray[Any],
    foreground: NDArray[Any],
    *,
    method: str,
    modality: str,
    histogram: nyul.StandardHistogram | None = None,
) -> NDArray[Any]:
    """As `normalise`, by the foreground's values (n,), which need not be among those that are normalised."""
    if method == "none":
        return values_XYZ
    nyul.landmarks(foreground)
    if method == "nyul":
        if histogram is None:
            raise ValueError("nyul needs a standard histogram")
        return nyul.transform(values_XYZ, foreground, histogram)
    if method == "zscore":
        centre, scale = float(foreground.mean(dtype=np.float64)), float(foreground.std(dtype=np.float64))
    else:
        centre, scale = _tissue_statistics(foreground, method, modality)
    return (values_XYZ.astype(np.float32) - np.float32(centre)) / np.float32(scale)


def correct_bias(
    values_XYZ: NDArray[Any], foreground_XYZ: NDArray[np.bool_], spacing: tuple[float, float, float]
) -> NDArray[np.float32]:
    """Divide MRI by its bias field, estimated by N4 (Tustison et al. 2010, IEEE TMI 29:1310) on a coarser copy.

    Args:
        values_XYZ: Real values, shape (X, Y, Z).
        foreground_XYZ: Where the field is estimated.
        spacing: Voxel size in mm.

    Returns:
        float32, same shape.

    Raises:
        Rejection: N4 finds no field.
    """
    return values_XYZ.astype(np.float32) / bias_field(values_XYZ, foreground_XYZ, spacing)


def bias_field(
    values_XYZ: NDArray[Any],
    foreground_XYZ: NDArray[np.bool_],
    spacing: tuple[float, float, float],
    *,
    shrink: int = N4_SHRINK,
) -> NDArray[np.float32]:
    """The bias field that N4 estimates, positive, same shape; arguments as of `correct_bias`.

    `shrink` is how many voxels along each axis become one before.
    """
    # N4 takes logarithms.
    lifted = np.maximum(values_XYZ.astype(np.float32), 0) + np.float32(1e-6)
    image, mask = sitk.GetImageFromArray(lifted.T), sitk.GetImageFromArray(foreground_XYZ.astype(np.uint8).T)
    image.SetSpacing(spacing)
    mask.SetSpacing(spacing)
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations(N4_ITERATIONS)
    steps = [min(shrink, size) for size in image.GetSize()]
    try:
        n4.Execute(sitk.Shrink(image, steps), sitk.Shrink(mask, steps))
    except RuntimeError as error:
        raise Rejection(Reason.BAD_INTENSITY, "N4 found no bias field; run without --n4") from error
    return np.asarray(np.exp(sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image)).T))


@contextmanager
def _fixed_start() -> Iterator[None]:
    """Let fuzzy c-means, which draws its first memberships from numpy's global generator, begin alike every time."""
    before = np.random.get_state()  # noqa: NPY002  # the library knows no other generator
    np.random.seed(0)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


def _tissue_statistics(foreground: NDArray[Any], method: str, modality: str) -> tuple[float, float]:
    """Centre and scale from intensity-normalization, fitted on a thinned foreground: all three maps are linear."""
    from intensity_normalization import (
        FCMNormalizer,
        KDENormalizer,
        Modality,
        WhiteStripeNormalizer,
        create_image,
    )
    from intensity_normalization.domain.exceptions import NormalizationError

    contrast = {"T1": Modality.T1, "T2": Modality.T2, "FL": Modality.FLAIR, "PD": Modality.PD}
    peak = contrast.get(modality.upper()[:2], Modality.T1)
    sample = nyul.thin_out(foreground, STATISTICS_VOXELS).astype(np.float64).reshape(-1, 1, 1)
    image, everywhere = create_image(sample), create_image(np.ones_like(sample))
    try:
        if method == "whitestripe":
            stripe = WhiteStripeNormalizer(modality=peak).fit(image, everywhere)
            centre, scale = stripe.mean, stripe.std
        elif method == "kde":
            centre, scale = 0.0, KDENormalizer(modality=peak).fit(image, everywhere).tissue_mode
        else:
            with _fixed_start():
                scaled = FCMNormalizer().fit(image, everywhere).transform(image).get_data()
            brightest = int(np.abs(sample).argmax())
            centre, scale = 0.0, float(sample.flat[brightest] / scaled.flat[brightest])
    except (NormalizationError, ValueError, np.linalg.LinAlgError) as error:
        raise Rejection(Reason.BAD_INTENSITY, f"{method} found no tissue peak") from error
    if centre is None or scale is None or not np.isfinite(scale) or scale <= 0:
        raise Rejection(Reason.BAD_INTENSITY, f"{method} found no tissue peak")
    return float(centre), float(scale)
