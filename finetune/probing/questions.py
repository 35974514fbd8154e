"""What a corpus is asked in a probe: labels of a table or its own, folds of patients, and groups of scans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from finetune.dealing import deal
from finetune.evaluation.measures import Kind
from finetune.label_table import read_labels
from finetune.probing.groups import read_groups
from finetune.probing.judge import Question
from finetune.tasks import DEFAULT, make_task, task_configs
from finetune.tasks.table import shares_of_labels
from harmonize.corpus import Corpus
from harmonize.errors import UserError, WrongUse


def read_question(
    corpus: Corpus,
    labels: Path | None = None,
    *,
    columns: Sequence[str] = (),
    groups: Sequence[str] = (),
    folds: int = 5,
    seed: int = 0,
) -> Question:
    """What is asked about the scans of a corpus.

    Args:
        corpus: Whose scans.
        labels: A table of labels; None takes those of the corpus: what its source labels, else the user's own table.
        columns: Of the table, that are asked about.
        groups: Columns of it, or of the corpus's own table, that divide the scans into groups.
        folds: Into how many the patients are dealt.
        seed: Of the dealing.

    Raises:
        UserError: Nothing can be asked.
    """
    kind, names, values, asked, notes = _labels_of(corpus, labels, columns, groups)
    scans = corpus.scans[corpus.scans["scan_id"].isin(values)]
    rows: list[dict[Any, Any]] = scans.to_dict("records")
    subjects = tuple(f"{row['source']}/{row['subject']}" for row in rows)
    truth_NL = np.array([values[row["scan_id"]] for row in rows], dtype=np.float64).reshape(len(rows), len(names))
    patients = len(set(subjects))
    if folds < 2 or patients < folds:
        raise WrongUse(f"--folds {folds}: needs to be 2 or more, and no more than the {patients} patients with a label")
    table = pd.DataFrame(
        {
            "scan_id": scans["scan_id"].to_numpy(),
            "subject": subjects,
            "modality": scans["modality"].to_numpy(),
            "labels": shares_of_labels(kind, truth_NL),
        }
    )
    fold_of = deal(table, folds, seed=seed)
    return Question(
        kind=kind,
        labels=names,
        keys_N=tuple((row["source"], row["scan_id"]) for row in rows),
        subjects_N=subjects,
        folds_N=tuple(fold_of[row["scan_id"]] for row in rows),
        truth_NL=truth_NL,
        groups=read_groups(corpus, rows, labels, named=groups, asked=asked),
        notes=notes,
    )


def _labels_of(
    corpus: Corpus, path: Path | None, columns: Sequence[str], groups: Sequence[str]
) -> tuple[Kind, tuple[str, ...], Mapping[str, Sequence[float]], tuple[str, ...], tuple[str, ...]]:
    """Kind, names and values by scan id, the columns that they are of, and notes."""
    if path is None and not columns and corpus.labels["labels"].notna().any():
        task = make_task(task_configs()[DEFAULT]())
        chosen = task.cases(corpus)
        values = {case.scan_id: case.labels for case in chosen.cases}
        return task.asks, task.labels, values, (), (chosen.summary(),)
    if path is None and not len(corpus.table):
        raise WrongUse(f"{corpus.path}: has no labels; give a table with --labels")
    found = read_labels(path, corpus, columns=columns, naming="--columns {}", without=groups)
    return found.kind, found.labels, found.values, found.columns, tuple(found.lines())


def only(question: Question, keys: set[tuple[str, str]]) -> Question:
    """The question about some scans alone.

    Raises:
        UserError: There are none, or a fold is empty.
    """
    kept = [place for place, key in enumerate(question.keys_N) if key in keys]
    left = len(question.keys_N) - len(kept)
    if len({question.folds_N[place] for place in kept}) < 2:
        raise UserError(f"{len(kept)} scans have both labels and vectors; embed the corpus of the labels")
    return replace(
        question,
        keys_N=tuple(question.keys_N[place] for place in kept),
        subjects_N=tuple(question.subjects_N[place] for place in kept),
        folds_N=tuple(question.folds_N[place] for place in kept),
        truth_NL=question.truth_NL[kept],
        groups={name: tuple(groups[place] for place in kept) for name, groups in question.groups.items()},
        notes=(*question.notes, *([f"{left} scans with a label have no vector"] if left else [])),
    )
