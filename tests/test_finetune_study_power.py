"""Which difference a study can see: the formulas against simulations, and the numbers in the documentation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import norm

from finetune.evaluation.compare import WITHIN
from finetune.study import StudyConfig
from finetune.study.config import PowerConfig
from finetune.study.plan import powers
from finetune.study.power import area_variance, power_of
from finetune.study.table import INSIDE, OUTSIDE
from headspark.config import read_recipe


def area(ill_N: NDArray[np.int64], scores_RN: NDArray[np.float64]) -> NDArray[np.float64]:
    """Areas of many draws of scores, (R,)."""
    ranks_RN = scores_RN.argsort(1).argsort(1) + 1
    ill = int(ill_N.sum())
    healthy = len(ill_N) - ill
    return np.asarray((ranks_RN[:, ill_N == 1].sum(1) - ill * (ill + 1) / 2) / (ill * healthy), np.float64)


def simulated(rng: np.random.Generator, *, draws: int, series: int, seeds: int, spread: float) -> NDArray[np.float64]:
    """(2, seeds, draws): areas of two arms alike, whose scores share what is of the series, the arm and the seed."""
    ill_N, strength = np.arange(series) % 2, np.sqrt(2) * norm.ppf(0.75)
    shape = (draws, series)
    of_series, of_arm = rng.normal(size=shape), rng.normal(size=(2, *shape))
    of_seed = rng.normal(size=(seeds, *shape))
    areas = np.empty((2, seeds, draws))
    for arm in range(2):
        for seed in range(seeds):
            own = strength + spread * rng.normal(size=(draws, 1))
            noise = np.sqrt([0.4, 0.15, 0.15, 0.3]) * 1.0
            scores = own * ill_N + sum(
                weight * part
                for weight, part in zip(
                    noise, (of_series, of_arm[arm], of_seed[seed], rng.normal(size=shape)), strict=True
                )
            )
            areas[arm, seed] = area(ill_N, scores)
    return areas


def correlations(areas: NDArray[np.float64]) -> tuple[float, float, float]:
    """Of one seed in two arms, of two seeds in one arm, of neither; over draws."""

    def mean(pairs: Sequence[tuple[tuple[int, int], tuple[int, int]]]) -> float:
        return float(np.mean([np.corrcoef(areas[one], areas[other])[0, 1] for one, other in pairs]))

    seeds = range(areas.shape[1])
    return (
        mean([((0, seed), (1, seed)) for seed in seeds]),
        mean([((arm, one), (arm, other)) for arm in (0, 1) for one in seeds for other in seeds if one < other]),
        mean([((0, one), (1, other)) for one in seeds for other in seeds if one != other]),
    )


def test_the_error_of_an_area_is_what_draws_of_series_give() -> None:
    areas = simulated(np.random.default_rng(0), draws=1500, series=300, seeds=1, spread=0.0)
    assert areas.mean() == pytest.approx(0.75, abs=0.003)
    assert areas[0, 0].std() == pytest.approx(area_variance(0.75, 150, 150) ** 0.5, rel=0.06)


@pytest.mark.parametrize("spread", [0.0, 0.2])
def test_the_planned_error_of_a_difference_is_what_draws_of_series_and_seeds_give(spread: float) -> None:
    rng = np.random.default_rng(1)
    same_seed, same_arm, neither = correlations(simulated(rng, draws=1500, series=300, seeds=3, spread=0.0))
    # How much an arm's true area varies over seeds, by the slope of the area in the strength of its scores.
    slope = norm.pdf(norm.ppf(0.75)) / np.sqrt(2)
    config = PowerConfig(
        auc=0.75, same_seed=same_seed, same_arm=same_arm, neither=min(neither, same_seed, same_arm),
        seed_sd=float(spread * slope),
    )  # fmt: skip
    expected = power_of(config, series=300, seeds=3)
    areas = simulated(rng, draws=1500, series=300, seeds=3, spread=spread)
    differences = areas[1].mean(0) - areas[0].mean(0)
    assert differences.std() == pytest.approx(expected.difference_error, rel=0.1)
    seen = np.abs(expected.smallest + differences) > expected.half_interval
    assert seen.mean() == pytest.approx(0.8, abs=0.05)
    assert (np.abs(differences) > expected.half_interval).mean() == pytest.approx(0.05, abs=0.025)


def test_more_series_and_more_seeds_see_smaller_differences() -> None:
    smallest: Callable[[int, int], float] = lambda series, seeds: (  # noqa: E731
        power_of(PowerConfig(), series=series, seeds=seeds).smallest
    )
    assert smallest(300, 5) < smallest(300, 3) < smallest(100, 3) < smallest(100, 1)


def test_the_smallest_difference_that_the_documentation_promises_is_that_of_the_recipe() -> None:
    config = read_recipe(StudyConfig, Path(__file__).parents[1] / "recipes" / "transfer_study.yaml")
    found = {key: f"{one.smallest:.3f}" for key, one in powers(config).items()}
    assert found[WITHIN, INSIDE] == "0.074"
    assert found[WITHIN, OUTSIDE] == "0.113"
    page = (Path(__file__).parents[1] / "docs" / "transfer.md").read_text()
    for smallest in found.values():
        assert smallest in page.partition("## What it can see")[2].partition("## ")[0]
