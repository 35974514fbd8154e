"""Detectability by counterfactual pairs: how often a head with a sac gets a higher score than the same without it.

The score is that of the site where the sac is: presence is the score of the highest spot anywhere in the head, and
where a false alarm is higher, a sac that is seen changes nothing. Probes say nothing of sites, so theirs is that of
presence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import logit

from finetune.evaluation.areas import Estimate
from finetune.evaluation.detection import SIZE_EDGES_MM, size_name
from finetune.evaluation.predictions import ID, MODALITY, SUBJECT, TARGET_PREFIX
from finetune.metrics import Times, draw_patients, percentile_interval, undrawn
from finetune.study.compared import scores_of, shared_seeds
from finetune.study.seeds import Floats, mean_over_seeds
from finetune.study.table import ARM, DIAMETER, LABELLED, PAIR, PAIRS, SEED, SPACING, SPLIT, Study
from finetune.tasks.aneurysm import LABELS, LOCATIONS, PRESENT
from harmonize.errors import UserError
from harmonize.sources.tables import read_table

ALL = "all pairs"
SPACING_EDGES_MM = (0.0, 1.0, 2.0, np.inf)
"""Bounds of the groups of raw voxels, by their longest edge."""

CLIP = 1e-6
"""Probabilities nearer to 0 or 1 than this have the logit of this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Detected:
    """What an arm makes of a group of pairs.

    Attributes:
        labelled: Series that it learned from.
        arm: Its name.
        by: What the pairs are grouped by; `ALL`: they are not.
        group: The group.
        pairs: How many.
        share: Of pairs whose score is higher with the sac; a tie counts half. 0.5 is a guess.
        share_more: That share minus that of the first arm; NaN where these are shares of different scores.
        logits: Mean difference of the logits with and without.
    """

    labelled: int
    arm: str
    by: str
    group: str
    pairs: int
    share: Estimate
    share_more: Estimate
    logits: Estimate

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "labelled": self.labelled,
            "arm": self.arm,
            "by": self.by,
            "group": self.group,
            "pairs": self.pairs,
            "share": self.share.facts(),
            "share_minus_first": self.share_more.facts(),
            "logits": self.logits.facts(),
        }


def detect(study: Study, *, seed: int = 0) -> list[Detected]:
    """Detectability of each arm at each number of labelled series, of all pairs and of groups of them.

    Of a number of labelled series at which the first arm of the recipe has no predictions nothing is said.

    Args:
        study: With its predictions.
        seed: Of the draws of patients and of seeds.
    """
    return [one for labelled in study.config.design.labels for one in _detect_at(study, labelled, seed)]


def _detect_at(study: Study, labelled: int, seed: int) -> Iterator[Detected]:
    rows = study.rows[(study.rows[LABELLED] == labelled) & (study.rows[SPLIT] == PAIRS)]
    arms, seeds = shared_seeds(rows, study.arms)
    if study.config.arms[0].name not in arms or not seeds:
        return
    series = rows[(rows[ARM] == arms[0]) & (rows[SEED] == seeds[0])].sort_values(ID).reset_index(drop=True)
    with_P, without_P = pairs_of(series)
    if not len(with_P):
        return
    times_PD = draw_patients(tuple(series[SUBJECT].iloc[with_P]), draws=study.config.design.draws, seed=seed)
    sites_PL = sites_of(series)[with_P]
    of_sites = {arm: speaks_of_sites(rows, arm) for arm in arms}
    scores = {
        arm: [
            site_scores(rows, arm, seeds, sites_PL, rows_P) if of_sites[arm] else scores_of(rows, arm, seeds)[:, rows_P]
            for rows_P in (with_P, without_P)
        ]
        for arm in arms
    }
    for by, group, rows_P in groups_of(series.iloc[with_P]):
        first: tuple[Floats, Floats] | None = None
        for arm in arms:
            with_SP, without_SP = (own_SP[:, rows_P] for own_SP in scores[arm])
            higher_SP = is_higher(with_SP, without_SP)
            with_SP, without_SP = (np.clip(own_SP, CLIP, 1 - CLIP) for own_SP in (with_SP, without_SP))
            logits_SP = logit(with_SP) - logit(without_SP)
            share = means_over(higher_SP, times_PD[rows_P])
            first = first or share
            more = [own - its if of_sites[arm] == of_sites[arms[0]] else np.full_like(own, np.nan)
                    for own, its in zip(share, first, strict=True)]  # fmt: skip
            yield Detected(
                labelled=labelled,
                arm=arm,
                by=by,
                group=group,
                pairs=int(rows_P.sum()),
                share=_estimate(*share, seed=seed, within=(0.0, 1.0)),
                share_more=_estimate(more[0], more[1], seed=seed, within=(-1.0, 1.0)),
                logits=_estimate(*means_over(logits_SP, times_PD[rows_P]), seed=seed),
            )


def site_scores(
    rows: pd.DataFrame, arm: str, seeds: Sequence[int], sites_PL: NDArray[np.bool_], rows_P: NDArray[np.int64]
) -> Floats:
    """(S, P): what an arm says with each seed of a series of each pair, at the site of the sac; the highest of several.

    Args:
        rows: Of all cells at one number of labelled series.
        arm: Which.
        seeds: Those.
        sites_PL: Where the series with the sac has one, by `LOCATIONS`; in one place at least.
        rows_P: The series, by their place in the order of ids.
    """
    said_LSP = np.stack([scores_of(rows, arm, seeds, site)[:, rows_P] for site in LOCATIONS])
    found_SP: Floats = np.where(sites_PL.T[:, None], said_LSP, -np.inf).max(0)
    return found_SP


def sites_of(series: pd.DataFrame) -> NDArray[np.bool_]:
    """(N, L): where series have a sac, by `LOCATIONS`."""
    return np.asarray(series[[f"{TARGET_PREFIX}{site}" for site in LOCATIONS]].to_numpy(np.int64) == 1, dtype=bool)


def speaks_of_sites(rows: pd.DataFrame, arm: str) -> bool:
    """Whether an arm says anything of sites; probes do not."""
    return bool(rows.loc[rows[ARM] == arm, list(LOCATIONS)].notna().to_numpy().all())


def read_pairs(path: Path) -> dict[str, str]:
    """Name of the pair of each series.

    Args:
        path: Of the table, with the columns ``pair``, ``with_sac`` and ``without_sac``.

    Raises:
        UserError: A series stands in two pairs.
        OSError: There is no such table.
    """
    pairs: dict[str, str] = {}
    for row in read_table(path, ("pair", "with_sac", "without_sac")).rows:
        for column in ("with_sac", "without_sac"):
            if pairs.setdefault(row[column], row["pair"]) != row["pair"]:
                raise UserError(f"{path}: a series stands in two pairs; write the tree again")
    return pairs


def pairs_of(series: pd.DataFrame) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the series with a sac, and of the same heads without it, (P,) each; what has no partner is left out.

    Args:
        series: A row a series, with `PAIR` and the truth of all labels.
    """
    has_site_N = np.asarray(sites_of(series).any(1), dtype=bool)
    ill_N = series[f"{TARGET_PREFIX}{PRESENT}"].to_numpy(np.int64)
    by_pair: dict[str, list[int]] = {}
    for row, name in enumerate(series[PAIR]):
        if isinstance(name, str) and name:
            by_pair.setdefault(name, []).append(row)
    both = [sorted(rows, key=lambda row: -ill_N[row]) for rows in by_pair.values() if len(rows) == 2]
    both = [rows for rows in both if ill_N[rows[0]] == 1 and ill_N[rows[1]] == 0 and has_site_N[rows[0]]]
    with_without_P2 = np.array(both, dtype=np.int64).reshape(-1, 2)
    return with_without_P2[:, 0], with_without_P2[:, 1]


def groups_of(ill: pd.DataFrame) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    """What groups pairs, the name of each group, and which pairs are in it; groups without pairs are left out.

    Args:
        ill: The series with a sac, a row a pair.
    """
    sizes_P, spacings_P = ill[DIAMETER].to_numpy(np.float64), ill[SPACING].to_numpy(np.float64)
    found: list[tuple[str, str, NDArray[np.bool_]]] = [(ALL, ALL, np.ones(len(ill), dtype=bool))]
    found += [("size", size_name(*edges), _between(sizes_P, *edges)) for edges in pairwise(SIZE_EDGES_MM)]
    found += [("site", label, ill[f"{TARGET_PREFIX}{label}"].to_numpy() == 1) for label in LABELS if label != PRESENT]
    found += [("raw voxel", size_name(*edges), _between(spacings_P, *edges)) for edges in pairwise(SPACING_EDGES_MM)]
    found += [
        ("modality", str(name), (ill[MODALITY] == name).to_numpy()) for name in sorted(set(ill[MODALITY].astype(str)))
    ]
    yield from (one for one in found if one[2].any())


def _between(values_P: NDArray[np.float64], low: float, high: float) -> NDArray[np.bool_]:
    return (values_P >= low) & (values_P < high)


def is_higher(with_SP: Floats, without_SP: Floats) -> Floats:
    """(S, P): whether a score is higher with the sac than without; a tie counts half.

    Example:
        >>> is_higher(np.array([[0.2, 0.3, 0.1]]), np.array([[0.1, 0.3, 0.2]])).tolist()
        [[1.0, 0.5, 0.0]]
    """
    higher_SP: Floats = np.sign(with_SP - without_SP) / 2 + 0.5
    return higher_SP


def means_over(values_SP: Floats, times_PD: Times) -> tuple[Floats, Floats]:
    """The mean over pairs with each seed, (S,), and in each draw, (S, D); NaN where a draw has no pair."""

    def over_pairs(times_PD: Times) -> Floats:
        counts_D, summed_SD = times_PD.sum(0), values_SP @ times_PD
        return np.divide(summed_SD, counts_D, out=np.full(summed_SD.shape, np.nan), where=counts_D > 0)

    return over_pairs(undrawn(values_SP.shape[1]))[:, 0], over_pairs(times_PD)


def _estimate(
    value_S: Floats, drawn_SD: Floats, *, seed: int, within: tuple[float, float] = (-np.inf, np.inf)
) -> Estimate:
    value_1, drawn_D = mean_over_seeds(value_S, drawn_SD, seed=seed)
    return Estimate(value=float(value_1[0]), interval=percentile_interval(np.clip(drawn_D, *within)))


def arms_in(found: Sequence[Detected]) -> list[str]:
    """The arms, in their order."""
    return list(dict.fromkeys(one.arm for one in found))
