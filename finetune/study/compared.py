"""What the arms of a study are worth, and how they differ from the first: paired draws of patients and of seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from finetune.evaluation.areas import Estimate, drawn_within
from finetune.evaluation.compare import OVERALL, SITES, WITHIN, Comparison, Difference, Scores
from finetune.evaluation.predictions import ID, MODALITY, SUBJECT, TARGET_PREFIX
from finetune.metrics import Times, draw_patients, drawn_areas, percentile_interval, undrawn
from finetune.study.seeds import Floats, mean_over_seeds, seed_deviation
from finetune.study.table import ARM, LABELLED, PAIRS, SEED, SPLIT, Study
from finetune.tasks.aneurysm import LOCATIONS, PRESENT

ASKED = (WITHIN, SITES)
"""The measures that the answer is given in: whether a head is ill, and where."""
MEASURES = (*ASKED, OVERALL)

LEAST_SACS = 5
"""Held-out series with a sac at a site that counts: draws of fewer do not tell how uncertain its area is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """The arms at one number of labelled series, on one split.

    Attributes:
        labelled: That number.
        split: Whose series.
        comparison: Of the arms, each the mean over its seeds.
        sites: Those that the mean over sites is of.
        by_seed: Of each measure of `ASKED` and arm, the area of each seed, by seed.
        errors: Standard error of each arm's difference to the first one, in each measure of `ASKED`, as the draws have
            it.
    """

    labelled: int
    split: str
    comparison: Comparison
    sites: Sequence[str]
    by_seed: Mapping[str, Mapping[str, Mapping[int, float]]]
    errors: Mapping[str, Mapping[str, float]]

    @property
    def arms(self) -> tuple[str, ...]:
        """Those that are compared, the first one of the recipe first."""
        return tuple(one.name for one in self.comparison.runs)

    def score(self, arm: str, measure: str = WITHIN) -> Estimate:
        """Of an arm."""
        return next(one.scores[measure] for one in self.comparison.runs if one.name == arm)

    def difference(self, arm: str, measure: str = WITHIN) -> Estimate:
        """Of an arm to the first one."""
        return next(one.differences[measure] for one in self.comparison.differences if one.name == arm)

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "labelled": self.labelled,
            "split": self.split,
            **self.comparison.facts(),
            "sites": list(self.sites),
            "by_seed": {
                measure: {arm: {str(seed): value for seed, value in own.items()} for arm, own in arms.items()}
                for measure, arms in self.by_seed.items()
            },
            "errors_of_differences": {measure: dict(arms) for measure, arms in self.errors.items()},
        }


def compare_arms(study: Study, *, seed: int = 0) -> list[Compared]:
    """Compare the arms at each number of labelled series, on each split that is no set of pairs.

    Each arm is the mean over its seeds, and arms are compared on the seeds that all of them have. An interval speaks of
    other patients, drawn with replacement and the same for all arms, and of other seeds (`finetune.study.seeds`).

    Args:
        study: With its predictions.
        seed: Of the draws.
    """
    splits = [split for split in study.splits if split != PAIRS]
    found = (
        compare_at(study, labelled, split, seed=seed) for labelled in study.config.design.labels for split in splits
    )
    return [one for one in found if one is not None]


def compare_at(study: Study, labelled: int, split: str, *, seed: int = 0) -> Compared | None:
    """As `compare_arms`, at one of them; None where the first arm of the recipe shares no seed with another."""
    rows = study.rows[(study.rows[LABELLED] == labelled) & (study.rows[SPLIT] == split)]
    arms, seeds = shared_seeds(rows, study.arms)
    if study.config.arms[0].name not in arms or len(arms) < 2 or not seeds:
        return None
    series = rows[(rows[ARM] == arms[0]) & (rows[SEED] == seeds[0])].sort_values(ID)
    draws = study.config.design.draws
    times_ND = draw_patients(tuple(series[SUBJECT]), draws=draws, seed=seed)
    measured = {arm: {name: _areas(name, series, rows, arm, seeds, times_ND) for name in MEASURES} for arm in arms}

    def estimate(value_S: Floats, drawn_SD: Floats) -> Estimate:
        value_1, drawn_D = mean_over_seeds(value_S, drawn_SD, seed=seed)
        return Estimate(value=float(value_1[0]), interval=percentile_interval(drawn_D))

    def differ(arm: str, name: str) -> tuple[Floats, Floats]:
        """By seed: the same patients, the same labelled series, the same order."""
        own, first = measured[arm][name], measured[arms[0]][name]
        return own[0] - first[0], own[1] - first[1]

    comparison = Comparison(
        series=len(series),
        patients=series[SUBJECT].nunique(),
        draws=draws,
        notes=(),
        measures=MEASURES,
        runs=tuple(
            Scores(name=arm, scores={name: estimate(*own) for name, own in measured[arm].items()}) for arm in arms
        ),
        differences=tuple(
            Difference(
                name=arm, baseline=arms[0], differences={name: estimate(*differ(arm, name)) for name in MEASURES}
            )
            for arm in arms[1:]
        ),
    )
    return Compared(
        labelled=labelled,
        split=split,
        comparison=comparison,
        sites=counted_sites(series),
        by_seed={
            name: {arm: dict(zip(seeds, measured[arm][name][0].tolist(), strict=True)) for arm in arms}
            for name in ASKED
        },
        errors={name: {arm: _error(*differ(arm, name)) for arm in arms[1:]} for name in ASKED},
    )


def shared_seeds(rows: pd.DataFrame, arms: Sequence[str]) -> tuple[list[str], list[int]]:
    """The arms that have predictions here, and the seeds that all of these have."""
    have = {arm: set(rows.loc[rows[ARM] == arm, SEED]) for arm in arms}
    named = [arm for arm in arms if have[arm]]
    return named, sorted(set.intersection(*(have[arm] for arm in named))) if named else []


def scores_of(rows: pd.DataFrame, arm: str, seeds: Sequence[int], label: str = PRESENT) -> NDArray[np.float64]:
    """(S, N): what an arm says of a label with each seed, of series in the order of their ids."""
    own = rows[rows[ARM] == arm]
    return np.stack([own[own[SEED] == seed].sort_values(ID)[label].to_numpy(np.float64) for seed in seeds])


def _areas(
    name: str, series: pd.DataFrame, rows: pd.DataFrame, arm: str, seeds: Sequence[int], times_ND: Times
) -> tuple[Floats, Floats]:
    """A measure of an arm with each seed, (S,), and in each draw of patients, (S, D); NaN of labels it says nothing of.

    The mean over sites is that of sites with `LEAST_SACS`, the same in each draw. A draw that leaves one of them
    without any is undefined: a mean over other sites would be another number.
    """
    times_ND = np.concatenate([undrawn(len(series)), times_ND], axis=1)
    modalities_N = series[MODALITY].to_numpy(str)

    def drawn(label: str, measure: str) -> Floats:
        truth_N = series[f"{TARGET_PREFIX}{label}"].to_numpy(np.int64)
        scores_SN = scores_of(rows, arm, seeds, label)
        if np.isnan(scores_SN).any():
            return np.full((len(seeds), times_ND.shape[1]), np.nan)
        if measure == WITHIN:
            return np.stack([drawn_within(truth_N, own_N, modalities_N, times_ND) for own_N in scores_SN])
        return np.stack([drawn_areas(truth_N, own_N, times_ND) for own_N in scores_SN])

    if name == SITES:
        areas = [drawn(site, OVERALL) for site in counted_sites(series)]
        found_SD = np.mean(areas, axis=0) if areas else np.full((len(seeds), times_ND.shape[1]), np.nan)
    else:
        found_SD = drawn(PRESENT, name)
    return found_SD[:, 0], found_SD[:, 1:]


def counted_sites(series: pd.DataFrame) -> list[str]:
    """The sites that the mean over sites is of.

    Args:
        series: A row a series, with the truth of all labels.
    """
    return [site for site in LOCATIONS if int((series[f"{TARGET_PREFIX}{site}"] == 1).sum()) >= LEAST_SACS]


def _error(value_S: Floats, drawn_SD: Floats) -> float:
    """Standard error of the mean over seeds: of patients, and of what is left between seeds."""
    mean_D, seeds = drawn_SD.mean(0), len(value_S)
    mean_D = mean_D[np.isfinite(mean_D)]
    patients = float(mean_D.std()) if len(mean_D) else float("nan")
    return float(np.hypot(patients, seed_deviation(value_S, drawn_SD) / np.sqrt(seeds) if seeds > 1 else 0.0))
