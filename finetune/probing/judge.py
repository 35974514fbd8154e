"""The report card of encoders: what probes of their features say, side by side, with intervals over patients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.evaluation.measures import AUC, HEADLINE, Kind, drawn_measures
from finetune.metrics import DRAWS, Times, draw_patients, drawn_areas, percentile_interval, undrawn
from finetune.probing.fit import PROBES, Floats, Ints, Probe, out_of_fold
from harmonize.errors import UserError

ALL = "all"
SHOTS = (5, 10, 50, 100)
REPEATS = 5
"""How often the few labels of a curve are drawn."""

LEAST_OF_CLASS = 2
"""Patients of each side, in each fold's training part and in all, without which a label is not asked about."""

LEAST_IN_GROUP = 10
"""Scans of a group, without which nothing is said about it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked about scans, all of which every encoder saw.

    Attributes:
        kind: Of the labels.
        labels: Their names.
        keys_N: Source and id of each scan.
        subjects_N: Its patient.
        folds_N: The fold in which it is held out.
        truth_NL: 0 or 1, or numbers.
        groups: By name of what divides the scans (``sex``), the group of each; None where it is not known.
        notes: What a reader should know, a line each.
    """

    kind: Kind
    labels: tuple[str, ...]
    keys_N: tuple[tuple[str, str], ...]
    subjects_N: tuple[str, ...]
    folds_N: tuple[int, ...]
    truth_NL: NDArray[np.float64]
    groups: Mapping[str, tuple[str | None, ...]]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One number of the card.

    Attributes:
        encoder: Its name; ``A - B`` for a paired difference.
        probe: ``linear`` or ``knn``.
        label: What was asked; ``mean`` over several labels.
        labels: Training patients that the probe was told of: ``all`` of the other folds, or so many.
        group: The scans that are judged: ``all``, ``sex: F``, or ``sex: F - others``, which is a gap.
        metric: As `finetune.evaluation.measures` names it.
        value: Over all scans of the group.
        low: Of its interval, 95 %; None where it is undefined.
        high: Likewise.
        n: Scans.
    """

    encoder: str
    probe: str
    label: str
    labels: int | str
    group: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What came of it.

    Attributes:
        rows: Of each encoder.
        differences: Of each pair, the later one minus the earlier one, or minus a baseline.
        notes: What was left out, and what a reader should know, a line each.
        facts: Kind, labels, scans, patients, folds, draws.
    """

    rows: tuple[Row, ...]
    differences: tuple[Row, ...]
    notes: tuple[str, ...]
    facts: Mapping[str, Any]

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **self.facts,
            "rows": [asdict(row) for row in self.rows],
            "differences": [asdict(row) for row in self.differences],
            "notes": list(self.notes),
        }


_Place = tuple[str, str, int | str, str, str]
"""Probe, label, labels, group and metric of a row."""


@dataclass(slots=True, kw_only=True)
class _Number:
    value: float
    drawn_D: Floats
    n: int


def judge(
    question: Question,
    features: Mapping[str, Floats],
    *,
    shots: Sequence[int] = SHOTS,
    draws: int = DRAWS,
    seed: int = 0,
    tell: Callable[[str], object] = lambda line: None,
) -> Card:
    """Probe the features of several encoders on the same folds, with the same draws of patients.

    Areas count only pairs of scans of one fold, since scores of two probes cannot be compared: pooled, those of labels
    that nothing tells would lie below 0.5. An interval speaks of other patients, and in curves of other draws of the
    few labels too; not of other folds.

    Args:
        question: What is asked.
        features: By name of encoder, (N, E).
        shots: Labels of the curve.
        draws: Of the bootstrap over patients.
        seed: Of the bootstrap, and of the few labels.
        tell: Called with the name of each encoder, as its turn comes.
    """
    question, notes = askable(question)
    fewest = min(
        len({subject for subject, own in zip(question.subjects_N, question.folds_N, strict=True) if own != fold})
        for fold in set(question.folds_N)
    )
    beyond = [count for count in shots if count > fewest]
    if beyond:
        counts = ", ".join(map(str, beyond))
        notes.append(f"curves without {counts} labels: the other folds have {fewest} patients")
    numbers: dict[str, dict[_Place, _Number]] = {}
    for name, features_NE in features.items():
        tell(name)
        wanted = [count for count in shots if count <= fewest]
        numbers[name], said = _of_encoder(question, np.asarray(features_NE, np.float64), wanted, draws, seed)
        notes += [note for note in said if note not in notes]
    rows = [_row(name, place, one) for name, found in numbers.items() for place, one in found.items()]
    differences = [
        _row(
            f"{later} - {earlier}",
            place,
            _Number(
                value=one.value - numbers[earlier][place].value,
                drawn_D=one.drawn_D - numbers[earlier][place].drawn_D,
                n=one.n,
            ),
        )
        for earlier, later in combinations(numbers, 2)
        for place, one in numbers[later].items()
        if place in numbers[earlier] and place[3] == ALL
    ]
    facts = {
        "kind": question.kind,
        "labels": list(question.labels),
        "scans": len(question.keys_N),
        "patients": len(set(question.subjects_N)),
        "folds": len(set(question.folds_N)),
        "bootstrap_draws": draws,
        "headline": HEADLINE[question.kind],
    }
    return Card(rows=tuple(rows), differences=tuple(differences), notes=(*question.notes, *notes), facts=facts)


def _of_encoder(
    question: Question, features_NE: Floats, shots: Sequence[int], draws: int, seed: int
) -> tuple[dict[_Place, _Number], list[str]]:
    subjects_N, folds_N = np.array(question.subjects_N), np.array(question.folds_N)
    times_ND = draw_patients(question.subjects_N, draws=draws, seed=seed)
    headline, several = HEADLINE[question.kind], len(question.labels) > 1
    overall = "mean" if several else question.labels[0]
    found: dict[_Place, _Number] = {}

    def ask(probe: Probe, count: int | None = None, repeat: int = 0) -> Floats:
        return out_of_fold(
            probe, question.kind, features_NE, question.truth_NL, folds_N, subjects_N,
            shots=count, seed=seed + 1000 * repeat,
        )  # fmt: skip

    linear_NL = np.zeros((0, 0))
    for probe in PROBES:
        said_NL = ask(probe)
        for metric, one in _measured(question.kind, question.truth_NL, said_NL, folds_N, times_ND).items():
            found[probe, overall, ALL, ALL, metric] = one
        if probe == "linear":
            linear_NL = said_NL
    for place, label in enumerate(question.labels if several else ()):
        kind: Kind = "regression" if question.kind == "regression" else "binary"
        own = _measured(kind, question.truth_NL[:, [place]], linear_NL[:, [place]], folds_N, times_ND)
        found["linear", label, ALL, ALL, headline] = own[headline]
    drawn = np.random.default_rng(seed).integers(REPEATS, size=(REPEATS, draws))
    for count in shots:
        repeats = [
            _measured(question.kind, question.truth_NL, ask("linear", count, repeat), folds_N, times_ND)[headline]
            for repeat in range(REPEATS)
        ]
        stacked_RD = np.stack([one.drawn_D for one in repeats])
        found["linear", overall, count, ALL, headline] = _Number(
            value=float(np.mean([one.value for one in repeats])),
            drawn_D=np.take_along_axis(stacked_RD, drawn, axis=0).mean(0),
            n=repeats[0].n,
        )
    groups, notes = _gaps(question, linear_NL, folds_N, times_ND)
    for group, one in groups.items():
        found["linear", overall, ALL, group, headline] = one
    return found, notes


def _gaps(question: Question, said_NL: Floats, folds_N: Ints, times_ND: Times) -> tuple[dict[str, _Number], list[str]]:
    """The headline of each group, and that minus the headline of the others."""
    headline = HEADLINE[question.kind]
    found: dict[str, _Number] = {}
    notes = []

    def of(rows_N: NDArray[np.bool_]) -> _Number:
        return _measured(question.kind, question.truth_NL[rows_N], said_NL[rows_N], folds_N[rows_N], times_ND[rows_N])[
            headline
        ]

    for name, groups_N in question.groups.items():
        own_N = np.array([group or "" for group in groups_N])
        names = sorted(set(own_N) - {""})
        small = [group for group in names if (own_N == group).sum() < LEAST_IN_GROUP]
        names = [group for group in names if group not in small]
        if small:
            notes.append(f"{name}: nothing of {', '.join(small)}: fewer than {LEAST_IN_GROUP} scans")
        if len(names) < 2:
            continue
        for place, group in enumerate(names):
            one, others = of(own_N == group), of((own_N != group) & np.isin(own_N, names))
            if not np.isfinite(one.value) or not np.isfinite(others.value):
                notes.append(f"{name}: nothing of {group}: {headline} is undefined there")
                continue
            found[f"{name}: {group}"] = one
            if len(names) > 2 or place == 0:
                found[f"{name}: {group} - others"] = _Number(
                    value=one.value - others.value, drawn_D=one.drawn_D - others.drawn_D, n=one.n + others.n
                )
    return found, notes


def _measured(kind: Kind, truth_NL: Floats, said_NL: Floats, folds_N: Ints, times_ND: Times) -> dict[str, _Number]:
    """Each measure; of the scans that a probe said something of."""
    known_N = np.isfinite(said_NL).all(1) if kind == "multiclass" else np.isfinite(said_NL).any(1)
    truth_NL, said_NL, folds_N, times_ND = truth_NL[known_N], said_NL[known_N], folds_N[known_N], times_ND[known_N]
    once_N1 = undrawn(len(truth_NL))
    columns = [np.isfinite(said_NL[:, label]) for label in range(truth_NL.shape[1])]
    if all(one.all() for one in columns):
        value, drawn = (drawn_measures(kind, truth_NL, said_NL, times) for times in (once_N1, times_ND))
    else:  # a label that some folds could not learn is judged where it was
        each = [
            [
                drawn_measures(kind, truth_NL[rows][:, [label]], said_NL[rows][:, [label]], times[rows])
                for times in (once_N1, times_ND)
            ]
            for label, rows in enumerate(columns)
        ]
        value, drawn = ({name: _mean([one[side][name] for one in each]) for name in each[0][0]} for side in (0, 1))
    if kind != "regression":
        areas = [
            [
                drawn_areas(
                    truth_NL[rows, label].astype(np.int64), said_NL[rows, label], times[rows], strata_N=folds_N[rows]
                )
                for label, rows in enumerate(columns)
            ]
            for times in (once_N1, times_ND)
        ]
        value[AUC], drawn[AUC] = map(_mean, areas)
    return {name: _Number(value=float(value[name][0]), drawn_D=drawn[name], n=len(truth_NL)) for name in drawn}


def _mean(values: Sequence[Floats]) -> Floats:
    """Of those that are defined, in each draw."""
    stacked = np.stack(values)
    defined = np.isfinite(stacked)
    total, count = np.where(defined, stacked, 0).sum(0), defined.sum(0)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def askable(question: Question) -> tuple[Question, list[str]]:
    """The question without labels that too few patients have, or lack, and a note for each of these.

    Raises:
        UserError: No label is left.
    """
    if question.kind not in ("binary", "multilabel"):
        return question, []
    subjects_N, folds_N = np.array(question.subjects_N), np.array(question.folds_N)
    kept, notes = [], []
    for place, label in enumerate(question.labels):
        fewest = min(
            len(set(subjects_N[(folds_N != fold) & (question.truth_NL[:, place] == side)]))
            for side in (0, 1)
            for fold in set(question.folds_N)
        )
        if fewest < LEAST_OF_CLASS:
            notes.append(f"{label}: not asked about: a fold's training part has {fewest} patients of one side")
        else:
            kept.append(place)
    if not kept:
        raise UserError(f"no label can be probed: {notes[0]}; give more scans, or fewer --folds")
    return (
        replace(
            question,
            kind=question.kind if len(kept) > 1 else "binary",
            labels=tuple(question.labels[place] for place in kept),
            truth_NL=question.truth_NL[:, kept],
        ),
        notes,
    )


def _row(encoder: str, place: _Place, one: _Number) -> Row:
    probe, label, labels, group, metric = place
    interval = percentile_interval(one.drawn_D)
    return Row(
        encoder=encoder, probe=probe, label=label, labels=labels, group=group, metric=metric,
        value=_defined(one.value), low=_defined(interval.low), high=_defined(interval.high), n=one.n,
    )  # fmt: skip


def _defined(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
