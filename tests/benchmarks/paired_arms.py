"""What differs between arms of a comparison that were asked about the same heads: numbers, and paired intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.metrics import Times, drawn_areas, percentile_interval, undrawn
from finetune.study.pairs import is_higher, means_over
from finetune.study.seeds import Floats, mean_over_seeds

DRAWS = 1000
"""Of the bootstrap."""

Cell = dict[str, Any]


def measures(cells: Sequence[Cell], times_PD: Times) -> dict[str, tuple[Floats, Floats]]:
    """The numbers of each seed, (S,), and in each draw of pairs, (S, D).

    Args:
        cells: Of an arm, one a seed.
        times_PD: How often each pair counts in each draw.
    """
    sac_SP2, vessel_SN, pair_N = arrays(cells)
    truth_N, scores_SN = np.repeat([1, 0], len(times_PD)), sac_SP2.transpose(0, 2, 1).reshape(len(sac_SP2), -1)
    times_ND = np.concatenate([np.concatenate([undrawn(len(times_PD)), times_PD], axis=1)] * 2)
    areas_SD = np.stack([drawn_areas(truth_N, scores_N, times_ND) for scores_N in scores_SN])
    return {
        "sac_auc": (areas_SD[:, 0], areas_SD[:, 1:]),
        "sac_pairs": means_over(is_higher(sac_SP2[..., 0], sac_SP2[..., 1]), times_PD),
        "vessel_auc": means_over(vessel_SN, times_PD[pair_N]),
    }


def arrays(cells: Sequence[Cell]) -> tuple[Floats, Floats, NDArray[np.int_]]:
    """Scores of sacs (seeds, pairs, 2), areas of vessels (seeds, series), and the pair of each series."""
    vessel = np.array([cell["vessel"] for cell in cells], np.float64).reshape(len(cells), -1, 2)
    return np.array([cell["sac"] for cell in cells], np.float64), vessel[..., 1], vessel[0, :, 0].astype(int)


def summary(cells: Sequence[Cell]) -> dict[str, float]:
    """The numbers of an arm: each the mean over seeds."""
    none_drawn = np.zeros((len(cells[0]["sac"]), 0), np.int32)
    return {name: float(value_S.mean()) for name, (value_S, _) in measures(cells, none_drawn).items()}


def differences(cells: Sequence[Cell], baseline: Sequence[Cell]) -> dict[str, dict[str, float]]:
    """An arm less the baseline, with intervals of 95 %.

    Pairs are drawn again, the same of both arms and of all seeds; other seeds count as they do in a study
    (`finetune.study.seeds`).
    """
    rng, pairs = np.random.default_rng(0), len(cells[0]["sac"])
    drawn = [np.bincount(rng.integers(pairs, size=pairs), minlength=pairs) for _ in range(DRAWS)]
    times_PD = np.stack(drawn, axis=1).astype(np.int32)
    ours, others = measures(cells, times_PD), measures(baseline, times_PD)
    found = {}
    for name, (value_S, drawn_SD) in ours.items():
        mean_1, mean_D = mean_over_seeds(value_S - others[name][0], drawn_SD - others[name][1], seed=0)
        interval = percentile_interval(mean_D)
        found[name] = {"difference": float(mean_1[0]), "low": interval.low, "high": interval.high}
    return found
