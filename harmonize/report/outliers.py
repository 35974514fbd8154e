"""Which scans of a manifest a person should look at first: robust outliers and noteworthy decisions, as flags."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harmonize.decisions import DecisionKind, kind_of
from harmonize.settings import PERCENTILES

OUTLIER_Z = 3.5
"""Modified z-score from which a value counts as an outlier (Iglewicz & Hoaglin 1993)."""

MAD_TO_SIGMA = 0.6745
MEAN_DEVIATION_TO_SIGMA = 1.253314
"""Scale of the median absolute deviation, and of the mean one, under a normal distribution (the same source)."""

MIN_GROUP = 8
"""Scans of one source and modality below which nothing is said to be odd among them."""

SIZE_FLOOR, SHARE_FLOOR, INTENSITY_FLOOR = 0.05, 0.03, 0.02
"""What counts as one sigma at least: 5 % of a size, 3 % of the volume, 2 % of the intensities' spread."""

THICK_SLICES_MM = 4.0
SHORT_COVERAGE_MM = 60.0
SMALL_FOREGROUND_SHARE = 0.15

FLAGS = {
    "odd spacing": "raw voxel size far from the others of its source and modality",
    "odd size": "extent far from the others",
    "odd foreground": "share of the foreground box far from the others",
    "odd intensity": "normalised intensities far from the others",
    "alternating slices": "every other slice is unlike its neighbours: two volumes may be woven into one",
    "small foreground": f"the foreground box fills less than {SMALL_FOREGROUND_SHARE:.0%} of the volume",
    "short coverage": f"less than {SHORT_COVERAGE_MM:g} mm of foreground from foot to head",
    "thick slices": f"raw slices {THICK_SLICES_MM:g} mm apart or more",
    "clipped": "voxels beyond the range that is stored",
    "not finite": "NaN or infinite voxels were filled",
    "missing slices": "slices were missing and interpolated",
    "uneven slices": "slices at uneven distances, put on their true positions",
    "doubtful header": "the header or the table contradicts itself or the images, or something was assumed",
    "mask trouble": "a mask was listed but could not be used",
    "tilted": "the gantry was tilted; the shear was undone",
    "defaced": "part of the face was removed by the source",
}
"""What each flag means, the more alarming ones first."""

_RAISED_BY = {
    "alternating slices": (DecisionKind.SLICES_ALTERNATE,),
    "clipped": (DecisionKind.CLIPPED_INT16, DecisionKind.CLIPPED_ABOVE),
    "not finite": (DecisionKind.NOT_FINITE,),
    "missing slices": (DecisionKind.MISSING_SLICES,),
    "uneven slices": (DecisionKind.UNEVEN_SLICES,),
    "doubtful header": (
        DecisionKind.FORMS_DISAGREE,
        DecisionKind.SFORM_SINGULAR,
        DecisionKind.GEOMETRY_ASSUMED,
        DecisionKind.SLOPE_ASSUMED,
        DecisionKind.INTERCEPT_ZERO_ASSUMED,
        DecisionKind.INTERCEPT_ASSUMED,
        DecisionKind.HU_AS_STORED,
        DecisionKind.RESCALE_BY_AIR,
        DecisionKind.SIGN_ASSUMED,
        DecisionKind.MODALITY_DIFFERS,
        DecisionKind.ONLY_BY_INSTANCE,
        # Pictures that were cut square look as if they had been made smaller.
        DecisionKind.SPACING_OF_OTHER_SIZE,
    ),
    "mask trouble": (
        DecisionKind.MASK_LEFT_OUT,
        DecisionKind.MASK_MISSING,
        DecisionKind.VESSELS_DROPPED,
        DecisionKind.ANATOMY_MISSES,
    ),
    "tilted": (DecisionKind.TILTED,),
    "defaced": (DecisionKind.DEFACE_USED,),
}
"""Kinds of decisions that raise a flag."""

_FLAG_OF = {kind: flag for flag, kinds in _RAISED_BY.items() for kind in kinds}
_TAKEN_BACK_BY = {DecisionKind.DEFACE_EMPTY: "defaced"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What is noteworthy about one scan.

    Attributes:
        score: Largest modified z-score of its statistics; 0 where there are too few scans to compare with.
        why: The statistics that are outliers, the farthest first, as short texts.
        flags: Keys of `FLAGS`, in their order.
    """

    score: float
    why: tuple[str, ...]
    flags: tuple[str, ...]


def find(scans: pd.DataFrame) -> list[Finding]:
    """Findings of each row of a manifest, in the order of its rows."""
    if scans.empty:
        return []
    statistics = _statistics(scans)
    groups = scans.groupby(["source", "modality"], sort=False).indices.values()
    scores = {
        name: _by_group(statistic, [np.asarray(group) for group in groups]) for name, statistic in statistics.items()
    }
    noted = _noted(scans)
    findings = []
    for row in range(len(scans)):
        odd = sorted(((abs(scores[name][row]), name) for name in statistics), reverse=True)
        far = [name for score, name in odd if score > OUTLIER_Z]
        flags = {statistics[name].flag for name in far} | noted[row]
        findings.append(
            Finding(
                score=float(odd[0][0]),
                why=tuple(
                    f"{name} {statistics[name].values[row]:.4g} {statistics[name].unit}".rstrip()
                    + f" (z {scores[name][row]:+.1f})"
                    for name in far
                ),
                flags=tuple(flag for flag in FLAGS if flag in flags),
            )
        )
    return findings


def order(findings: list[Finding]) -> list[int]:
    """Row numbers, outliers first, then those with the more alarming flags, then as they stand."""
    rank = {flag: place for place, flag in enumerate(FLAGS)}

    def key(row: int) -> tuple[float, int, int]:
        finding = findings[row]
        outlier = finding.score if finding.score > OUTLIER_Z else 0.0
        return -outlier, min((rank[flag] for flag in finding.flags), default=len(rank)), row

    return sorted(range(len(findings)), key=key)


def robust_z(values: NDArray[np.float64], floor: float) -> NDArray[np.float64]:
    """Modified z-scores of `values`, shape (N,).

    Args:
        values: Finite.
        floor: Smallest deviation that counts as one sigma, so that a thousand equal values do not make a difference
            of nothing an outlier.

    Example:
        >>> robust_z(np.array([1.0, 2.0, 3.0, 4.0, 100.0]), floor=0.1).round(1).tolist()
        [-1.3, -0.7, 0.0, 0.7, 65.4]
    """
    away = values - np.median(values)
    sigma = np.median(np.abs(away)) / MAD_TO_SIGMA
    if sigma == 0:
        sigma = MEAN_DEVIATION_TO_SIGMA * np.abs(away).mean()
    scale = max(float(sigma), floor)
    return away / scale if scale > 0 else away


@dataclass(frozen=True, slots=True, kw_only=True)
class _Statistic:
    """One number a scan; sizes are compared by their logarithms, and `floor` is in what is compared."""

    values: NDArray[np.float64]
    flag: str
    unit: str
    floor: float | NDArray[np.float64]
    logarithmic: bool = False


def _statistics(scans: pd.DataFrame) -> dict[str, _Statistic]:
    raw_spacing, shape = _matrix(scans["raw_spacing"]), _matrix(scans["shape"])
    extent = shape * _matrix(scans["spacing"])
    percentiles = _matrix(scans["intensity_percentiles"])
    low, middle, high = (percentiles[:, PERCENTILES.index(at)] for at in (1, 50, 99))
    floor = INTENSITY_FLOOR * (high - low)
    share = foreground_share(scans)
    found = {
        "slice spacing": _Statistic(
            values=raw_spacing.max(axis=1), flag="odd spacing", unit="mm", floor=SIZE_FLOOR, logarithmic=True
        ),
        "in-plane spacing": _Statistic(
            values=raw_spacing.min(axis=1), flag="odd spacing", unit="mm", floor=SIZE_FLOOR, logarithmic=True
        ),
        "foreground share": _Statistic(values=share, flag="odd foreground", unit="", floor=SHARE_FLOOR),
        "median intensity": _Statistic(values=middle, flag="odd intensity", unit="", floor=floor),
        "intensity spread": _Statistic(values=high - low, flag="odd intensity", unit="", floor=floor),
    }
    for axis, name in enumerate(("right to left", "front to back", "foot to head")):
        found[f"extent {name}"] = _Statistic(
            values=extent[:, axis], flag="odd size", unit="mm", floor=SIZE_FLOOR, logarithmic=True
        )
    return found


def foreground_share(scans: pd.DataFrame) -> NDArray[np.float64]:
    """Share of each volume that its foreground box fills, shape (N,)."""
    return _box_sides(scans).prod(axis=1) / _matrix(scans["shape"]).prod(axis=1)


def _noted(scans: pd.DataFrame) -> list[set[str]]:
    """Flags of each row that need no other row to compare with."""
    sides_mm = _box_sides(scans) * _matrix(scans["spacing"])
    rules = {
        "thick slices": _matrix(scans["raw_spacing"]).max(axis=1) >= THICK_SLICES_MM,
        "short coverage": sides_mm[:, 2] < SHORT_COVERAGE_MM,
        "small foreground": foreground_share(scans) < SMALL_FOREGROUND_SHARE,
    }
    noted = []
    for row, decisions in enumerate(scans["decisions"]):
        kinds = {kind_of(line) for line in decisions} if decisions is not None else set()
        flags = {flag for kind, flag in _FLAG_OF.items() if kind in kinds}
        flags -= {flag for kind, flag in _TAKEN_BACK_BY.items() if kind in kinds}
        noted.append(flags | {flag for flag, holds in rules.items() if holds[row]})
    return noted


def _by_group(statistic: _Statistic, groups: list[NDArray[np.intp]]) -> NDArray[np.float64]:
    compared = np.log(np.maximum(statistic.values, 1e-6)) if statistic.logarithmic else statistic.values
    floors = np.broadcast_to(statistic.floor, compared.shape)
    scores = np.zeros(len(compared))
    for group in groups:
        if len(group) >= MIN_GROUP:
            scores[group] = robust_z(compared[group], floor=float(np.median(floors[group])))
    return scores


def _box_sides(scans: pd.DataFrame) -> NDArray[np.float64]:
    box = _matrix(scans["foreground_box"]).reshape(-1, 3, 2)
    return box[:, :, 1] - box[:, :, 0]


def _matrix(column: pd.Series) -> NDArray[np.float64]:
    return np.stack([np.asarray(value, dtype=np.float64) for value in column])
