"""Predictions of series whose truth is known: the table that a run leaves, those of several folds, or a foreign one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harmonize.corpus import Corpus
from harmonize.errors import UserError, WrongUse
from harmonize.parquet import read_parquet
from harmonize.sources.tables import read_table
from headspark.folder_kind import seen_at

T = TypeVar("T")

PREDICTIONS = "predictions.parquet"
"""The table of a finished run, and of a cross-validation."""

TARGET_PREFIX = "target: "
"""Before a label's name: the column of its truth."""

BOX = "box"
"""How the box of a series was laid, one of `finetune.series.LAID`; a column of runs whose view finds it."""

FOLD_FOLDER = "fold_{}"
"""Of a cross-validation's folder: the run that held out the fold of that number."""

ID, SUBJECT, MODALITY, FOLD = "scan_id", "subject", "modality", "fold"
IDS = (ID, "SeriesInstanceUID", "series")
"""What the column of a foreign table may be called that names the series."""

UNKNOWN_PATIENTS = "Which series belong to one patient is not known: each counts as a patient of its own."
UNKNOWN_MODALITIES = "The modalities of the series are not known; with --corpus its manifest says them."

FOLDS = 5
"""Into how many parts series are dealt whose predictions belong to a single fold, for what is fitted to them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """Probabilities and truth of some series, none of whose patients the model was trained on.

    Attributes:
        name: Of the run or the file.
        labels: What is predicted.
        overall: The label that says whether there is anything at all; the others are sites.
        scan_ids_N: The series, in the order of their ids.
        subjects_N: Their patients.
        modalities_N: Their modalities; None where nobody says.
        folds_N: The fold that each was held out in; None where nobody says.
        targets_NL: 0 or 1.
        probabilities_NL: Between 0 and 1.
        notes: What a reader of any number should know, a line each.
    """

    name: str
    labels: tuple[str, ...]
    overall: str
    scan_ids_N: tuple[str, ...]
    subjects_N: tuple[str, ...]
    modalities_N: tuple[str, ...] | None
    folds_N: tuple[int, ...] | None
    targets_NL: NDArray[np.int64]
    probabilities_NL: NDArray[np.float64]
    notes: tuple[str, ...] = ()

    @property
    def sites(self) -> tuple[str, ...]:
        """The labels besides `overall`."""
        return tuple(label for label in self.labels if label != self.overall)

    def of(self, label: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Truth and probabilities of a label, (N,) each."""
        column = self.labels.index(label)
        return self.targets_NL[:, column], self.probabilities_NL[:, column]

    def only(self, scan_ids: Sequence[str]) -> Predictions:
        """The same of some series, in the order of their ids."""
        wanted = set(scan_ids)
        rows = np.array([number for number, scan in enumerate(self.scan_ids_N) if scan in wanted], dtype=np.int64)
        return replace(
            self,
            scan_ids_N=_taken(self.scan_ids_N, rows),
            subjects_N=_taken(self.subjects_N, rows),
            modalities_N=None if self.modalities_N is None else _taken(self.modalities_N, rows),
            folds_N=None if self.folds_N is None else _taken(self.folds_N, rows),
            targets_NL=self.targets_NL[rows],
            probabilities_NL=self.probabilities_NL[rows],
        )

    def parts(self) -> NDArray[np.int64] | None:
        """Which part each series belongs to, (N,), for what is fitted to all other parts; None with too few patients.

        These are the folds of the runs where there are several, else patients dealt with their share of `overall`.
        """
        if self.folds_N is not None and len(set(self.folds_N)) > 1:
            return np.array(self.folds_N)
        truth, _ = self.of(self.overall)
        patients = pd.Series(truth).groupby(list(self.subjects_N)).max()
        count = min(FOLDS, int(patients.sum()), int((1 - patients).sum()))
        if count < 2:
            return None
        parts_N = np.zeros(len(truth), dtype=np.int64)
        from sklearn.model_selection import StratifiedGroupKFold  # slow to load, and nothing that predicts needs it

        dealer = StratifiedGroupKFold(count, shuffle=True, random_state=0)
        for part, (_, rows) in enumerate(dealer.split(truth, truth, list(self.subjects_N))):
            parts_N[rows] = part
        return parts_N


def read(
    source: Path,
    *,
    corpus: Corpus | None = None,
    truth: Path | None = None,
    labels: Sequence[str] | None = None,
    overall: str | None = None,
) -> Predictions:
    """Read the predictions of a run, of a cross-validation, or of a file.

    Args:
        source: Folder of a finished run or of a cross-validation; or a .parquet or .csv file.
        corpus: Says patient and modality of series whose table does not.
        truth: CSV table with a row a series and a column a label, for a file without ``target: ...`` columns.
        labels: Which, and in which order; None takes all that have a truth.
        overall: The label that says whether there is anything at all; None takes the last one.

    Raises:
        UserError: Nothing usable is there.
    """
    frame, name = read_frame(source)
    if truth is not None:
        frame = _with_truth(frame, source, truth)
    told = "" if truth is None else f"--truth {truth}"
    return of_table(frame, name=name, where=str(source), corpus=corpus, labels=labels, overall=overall, told=told)


def read_of_run(path: Path, labels: Sequence[str]) -> pd.DataFrame:
    """The table of a finished run as it is, for whoever goes on computing with it.

    Args:
        path: The file.
        labels: The task's; each must be there. A truth need not.

    Raises:
        UserError: It is damaged, or another's.
    """
    frame = _read(path)
    if missing := [label for label in labels if label not in frame]:
        raise UserError(f"{path}: lacks the label {missing[0]}; it is of another task, or damaged: train again")
    _numbers(frame, [*labels, *(name for label in labels if (name := f"{TARGET_PREFIX}{label}") in frame)], str(path))
    return frame


def has_finite(predictions: pd.DataFrame, labels: Sequence[str]) -> bool:
    """Whether every probability of such a table is a number."""
    return bool(np.isfinite(predictions[list(labels)].to_numpy(dtype=np.float64)).all())


def read_frame(source: Path) -> tuple[pd.DataFrame, str]:
    """The table of a run, of a cross-validation, or of a file, and its name.

    Raises:
        UserError: Nothing usable is there.
    """
    if not source.is_dir():
        return _read(given(source)), source.stem
    frames = [_read(path) for path in _tables_of(source)]
    frame = frames[0] if len(frames) == 1 else pd.concat(frames, ignore_index=True)
    return frame, source.resolve().name or str(source)


def given(path: Path, *, option: str = "") -> Path:
    """A table as a user named it, behind an option.

    Raises:
        WrongUse: It is not there.
    """
    if not path.exists():
        raise WrongUse(f"{option}{path}: no such file; give a table that is there")
    return path


def of_table(
    frame: pd.DataFrame,
    *,
    name: str,
    where: str,
    corpus: Corpus | None = None,
    labels: Sequence[str] | None = None,
    overall: str | None = None,
    told: str = "",
) -> Predictions:
    """Check a table; arguments as for `read`.

    Args:
        frame: Columns ``scan_id``, labels, ``target: LABEL``; ``subject``, ``modality`` and ``fold`` if known.
        name: Of the run.
        where: For messages.
        corpus: As for `read`.
        labels: As for `read`.
        overall: As for `read`.
        told: What says the truth, for messages; empty: the table itself.

    Raises:
        UserError: A column is absent, a number none, or a series stands twice.
    """
    labels = _labels_of(frame, where, labels)
    if overall is not None and overall not in labels:
        raise WrongUse(f"--overall {overall}: not among the labels of {where}{_nearest(overall, labels)}")
    if not len(frame):
        raise UserError(f"{where}: holds no series; give predictions of some")
    frame = frame.assign(**{ID: frame[ID].astype(str)}).sort_values(ID, ignore_index=True)
    twice = frame[ID][frame[ID].duplicated()]
    if len(twice):
        raise UserError(
            f"{where}: the series ...{twice.iloc[0][-8:]} stands twice, and {len(twice) - 1} others; give one "
            "prediction a series (folds that hold out the same patients are no cross-validation)"
        )
    targets_NL = _numbers(frame, [f"{TARGET_PREFIX}{label}" for label in labels], told or where)
    probabilities_NL = _numbers(frame, labels, where)
    if not np.isin(targets_NL, (0, 1)).all():
        raise UserError(f"{told or where}: a truth is neither 0 nor 1; write 0 or 1")
    if probabilities_NL.min() < 0 or probabilities_NL.max() > 1:
        raise UserError(f"{where}: a prediction lies outside of 0 to 1; write probabilities")
    subjects, modalities, notes = _who(frame, corpus)
    folds_N1 = _numbers(frame, [FOLD], where) if FOLD in frame and frame[FOLD].notna().all() else None
    return Predictions(
        name=name,
        labels=tuple(labels),
        overall=labels[-1] if overall is None else overall,
        scan_ids_N=tuple(frame[ID]),
        subjects_N=subjects,
        modalities_N=modalities,
        folds_N=None if folds_N1 is None else tuple(folds_N1[:, 0].astype(int).tolist()),
        targets_NL=targets_NL.astype(np.int64),
        probabilities_NL=probabilities_NL,
        notes=notes,
    )


def _taken(values: tuple[T, ...], rows: NDArray[np.int64]) -> tuple[T, ...]:
    return tuple(values[row] for row in rows)


def _tables_of(folder: Path) -> list[Path]:
    """The table of a run or of a cross-validation, or those of its folds as far as they are finished."""
    if (folder / PREDICTIONS).exists():
        return [folder / PREDICTIONS]
    folds = sorted(folder.glob(f"{FOLD_FOLDER.format('*')}/{PREDICTIONS}"))
    if not folds:
        raise WrongUse(
            f"{folder}: no predictions there ({PREDICTIONS} is missing), but {seen_at(folder)}; let finetune train "
            "finish, or give its --out"
        )
    return folds


def _read(path: Path) -> pd.DataFrame:
    if path.suffix.lower() == ".csv":
        columns = read_table(path, ()).columns
        frame = pd.DataFrame(read_table(path, (), columns).rows, columns=list(columns)).replace("", None)
        frame = frame.rename(columns={column: column.lower() for column in columns if column.lower() == MODALITY})
    else:
        try:
            frame = read_parquet(path).to_pandas(ignore_metadata=True)
        except (OSError, ValueError) as error:
            fault = " ".join(str(error.strerror if isinstance(error, OSError) else error).split())[:120]
            raise UserError(f"{path}: damaged, or no table of predictions ({fault}); write it again") from error
    if not frame.columns.is_unique:
        raise UserError(f"{path}: a column stands twice; write each once")
    named = next((column for column in IDS if column in frame), None)
    if named is None:
        raise UserError(f"{path}: no column names the series ({', '.join(IDS)}); give a table of predictions")
    return frame.rename(columns={named: ID})


def _with_truth(frame: pd.DataFrame, source: Path, truth: Path) -> pd.DataFrame:
    """The table with a column of truth for each label that both tables have, and with the modality if there is one."""
    known = _read(given(truth, option="--truth "))
    shared = [column for column in frame if column in known and column not in {ID, SUBJECT, MODALITY, FOLD}]
    if not shared:
        raise WrongUse(f"--truth {truth}: has none of the labels of {source}; its columns must be called as they are")
    if known[ID].duplicated().any():
        raise UserError(f"--truth {truth}: a series stands twice; write one row a series")
    extra = [name for name in (SUBJECT, MODALITY) if name in known and name not in frame]
    known = known[[ID, *extra, *shared]].rename(columns={label: f"{TARGET_PREFIX}{label}" for label in shared})
    frame = frame.drop(columns=[name for name in known if name != ID and name in frame])
    joined = frame.merge(known, on=ID, how="left")
    unknown = int(joined[f"{TARGET_PREFIX}{shared[0]}"].isna().sum())
    if unknown:
        raise UserError(f"--truth {truth}: says nothing of {unknown} of the {len(frame)} series of {source}; add them")
    return joined


def _labels_of(frame: pd.DataFrame, where: str, wanted: Sequence[str] | None) -> list[str]:
    known = [str(name) for name in frame if f"{TARGET_PREFIX}{name}" in frame]
    if not known:
        raise UserError(
            f"{where}: says of no label what is true (no column `{TARGET_PREFIX}LABEL` beside a column LABEL); give "
            "the predictions of held-out series, or --truth TABLE.csv"
        )
    for label in wanted or ():
        if label not in known:
            raise WrongUse(f"--labels {label}: {where} has no such label with its truth{_nearest(label, known)}")
    return list(dict.fromkeys(wanted)) if wanted else known


def _nearest(label: str, known: Sequence[str]) -> str:
    close = get_close_matches(label, known, n=1, cutoff=0)
    return f"; the nearest is {close[0]}" if close else ""


def _numbers(frame: pd.DataFrame, columns: Sequence[str], where: str) -> NDArray[np.float64]:
    try:
        values = frame[list(columns)].astype(np.float64).to_numpy()
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}: a prediction or a truth is no number; write numbers") from error
    if not np.isfinite(values).all():
        raise UserError(f"{where}: a prediction or a truth is not finite; write numbers, or predict again")
    return values


def _who(frame: pd.DataFrame, corpus: Corpus | None) -> tuple[tuple[str, ...], tuple[str, ...] | None, tuple[str, ...]]:
    """Patient and modality of each series, and notes about what nobody says."""
    notes = []
    subjects, modalities = _column(frame, SUBJECT, corpus), _column(frame, MODALITY, corpus)
    if subjects is None:
        subjects = frame[ID]
        notes.append(UNKNOWN_PATIENTS)
    if modalities is None:
        notes.append(UNKNOWN_MODALITIES)
    return tuple(subjects), None if modalities is None else tuple(modalities), tuple(notes)


def _column(frame: pd.DataFrame, name: str, corpus: Corpus | None) -> pd.Series[str] | None:
    """A column of the table, or of the corpus for series whose table lacks it; None where one is unknown."""
    values = frame[name] if name in frame else pd.Series(None, index=frame.index, dtype=object)
    if values.isna().any() and corpus is not None:
        known: Mapping[str, str] = dict(zip(corpus.scans[ID], corpus.scans[name], strict=True))
        values = values.where(values.notna(), frame[ID].map(known))
    return None if values.isna().any() else values.astype(str)
