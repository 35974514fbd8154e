"""Soft labels that another model predicted, for series that nobody labelled."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any

import pyarrow as pa

from finetune.evaluation.predictions import IDS
from finetune.folds import Folds
from finetune.series import Case
from harmonize.bounded_files import read_small
from harmonize.errors import UserError, WrongUse
from harmonize.parquet import read_parquet
from harmonize.sources.tables import number_of, read_table

LARGEST_FILE = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class PseudoLabels:
    """A table of predictions.

    Attributes:
        path: The file, for messages.
        sha256: Of its content.
        labels: Probabilities of each series, by its id, columns as the task's labels.
    """

    path: Path
    sha256: str
    labels: Mapping[str, tuple[float, ...]]


def read_pseudo_labels(path: Path, labels: Sequence[str]) -> PseudoLabels:
    """Read predictions: a .parquet of a run, or what `finetune predict --out` writes (.parquet, .csv).

    Args:
        path: The file.
        labels: The task's; a column each.

    Raises:
        UserError: It cannot be read, lacks a column, names a series twice, or has something else than probabilities.
    """
    if not path.exists():
        raise WrongUse(f"--pseudo-labels {path}: no such file; give a table that `finetune predict --out` wrote")
    try:
        content = read_small(path, limit=LARGEST_FILE)
        if path.suffix == ".parquet":
            table = read_parquet(path).to_pandas()
            columns, rows = list(table.columns), table.to_dict("records")
        else:
            found = read_table(path, [], [*IDS, *labels])
            columns, rows = list(found.columns), list(found.rows)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"--pseudo-labels {path}: cannot be read ({type(error).__name__}); predict again") from error
    name = next((one for one in IDS if one in columns), None)
    missing = [label for label in labels if label not in columns]
    if name is None or missing:
        what = f"a column {', '.join(missing)}" if name is not None else f"a column of ids ({', '.join(IDS)})"
        raise WrongUse(f"--pseudo-labels {path}: lacks {what}; give a table that `finetune predict --out` wrote")
    soft = {str(row[name]): tuple(_probability(row[label]) for label in labels) for row in rows}
    if len(soft) < len(rows):
        raise WrongUse(f"--pseudo-labels {path}: a series stands there twice; keep one row of each")
    if any(math.isnan(value) for values in soft.values() for value in values):
        raise WrongUse(f"--pseudo-labels {path}: a value is no probability between 0 and 1; predict again")
    return PseudoLabels(path=path, sha256=hashlib.sha256(content).hexdigest(), labels=soft)


def pseudo_labelled(
    found: PseudoLabels, unlabelled: Sequence[Case], labelled: Sequence[Case], folds: Folds, held_out: int
) -> tuple[list[Case], Counter[str]]:
    """The unlabelled series of the corpus with what was predicted for them.

    Args:
        found: What was predicted.
        unlabelled: Series that nobody labelled.
        labelled: The others.
        folds: Of all patients.
        held_out: The fold that nothing may be learned of.

    Returns:
        The series, to be trained on, and how many predictions were left out, by why.

    Raises:
        WrongUse: None is left.
    """
    fold_of_subject = {subject: folds.fold_of[scan] for scan, subject in folds.subjects.items()}
    by_id, with_labels = {case.scan_id: case for case in unlabelled}, {case.scan_id for case in labelled}
    cases, left_out = [], Counter[str]()
    for scan_id, soft in sorted(found.labels.items()):
        case = by_id.get(scan_id)
        if case is None:
            left_out["with labels of their own" if scan_id in with_labels else "not in the corpus"] += 1
        elif fold_of_subject.get(case.subject) == held_out:
            left_out["of held-out patients"] += 1
        else:
            # Where its findings are, nobody knows.
            cases.append(replace(case, labels=soft, spots=(), spots_complete=False, pseudo=True))
    if not cases:
        reasons = ", ".join(f"{count} {why}" for why, count in sorted(left_out.items())) or "it is empty"
        raise WrongUse(f"--pseudo-labels {found.path}: no series is left to train on ({reasons})")
    return cases, left_out


def summary(found: PseudoLabels, cases: Sequence[Case], left_out: Counter[str]) -> str:
    """One line for a person."""
    line = f"{len(cases)} more series with labels of {found.path.name}"
    reasons = ", ".join(f"{count} {why}" for why, count in sorted(left_out.items()))
    return f"{line}; left out: {reasons}" if reasons else line


def _probability(value: Any) -> float:
    """The number of a field; NaN where it is none from 0 to 1."""
    number = number_of(value) if isinstance(value, str) else value
    found = float(number) if isinstance(number, Real) and not isinstance(number, bool) else math.nan
    return found if 0 <= found <= 1 else math.nan
