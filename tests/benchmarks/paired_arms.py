"""What differs between arms of a comparison that were asked about the same heads: numbers, and paired intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

DRAWS = 1000
"""Of the bootstrap."""

Cell = dict[str, Any]


def measures(sac_SP2: NDArray[np.float64], vessel_SN: NDArray[np.float64]) -> dict[str, float]:
    """The numbers of seeds and units: each the mean over seeds."""
    pairs = sac_SP2.shape[1]
    with_sac_SP = rankdata(sac_SP2.transpose(0, 2, 1).reshape(len(sac_SP2), -1), axis=1)[:, :pairs]
    aucs_S = (with_sac_SP.mean(1) - (pairs + 1) / 2) / pairs  # Mann and Whitney
    return {
        "sac_auc": float(aucs_S.mean()),
        "sac_pairs": float(np.mean((sac_SP2[..., 0] > sac_SP2[..., 1]) + 0.5 * (sac_SP2[..., 0] == sac_SP2[..., 1]))),
        "vessel_auc": float(vessel_SN.mean()) if vessel_SN.size else float("nan"),
    }


def arrays(cells: Sequence[Cell]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int_]]:
    """Scores of sacs (seeds, pairs, 2), areas of vessels (seeds, series), and the pair of each series."""
    vessel = np.array([cell["vessel"] for cell in cells]).reshape(len(cells), -1, 2)
    return np.array([cell["sac"] for cell in cells]), vessel[..., 1], vessel[0, :, 0].astype(int)


def summary(cells: Sequence[Cell]) -> dict[str, float]:
    """The numbers of an arm."""
    sac, vessel, _ = arrays(cells)
    return measures(sac, vessel)


def differences(cells: Sequence[Cell], baseline: Sequence[Cell]) -> dict[str, dict[str, float]]:
    """An arm less the baseline, with intervals of 95 %: pairs and seeds are drawn again, the same of both."""
    rng, (ours, others) = np.random.default_rng(0), (arrays(cells), arrays(baseline))
    seeds, pairs = ours[0].shape[:2]
    drawn: list[dict[str, float]] = []
    for _ in range(DRAWS):
        seed_S, pair_P = rng.integers(seeds, size=seeds), rng.integers(pairs, size=pairs)
        series = np.concatenate([np.flatnonzero(ours[2] == pair) for pair in pair_P]).astype(int)
        one, other = (measures(sac[seed_S][:, pair_P], vessel[seed_S][:, series]) for sac, vessel, _ in (ours, others))
        drawn.append({name: one[name] - other[name] for name in one})
    found, reference = summary(cells), summary(baseline)
    return {
        name: dict(zip(
            ("difference", "low", "high"),
            (found[name] - reference[name], *np.nanpercentile([one[name] for one in drawn], (2.5, 97.5)).tolist()),
            strict=True,
        ))
        for name in found
    }  # fmt: skip
