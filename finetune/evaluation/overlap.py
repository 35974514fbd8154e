"""What segmentations are worth: Dice and surface distance a structure, with intervals over patients."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from finetune.evaluation.areas import Estimate
from finetune.evaluation.compare import Comparison, comparison_of
from finetune.evaluation.predictions import ID, SUBJECT
from finetune.metrics import DRAWS, Score, Times, draw_patients, percentile_interval, undrawn
from harmonize.errors import WrongUse
from harmonize.voxels.foreground import bounding_box

DICE, DISTANCE = "dice", "surface_distance_mm"
"""Names of the two means."""

MEAN_DICE, MEAN_DISTANCE = "mean Dice", "mean surface distance, mm"
"""What a comparison calls them."""

DICE_PREFIX, DISTANCE_PREFIX, MISSED_PREFIX = "dice: ", "surface distance: ", "missed: "
"""Before a label's name: its columns in a table of segmentations."""

CERTAINTY = "certainty"
"""Column of the mean probability of the class that each voxel got; not finite where the network's answer is not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlapScore(Score):
    """A `Score` of Dice in place of areas; `undefined` are the structures that no series has or was said to have."""

    def note(self) -> str:
        """One line for a person about what the score leaves out; empty if it leaves out nothing."""
        if not self.undefined:
            return ""
        count = f"{len(self.undefined)} of {len(self.areas)}"
        return f"{count} structures are in none of these series; the means leave them out"


@dataclass(frozen=True, slots=True, kw_only=True)
class StructureOverlap:
    """How well one structure is segmented.

    Attributes:
        name: Of the structure; or what a mean over all of them is called.
        series: In how many of the series it is, or was said to be.
        missed: In how many of them it is, and nothing was said to be.
        dice: Mean Dice of these series.
        distance_mm: Mean of the average symmetric surface distance of those in which both are.
    """

    name: str
    series: int
    missed: int
    dice: Estimate
    distance_mm: Estimate

    def facts(self) -> dict[str, object]:
        """For JSON."""
        return {
            "series": self.series,
            "missed": self.missed,
            DICE: self.dice.facts(),
            DISTANCE: self.distance_mm.facts(),
        }


def overlap(
    said_XYZ: NDArray[np.integer], true_XYZ: NDArray[np.integer], value: int, spacing: Sequence[float]
) -> tuple[float, float]:
    """Dice and average symmetric surface distance in mm of one class of two label volumes.

    Args:
        said_XYZ: Classes.
        true_XYZ: Classes, of the same shape.
        value: The class.
        spacing: Size of a voxel in mm.

    Returns:
        (Dice, mm). Dice is NaN where neither has the class, and 0 where one has it; the distance is NaN in both cases.

    Example:
        >>> true = np.zeros((8, 8, 8), np.uint8)
        >>> true[2:6, 2:6, 2:6] = 1
        >>> overlap(true, true, 1, (1.0, 1.0, 1.0)), overlap(true, true, 2, (1.0, 1.0, 1.0))
        ((1.0, 0.0), (nan, nan))
    """
    # Slow to load, and nothing that predicts needs it.
    from monai.metrics import compute_average_surface_distance, compute_dice

    said, true = said_XYZ == value, true_XYZ == value
    either = said | true
    if not either.any():
        return float("nan"), float("nan")
    x0, x1, y0, y1, z0, z1 = bounding_box(either)
    said_BCXYZ, true_BCXYZ = (
        torch.from_numpy(np.ascontiguousarray(one[x0:x1, y0:y1, z0:z1]))[None, None] for one in (said, true)
    )
    dice = float(compute_dice(said_BCXYZ, true_BCXYZ, include_background=True, ignore_empty=False))
    if not (said_BCXYZ.any() and true_BCXYZ.any()):
        return dice, float("nan")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="monai")  # of MONAI's own calls
        distance = compute_average_surface_distance(
            F.pad(said_BCXYZ, [1] * 6),
            F.pad(true_BCXYZ, [1] * 6),
            include_background=True,
            symmetric=True,
            spacing=[float(mm) for mm in spacing],
        )
    return dice, float(distance)


def score_overlap(table: pd.DataFrame, labels: Sequence[str]) -> OverlapScore:
    """The mean over structures of the mean Dice of the series.

    Args:
        table: A row a series, with the columns of `DICE_PREFIX` and `DISTANCE_PREFIX`.
        labels: Names of the structures.
    """
    dice = {label: _mean(table[f"{DICE_PREFIX}{label}"]) for label in labels}
    mean = _mean(pd.Series(list(dice.values()), dtype=np.float64))
    distances = [_mean(table[f"{DISTANCE_PREFIX}{label}"]) for label in labels]
    return OverlapScore(
        areas=dice,
        means={DICE: mean, DISTANCE: _mean(pd.Series(distances, dtype=np.float64))},
        score=mean,
        undefined=tuple(label for label, value in dice.items() if np.isnan(value)),
    )


def structures(table: pd.DataFrame, labels: Sequence[str], *, draws: int = DRAWS) -> list[StructureOverlap]:
    """Each structure with its intervals, and the mean over all of them last.

    Args:
        table: As for `score_overlap`, with the column ``subject``.
        labels: Names of the structures.
        draws: Of the bootstrap over patients.
    """
    times_ND = draw_patients(table["subject"].tolist(), draws=draws)
    values = {
        prefix: table[[f"{prefix}{label}" for label in labels]].to_numpy(np.float64)
        for prefix in (DICE_PREFIX, DISTANCE_PREFIX)
    }
    dice_NL, distance_NL = values[DICE_PREFIX], values[DISTANCE_PREFIX]
    found = [
        StructureOverlap(
            name=label,
            series=int(np.isfinite(dice_NL[:, number]).sum()),
            missed=int(table[f"{MISSED_PREFIX}{label}"].sum()),
            dice=_estimate(dice_NL[:, [number]], times_ND),
            distance_mm=_estimate(distance_NL[:, [number]], times_ND),
        )
        for number, label in enumerate(labels)
    ]
    mean = StructureOverlap(
        name="mean of all",
        series=len(table),
        missed=sum(one.missed for one in found),
        dice=_estimate(dice_NL, times_ND),
        distance_mm=_estimate(distance_NL, times_ND),
    )
    return [*found, mean]


def compare_overlaps(
    tables: Mapping[str, pd.DataFrame], labels: Sequence[str], *, draws: int = DRAWS, seed: int = 0
) -> Comparison:
    """Compare runs on the series that all of them segmented: mean Dice, mean surface distance, Dice a structure.

    Args:
        tables: Of each run, by its name: as for `structures`, with the column ``scan_id``.
        labels: Names of the structures, those of every run.
        draws: Of the bootstrap over patients.
        seed: Of the bootstrap.

    Raises:
        WrongUse: There is one run alone, or they share no series.
    """
    if len(tables) < 2:
        raise WrongUse("one run cannot be compared; give two or more")
    common = sorted(set.intersection(*(set(table[ID]) for table in tables.values())))
    if not common:
        raise WrongUse(
            f"{', '.join(tables)}: no series was segmented by all of them; compare runs of the same held-out fold, or "
            "cross-validations of the same corpus"
        )
    notes = tuple(
        f"{name}: {left} of its {len(table)} series were not segmented by all runs and are left out."
        for name, table in tables.items()
        if (left := len(table) - len(common))
    )
    cut = [table.set_index(ID).loc[common] for table in tables.values()]
    subjects = cut[0][SUBJECT].tolist()
    times_ND = draw_patients(subjects, draws=draws, seed=seed)
    return comparison_of(
        list(tables),
        [_measures(table, labels, undrawn(len(common))) for table in cut],
        [_measures(table, labels, times_ND) for table in cut],
        subjects_N=subjects,
        notes=notes,
    )


def _measures(table: pd.DataFrame, labels: Sequence[str], times_ND: Times) -> dict[str, NDArray[np.float64]]:
    """Each measure of each draw, (D,)."""
    dice_NL, distance_NL = (
        table[[f"{prefix}{label}" for label in labels]].to_numpy(np.float64)
        for prefix in (DICE_PREFIX, DISTANCE_PREFIX)
    )
    of_each = {f"{DICE_PREFIX}{label}": _drawn(dice_NL[:, [place]], times_ND) for place, label in enumerate(labels)}
    return {MEAN_DICE: _drawn(dice_NL, times_ND), MEAN_DISTANCE: _drawn(distance_NL, times_ND)} | (
        of_each if len(labels) > 1 else {}
    )


def _estimate(values_NL: NDArray[np.float64], times_ND: Times) -> Estimate:
    """Mean over the columns of the mean over the rows that have a value, with its interval."""
    return Estimate(
        value=float(_drawn(values_NL, undrawn(len(values_NL)))[0]),
        interval=percentile_interval(_drawn(values_NL, times_ND)),
    )


def _drawn(values_NL: NDArray[np.float64], times_ND: Times) -> NDArray[np.float64]:
    there_NL = np.isfinite(values_NL)
    sums_LD = np.where(there_NL, values_NL, 0).T @ times_ND
    counts_LD = there_NL.T.astype(np.float64) @ times_ND
    means_LD = np.divide(sums_LD, counts_LD, out=np.full(counts_LD.shape, np.nan), where=counts_LD > 0)
    defined_LD = np.isfinite(means_LD)
    count_D = defined_LD.sum(0)
    return np.divide(
        np.where(defined_LD, means_LD, 0).sum(0), count_D, out=np.full(len(count_D), np.nan), where=count_D > 0
    )


def _mean(values: pd.Series[float]) -> float:
    there = values[np.isfinite(values)]
    return float(there.mean()) if len(there) else float("nan")
