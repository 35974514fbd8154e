"""Which difference between two areas under the ROC curve a study can see, from what is assumed beforehand.

The standard error of one area A of n1 ill and n0 healthy series is that of Hanley and McNeil (Radiology 143, 1982):

    var(A) = (A (1 - A) + (n1 - 1) (Q1 - A^2) + (n0 - 1) (Q2 - A^2)) / (n1 n0),  Q1 = A / (2 - A),  Q2 = 2 A^2 / (1 + A)

Two arms that are asked about the same series err alike, so the variance of their difference is 2 var(A) (1 - r) with
a correlation r of their areas (Hanley and McNeil, Radiology 148, 1983; DeLong, Biometrics 44, 1988, estimates it from
the scores themselves). Several seeds of an arm are to it what several readers are to a modality, so the mean difference
over J seeds has the variance of Obuchowski and Rockette (Communications in Statistics 24, 1995):

    var = 2 / J (s^2 + var(A) (1 - r1 + (J - 1) (r2 - r3)))

with s^2 the variance of an arm's true area over seeds, r1 the correlation of areas of one seed in two arms, r2 of two
seeds in one arm, r3 of neither in common. All of them are over draws of other held-out series.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from finetune.metrics import LEVEL
from finetune.study.config import PowerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """What a comparison of two arms can see.

    Attributes:
        series: Held-out ones.
        seeds: Of each arm.
        area_error: Standard error of one area.
        difference_error: Of the mean difference of two arms.
        half_interval: Half of the width of its 95 % interval.
        smallest: The smallest true difference that such an interval leaves 0 out of with the chance that is asked for.
    """

    series: int
    seeds: int
    area_error: float
    difference_error: float
    half_interval: float
    smallest: float


def area_variance(auc: float, ill: float, healthy: float) -> float:
    """Variance of an area under the ROC curve (Hanley and McNeil 1982).

    Args:
        auc: The true area.
        ill: Positive series.
        healthy: Negative ones.

    Example:
        >>> round(area_variance(0.75, 150, 150) ** 0.5, 4)
        0.0281
    """
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    return (auc * (1 - auc) + (ill - 1) * (q1 - auc**2) + (healthy - 1) * (q2 - auc**2)) / (ill * healthy)


def power_of(
    config: PowerConfig, *, series: int, seeds: int, shares: Sequence[tuple[float, float]] = ((0.5, 0.5),)
) -> Power:
    """What a comparison can see.

    Args:
        config: What is assumed.
        series: Held-out ones.
        seeds: Of each arm.
        shares: Of the series, the positive and the negative ones of each area that the measure is the mean of: of each
            modality, or of each site. The errors of these areas are taken as independent.
    """
    groups = [(max(1.0, ill * series), max(1.0, healthy * series)) for ill, healthy in shares]
    variance = sum(area_variance(config.auc, ill, healthy) for ill, healthy in groups) / len(groups) ** 2
    shared = 1 - config.same_seed + (seeds - 1) * (config.same_arm - config.neither)
    error = math.sqrt(2 / seeds * (config.seed_sd**2 + variance * shared))
    normal = NormalDist()
    bound = normal.inv_cdf((1 + LEVEL) / 2)
    return Power(
        series=series,
        seeds=seeds,
        area_error=math.sqrt(variance),
        difference_error=error,
        half_interval=bound * error,
        smallest=(bound + normal.inv_cdf(config.power)) * error,
    )
