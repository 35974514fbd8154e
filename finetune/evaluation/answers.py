"""What a model's answers to the question of a user's table are worth: the field's measures, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.evaluation.areas import Estimate
from finetune.evaluation.compare import Comparison, comparison_of, own_names
from finetune.evaluation.measures import HEADLINE, Kind, drawn_measures
from finetune.evaluation.predictions import ID, MODALITY, SUBJECT, TARGET_PREFIX, read_frame
from finetune.metrics import DRAWS, draw_patients, percentile_interval, undrawn
from harmonize.corpus import Corpus
from harmonize.errors import UserError, WrongUse

SOURCE = "source"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Answers and truth of some series, none of whose patients the model was trained on.

    Attributes:
        name: Of the run.
        asks: What the labels are.
        labels: Their names.
        scan_ids_N: The series.
        subjects_N: Their patients.
        groups: What each series belongs to, (N,) by ``modality`` and, where a corpus says it, ``source``.
        truth_NL: 0 and 1, or numbers.
        said_NL: Probabilities, or numbers.
    """

    name: str
    asks: Kind
    labels: tuple[str, ...]
    scan_ids_N: tuple[str, ...]
    subjects_N: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]]
    truth_NL: NDArray[np.float64]
    said_NL: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Some series, or one label of all.

    Attributes:
        name: Of the group or the label.
        series: How many.
        patients: Likewise.
        positives: How many series have the label; None for groups and numbers.
        measures: By name, in the order in which they are told.
    """

    name: str
    series: int
    patients: int
    positives: int | None
    measures: dict[str, Estimate]

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        counts = {"series": self.series, "patients": self.patients}
        if self.positives is not None:
            counts["positives"] = self.positives
        return counts | {name: one.facts() for name, one in self.measures.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Worth:
    """What answers are worth.

    Attributes:
        answers: Those.
        draws: Of the bootstrap over patients.
        overall: All series.
        labels: Each label.
        groups: The series of each modality, and of each source, where there are several.
    """

    answers: Answers
    draws: int
    overall: Measured
    labels: tuple[Measured, ...]
    groups: Mapping[str, tuple[Measured, ...]]

    @property
    def headline(self) -> str:
        """The measure that is the score."""
        return HEADLINE[self.answers.asks]

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.answers.name,
            "asks": self.answers.asks,
            "bootstrap_draws": self.draws,
            "overall": self.overall.facts(),
            "labels": {one.name: one.facts() for one in self.labels},
            **{f"by_{group}": {one.name: one.facts() for one in found} for group, found in self.groups.items()},
        }


def read_answers(source: Path, *, asks: Kind, labels: Sequence[str], corpus: Corpus | None = None) -> Answers:
    """Read the predictions of a run or of a cross-validation.

    Args:
        source: Its folder.
        asks: What the labels are.
        labels: The task's.
        corpus: Says the source of each series.

    Raises:
        UserError: Nothing usable is there.
    """
    frame, name = read_frame(source)
    columns = [*labels, *(f"{TARGET_PREFIX}{label}" for label in labels)]
    lacking = [column for column in (*columns, SUBJECT, MODALITY) if column not in frame]
    if lacking or not len(frame):
        raise UserError(f"{source}: its predictions lack {', '.join(lacking) or 'series'}; train again")
    frame = frame.sort_values(ID, ignore_index=True)
    values = frame[columns].to_numpy(np.float64)
    if frame[ID].duplicated().any() or not np.isfinite(values).all():
        raise UserError(f"{source}: its predictions are damaged (a series twice, or no numbers); train again")
    groups = {MODALITY: tuple(frame[MODALITY].astype(str))}
    if corpus is not None:
        known = dict(zip(corpus.scans[ID], corpus.scans[SOURCE], strict=True))
        groups[SOURCE] = tuple(known.get(scan_id, "unknown") for scan_id in frame[ID])
    return Answers(
        name=name,
        asks=asks,
        labels=tuple(labels),
        scan_ids_N=tuple(frame[ID]),
        subjects_N=tuple(frame[SUBJECT].astype(str)),
        groups=groups,
        truth_NL=values[:, len(labels) :],
        said_NL=values[:, : len(labels)],
    )


def measure(answers: Answers, *, draws: int = DRAWS, seed: int = 0) -> Worth:
    """Measure answers.

    Args:
        answers: Those.
        draws: Of the bootstrap over patients.
        seed: Of the bootstrap.
    """
    everything = np.ones(len(answers.scan_ids_N), dtype=bool)
    columns = list(range(len(answers.labels)))
    asks_one: Kind = "regression" if answers.asks == "regression" else "binary"

    def of(name: str, rows_N: NDArray[np.bool_], places: Sequence[int], asks: Kind) -> Measured:
        subjects = [subject for subject, taken in zip(answers.subjects_N, rows_N, strict=True) if taken]
        truth_NL, said_NL = answers.truth_NL[rows_N][:, places], answers.said_NL[rows_N][:, places]
        value = drawn_measures(asks, truth_NL, said_NL, undrawn(len(subjects)))
        drawn = drawn_measures(asks, truth_NL, said_NL, draw_patients(subjects, draws=draws, seed=seed))
        counted = len(places) == 1 and asks == "binary"
        return Measured(
            name=name,
            series=len(subjects),
            patients=len(set(subjects)),
            positives=int(truth_NL.sum()) if counted else None,
            measures={
                key: Estimate(value=float(value[key][0]), interval=percentile_interval(drawn[key])) for key in drawn
            },
        )

    groups = {
        group: tuple(of(name, np.array(names) == name, columns, answers.asks) for name in sorted(set(names)))
        for group, names in answers.groups.items()
        if len(set(names)) > 1
    }
    return Worth(
        answers=answers,
        draws=draws,
        overall=of("all series", everything, columns, answers.asks),
        labels=tuple(of(label, everything, [place], asks_one) for place, label in enumerate(answers.labels)),
        groups=groups,
    )


def compare_answers(runs: Sequence[Answers], *, draws: int = DRAWS, seed: int = 0) -> Comparison:
    """Compare runs on the series that all of them answered; arguments as for `compare`.

    Raises:
        WrongUse: They share no series, ask otherwise, or disagree about what is true.
    """
    if len(runs) < 2:
        raise WrongUse("one run cannot be compared; give two or more")
    first = runs[0]
    common = sorted(set(first.scan_ids_N).intersection(*(run.scan_ids_N for run in runs[1:])))
    if any((run.asks, run.labels) != (first.asks, first.labels) for run in runs):
        raise WrongUse(f"{', '.join(run.name for run in runs)}: do not ask the same; compare runs on one table")
    if not common:
        raise WrongUse(f"{', '.join(run.name for run in runs)}: no series was answered by all of them")
    rows = [[run.scan_ids_N.index(scan_id) for scan_id in common] for run in runs]
    truths = [run.truth_NL[own] for run, own in zip(runs, rows, strict=True)]
    if any((truth_NL != truths[0]).any() for truth_NL in truths):
        raise WrongUse(f"{', '.join(run.name for run in runs)}: disagree about what is true; compare runs on one table")
    names = own_names([run.name for run in runs])
    notes = tuple(
        f"{name}: {left} of its {len(run.scan_ids_N)} series were not answered by all runs and are left out."
        for name, run in zip(names, runs, strict=True)
        if (left := len(run.scan_ids_N) - len(common))
    )
    subjects = [first.subjects_N[row] for row in rows[0]]
    times_ND = draw_patients(subjects, draws=draws, seed=seed)
    said = [run.said_NL[own] for run, own in zip(runs, rows, strict=True)]
    return comparison_of(
        names,
        [drawn_measures(first.asks, truths[0], said_NL, undrawn(len(common))) for said_NL in said],
        [drawn_measures(first.asks, truths[0], said_NL, times_ND) for said_NL in said],
        subjects_N=subjects,
        notes=notes,
    )
