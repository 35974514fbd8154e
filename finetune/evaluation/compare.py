"""Compare runs on the series that they all predicted: paired differences, with patients drawn for all at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.evaluation.areas import Estimate, drawn_macro, drawn_within
from finetune.evaluation.predictions import UNKNOWN_MODALITIES, UNKNOWN_PATIENTS, Predictions
from finetune.metrics import DRAWS, Times, draw_patients, drawn_areas, percentile_interval, undrawn
from harmonize.errors import WrongUse

WITHIN, OVERALL, SITES, SCORE = "within-modality AUC", "AUC overall", "mean AUC of sites", "score"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Of one run.

    Attributes:
        name: Of the run.
        scores: By measure.
    """

    name: str
    scores: dict[str, Estimate]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Between two runs.

    Attributes:
        name: Of the run.
        baseline: Of the run that is subtracted.
        differences: By measure, with the interval of the paired draws.
    """

    name: str
    baseline: str
    differences: dict[str, Estimate]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Of several runs.

    Attributes:
        series: That all of them predicted.
        patients: Of these series.
        draws: Of the bootstrap over patients.
        notes: What a reader should know, a line each.
        measures: Names, in order.
        runs: As they were given.
        differences: Of each pair, the later one minus the earlier one.
    """

    series: int
    patients: int
    draws: int
    notes: tuple[str, ...]
    measures: tuple[str, ...]
    runs: tuple[Scores, ...]
    differences: tuple[Difference, ...]

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "series": self.series,
            "patients": self.patients,
            "bootstrap_draws": self.draws,
            "notes": list(self.notes),
            "runs": [
                {"name": one.name, "scores": {name: score.facts() for name, score in one.scores.items()}}
                for one in self.runs
            ],
            "differences": [
                {
                    "run": one.name,
                    "minus": one.baseline,
                    "differences": {name: value.facts() for name, value in one.differences.items()},
                }
                for one in self.differences
            ],
        }


def compare(runs: Sequence[Predictions], *, draws: int = DRAWS, seed: int = 0) -> Comparison:
    """Compare runs.

    Args:
        runs: Two or more. Series that one of them lacks are left out, and counted.
        draws: Of the bootstrap over patients.
        seed: Of the bootstrap.

    Raises:
        WrongUse: They share no series or no labels, or disagree about a series' truth.
    """
    if len(runs) < 2:
        raise WrongUse("one run cannot be compared; give two or more")
    runs, notes = _alike(_with_own_names(runs))
    first = runs[0]
    times_ND = draw_patients(first.subjects_N, draws=draws, seed=seed)
    itself_N1 = undrawn(len(first.scan_ids_N))
    return comparison_of(
        [run.name for run in runs],
        [_drawn(run, itself_N1) for run in runs],
        [_drawn(run, times_ND) for run in runs],
        subjects_N=first.subjects_N,
        notes=notes,
    )


def comparison_of(
    names: Sequence[str],
    values: Sequence[Mapping[str, NDArray[np.float64]]],
    drawn: Sequence[Mapping[str, NDArray[np.float64]]],
    *,
    subjects_N: Sequence[str],
    notes: tuple[str, ...],
) -> Comparison:
    """A comparison of measures of the same series.

    Args:
        names: Of the runs.
        values: The measures of each, (1,) by name.
        drawn: The same of each draw of patients, (D,); the draws are those of all runs.
        subjects_N: Patient of each series.
        notes: What a reader should know, a line each.
    """
    measures = tuple(drawn[0])
    return Comparison(
        series=len(subjects_N),
        patients=len(set(subjects_N)),
        draws=len(drawn[0][measures[0]]),
        notes=notes,
        measures=measures,
        runs=tuple(
            Scores(name=run, scores={name: _estimate(value[name], of_draws[name]) for name in measures})
            for run, value, of_draws in zip(names, values, drawn, strict=True)
        ),
        differences=tuple(
            Difference(
                name=names[later],
                baseline=names[earlier],
                differences={
                    name: _estimate(
                        values[later][name] - values[earlier][name], drawn[later][name] - drawn[earlier][name]
                    )
                    for name in measures
                },
            )
            for earlier, later in combinations(range(len(names)), 2)
        ),
    )


def scores_of(run: Predictions, *, draws: int = DRAWS, seed: int = 0) -> dict[str, Estimate]:
    """The measures that runs are compared by, of one alone.

    Args:
        run: Its predictions.
        draws: Of the bootstrap over patients.
        seed: Of the bootstrap.
    """
    value = _drawn(run, undrawn(len(run.scan_ids_N)))
    drawn = _drawn(run, draw_patients(run.subjects_N, draws=draws, seed=seed))
    return {name: _estimate(value[name], drawn[name]) for name in drawn}


def _drawn(run: Predictions, times_ND: Times) -> dict[str, NDArray[np.float64]]:
    """Each measure of each draw, (D,)."""
    truth, scores = run.of(run.overall)
    overall = drawn_areas(truth, scores, times_ND)
    found = {}
    if run.modalities_N is not None:
        found[WITHIN] = drawn_within(truth, scores, np.array(run.modalities_N), times_ND)
    found[OVERALL] = overall
    if run.sites:
        sites = drawn_macro(run, times_ND)
        found |= {SITES: sites, SCORE: (overall + sites) / 2}
    return found


def _estimate(value_1: NDArray[np.float64], drawn_D: NDArray[np.float64]) -> Estimate:
    return Estimate(value=float(value_1[0]), interval=percentile_interval(drawn_D))


def _alike(runs: Sequence[Predictions]) -> tuple[list[Predictions], tuple[str, ...]]:
    """The runs cut down to the series of all, with the patients and modalities of the first that knows them."""
    labels, overall = runs[0].labels, runs[0].overall
    for run in runs[1:]:
        if set(run.labels) != set(labels) or run.overall != overall:
            raise WrongUse(
                f"{run.name}: has other labels than {runs[0].name}; name those to compare with --labels and --overall"
            )
    common = set(runs[0].scan_ids_N).intersection(*(run.scan_ids_N for run in runs[1:]))
    if not common:
        raise WrongUse(
            f"{', '.join(run.name for run in runs)}: no series was predicted by all of them; compare runs of the same "
            "held-out fold, or cross-validations of the same corpus"
        )
    notes = [
        f"{run.name}: {left} of its {len(run.scan_ids_N)} series were not predicted by all runs and are left out."
        for run in runs
        if (left := len(run.scan_ids_N) - len(common))
    ]
    cut = [run.only(tuple(common)) for run in runs]
    columns = [[run.labels.index(label) for label in labels] for run in cut]
    for run, order in zip(cut, columns, strict=True):
        disagreeing = int((run.targets_NL[:, order] != cut[0].targets_NL).any(axis=1).sum())
        if disagreeing:
            raise WrongUse(
                f"{run.name}: says something else than {cut[0].name} of what is true of {disagreeing} series; compare "
                "runs on the same labels"
            )
    known = next((run for run in cut if run.modalities_N is not None), cut[0])
    # Whoever knows no patients has as many as series.
    grouped = min(cut, key=lambda run: len(set(run.subjects_N)))
    notes += [UNKNOWN_PATIENTS] if UNKNOWN_PATIENTS in grouped.notes else []
    notes += [UNKNOWN_MODALITIES] if known.modalities_N is None else []
    alike = [
        replace(
            run,
            labels=labels,
            targets_NL=run.targets_NL[:, order],
            probabilities_NL=run.probabilities_NL[:, order],
            subjects_N=grouped.subjects_N,
            modalities_N=known.modalities_N,
        )
        for run, order in zip(cut, columns, strict=True)
    ]
    return alike, tuple(notes)


def _with_own_names(runs: Sequence[Predictions]) -> list[Predictions]:
    """Runs whose names differ: those of one name are numbered."""
    names = own_names([run.name for run in runs])
    return [replace(run, name=name) for run, name in zip(runs, names, strict=True)]


def own_names(names: Sequence[str]) -> list[str]:
    """Names that differ: those that are alike are numbered.

    Example:
        >>> own_names(["run", "other", "run"])
        ['run (1)', 'other', 'run (2)']
    """
    numbers = [names[: place + 1].count(name) for place, name in enumerate(names)]
    return [
        f"{name} ({number})" if names.count(name) > 1 else name for name, number in zip(names, numbers, strict=True)
    ]
