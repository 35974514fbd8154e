"""What differs between arms of a comparison that were asked about the same heads: numbers, and paired intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from finetune.study.seeds import mean_over_seeds

DRAWS = 1000
"""Of the bootstrap."""

Cell = dict[str, Any]


def measures(sac_SP2: NDArray[np.float64], vessel_SN: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """The numbers of each seed."""
    pairs = sac_SP2.shape[1]
    with_sac_SP = rankdata(sac_SP2.transpose(0, 2, 1).reshape(len(sac_SP2), -1), axis=1)[:, :pairs]
    aucs_S = (with_sac_SP.mean(1) - (pairs + 1) / 2) / pairs  # Mann and Whitney
    higher_SP = (sac_SP2[..., 0] > sac_SP2[..., 1]) + 0.5 * (sac_SP2[..., 0] == sac_SP2[..., 1])
    return {
        "sac_auc": aucs_S,
        "sac_pairs": higher_SP.mean(1),
        "vessel_auc": vessel_SN.mean(1) if vessel_SN.size else np.full(len(vessel_SN), np.nan),
    }


def arrays(cells: Sequence[Cell]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int_]]:
    """Scores of sacs (seeds, pairs, 2), areas of vessels (seeds, series), and the pair of each series."""
    vessel = np.array([cell["vessel"] for cell in cells]).reshape(len(cells), -1, 2)
    return np.array([cell["sac"] for cell in cells]), vessel[..., 1], vessel[0, :, 0].astype(int)


def summary(cells: Sequence[Cell]) -> dict[str, float]:
    """The numbers of an arm: each the mean over seeds."""
    sac, vessel, _ = arrays(cells)
    return {name: float(value_S.mean()) for name, value_S in measures(sac, vessel).items()}


def differences(cells: Sequence[Cell], baseline: Sequence[Cell]) -> dict[str, dict[str, float]]:
    """An arm less the baseline, with intervals of 95 %.

    Pairs are drawn again, the same of both arms and of all seeds; other seeds count as they do in a study
    (`finetune.study.seeds`).
    """
    rng, (ours, others) = np.random.default_rng(0), (arrays(cells), arrays(baseline))
    pairs = ours[0].shape[1]

    def less(pair_P: NDArray[np.int_], series_N: NDArray[np.int_]) -> dict[str, NDArray[np.float64]]:
        one, other = (measures(sac[:, pair_P], vessel[:, series_N]) for sac, vessel, _ in (ours, others))
        return {name: one[name] - other[name] for name in one}

    drawn = []
    for _ in range(DRAWS):
        pair_P = rng.integers(pairs, size=pairs)
        drawn.append(less(pair_P, np.concatenate([np.flatnonzero(ours[2] == pair) for pair in pair_P]).astype(int)))
    found = {}
    for name, value_S in less(np.arange(pairs), np.arange(len(ours[2]))).items():
        mean_1, mean_D = mean_over_seeds(value_S, np.stack([one[name] for one in drawn], axis=1), seed=0)
        low, high = np.nanpercentile(mean_D, (2.5, 97.5)).tolist()
        found[name] = {"difference": float(mean_1[0]), "low": low, "high": high}
    return found
