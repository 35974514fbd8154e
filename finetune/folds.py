"""Which fold each patient is held out in: dealt once from a corpus's whole label table, and kept beside it.

A fold is a property of the data. It follows from the label table, refused series included, and from `data.fold_seed`
alone: neither the seed of a training run nor what could be harmonized moves a patient, so runs on one corpus, and on
two corpora of one table, hold out the same patients.
"""

from __future__ import annotations

import errno
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from finetune.dealing import deal
from finetune.recipe import Recipe
from finetune.series import Case
from harmonize.corpus import Corpus, lock, named_files
from harmonize.errors import UserError, WrongUse
from harmonize.files import atomic_path
from harmonize.parquet import read_parquet
from harmonize.terminal import warn
from headspark.config.text import read_mapping
from headspark.run.claim import has_taken_a_step
from headspark.run.folder import FINISHED, RECIPE, read_state

FOLDS = "folds.parquet"
"""In the corpus; in a run's folder where the corpus cannot be written, or the run was begun by version 0.1.0."""

SCHEMA = pa.schema([("subject", pa.string()), ("scan_id", pa.string()), ("fold", pa.int32())])
LOCK = ".folds.lock"
NO_WRITING = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOLCK}


@dataclass(frozen=True, slots=True, kw_only=True)
class Folds:
    """Folds of the series of a label table.

    Attributes:
        subjects: Patient of each series, by scan id.
        fold_of: Fold of each series, by scan id.
        folds: Into how many they were dealt.
        seed: `data.fold_seed`.
        stored: Whether all of them stand in a file.
    """

    subjects: Mapping[str, str]
    fold_of: Mapping[str, int]
    folds: int
    seed: int
    stored: bool = True

    def split(self, cases: Sequence[Case], fold: int) -> tuple[list[Case], list[Case]]:
        """Training and held-out series.

        Raises:
            UserError: One of the two is empty.
        """
        training = [case for case in cases if self.fold_of[case.scan_id] != fold]
        held_out = [case for case in cases if self.fold_of[case.scan_id] == fold]
        if not training or not held_out:
            which = "left to train on" if not training else f"in fold {fold}"
            raise UserError(f"data.fold {fold}: of {len(cases)} usable series none is {which}; choose another fold")
        return training, held_out


def folds_of_run(corpus: Corpus, source: str, recipe: Recipe, cases: Sequence[Case], out: Path) -> Folds:
    """The folds that a run uses: its own where it has them, else the corpus's. Writes nothing.

    Args:
        corpus: With a label table.
        source: Whose series.
        recipe: The run's.
        cases: Its series.
        out: Its folder, which may hold an unfinished run.

    Raises:
        UserError: As `corpus_folds`.
    """
    # The recipe first: a run that is taken up at this moment writes its folds before its recipe.
    if began_with_version_0_1_0(out):
        return folds_of_version_0_1_0(cases, recipe.data.folds, seed=recipe.train.seed)
    own = read_folds(out / FOLDS) if has_taken_a_step(out) else None
    return own or corpus_folds(corpus, source, recipe.data.folds, seed=recipe.data.fold_seed)


def own_folds(cases: Sequence[Case], labels: Sequence[Sequence[int]], recipe: Recipe, out: Path) -> Folds:
    """The folds of a run whose labels are those of a table of its own: they follow from that. Writes nothing.

    Args:
        cases: All series that the table labels.
        labels: Of each, 0 or 1, of which each fold gets its share.
        recipe: The run's.
        out: Its folder, which may hold an unfinished run.

    Raises:
        UserError: There are fewer patients than folds.
    """
    known = read_folds(out / FOLDS) if has_taken_a_step(out) else None
    if known is not None:
        return known
    rows = [
        {"scan_id": case.scan_id, "subject": case.subject, "modality": case.modality, "labels": list(own)}
        for case, own in zip(cases, labels, strict=True)
    ]
    return Folds(
        subjects={case.scan_id: case.subject for case in cases},
        fold_of=deal(pd.DataFrame(rows), recipe.data.folds, seed=recipe.data.fold_seed),
        folds=recipe.data.folds,
        seed=recipe.data.fold_seed,
        stored=False,
    )


def began_with_version_0_1_0(out: Path) -> bool:
    """Whether a folder holds an unfinished run of version 0.1.0, which knew no `data.fold_seed`."""
    state = read_state(out)
    if state is None or state.get("status") == FINISHED or not has_taken_a_step(out):
        return False
    try:
        recipe = read_mapping(out / RECIPE)
    except UserError:
        return False
    return isinstance(recipe.get("data"), dict) and "fold_seed" not in recipe["data"]


def corpus_folds(corpus: Corpus, source: str, folds: int, *, seed: int) -> Folds:
    """The folds of a corpus: those of its folds.parquet, and of the series that it lacks. Writes nothing.

    Args:
        corpus: With a label table.
        source: Whose series.
        folds: `data.folds`.
        seed: `data.fold_seed`.

    Raises:
        UserError: The file is damaged or was dealt otherwise, or there are fewer patients than folds.
    """
    return _completed(corpus, source, folds, seed)


def keep_folds(found: Folds, corpus: Corpus, source: str | None, run: Path) -> None:
    """Write folds into the corpus that they were dealt for, or into the run's folder where that cannot be.

    Args:
        found: Of `corpus_folds`.
        corpus: Whose.
        source: Of the series; None: they are the run's own.
        run: The run's folder.

    Raises:
        UserError: Another run has dealt the corpus otherwise meanwhile, or the disk is full.
    """
    path = corpus.path / FOLDS
    if source is None:
        write_folds(run / FOLDS, found)
        return
    try:
        with ExitStack() as stack:
            waiting = f"{corpus.path}: another run is dealing the folds; waiting for it"
            try:
                stack.enter_context(lock.turn(corpus.path / LOCK, waiting=waiting))
            except UserError as error:
                raise OSError(errno.ENOLCK, "its file system has no locks") from error
            again = _completed(corpus, source, found.folds, found.seed)
            if not again.stored:
                write_folds(path, again)
    except OSError as error:
        if error.errno not in NO_WRITING:
            raise UserError(f"{path}: cannot be written ({error.strerror}); make room, then run again") from error
        warn(f"note: {corpus.path} cannot be written ({error.strerror}): the run keeps its folds in {run / FOLDS}")
        write_folds(run / FOLDS, found)


def read_folds(path: Path) -> Folds | None:
    """What `write_folds` wrote; None where there is no file.

    Raises:
        UserError: The file is something else.
    """
    if not path.exists():
        return None
    try:
        facts = pq.read_schema(path).metadata or {} if path.is_file() else {}
        table = read_parquet(path, SCHEMA)
        named_files.check(table, where=str(path), folders={})
        rows = table.to_pandas()
        found = Folds(
            subjects=dict(zip(rows["scan_id"], rows["subject"], strict=True)),
            fold_of={scan: int(fold) for scan, fold in zip(rows["scan_id"], rows["fold"], strict=True)},
            folds=int(facts[b"folds"]),
            seed=int(facts[b"fold_seed"]),
        )
        if not all(0 <= fold < found.folds for fold in found.fold_of.values()) or rows.isna().any(axis=None):
            raise ValueError("a fold that there is not")
        return found
    except (pa.ArrowException, KeyError, ValueError, TypeError, OSError) as error:
        raise UserError(
            f"{path}: cannot be read as the folds of a corpus ({type(error).__name__}); restore it, or delete it to "
            "deal the patients again"
        ) from error


def write_folds(path: Path, found: Folds) -> None:
    """Write folds atomically; the same folds give the same file."""
    rows = [{"subject": found.subjects[scan], "scan_id": scan, "fold": found.fold_of[scan]} for scan in found.fold_of]
    rows.sort(key=lambda row: (row["subject"], row["scan_id"]))
    facts = {"folds": str(found.folds), "fold_seed": str(found.seed)}
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA.with_metadata(facts)), temporary, compression="zstd")


def folds_of_version_0_1_0(cases: Sequence[Case], folds: int, *, seed: int) -> Folds:
    """What version 0.1.0 dealt, from the accepted series and the seed of the training run: for runs that it began."""
    by_subject: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        by_subject[case.subject].append(case)
    strata: dict[tuple[bool, str], list[str]] = defaultdict(list)
    for subject in sorted(by_subject):
        series = by_subject[subject]
        strata[any(any(case.labels) for case in series), min(case.modality for case in series)].append(subject)
    generator = np.random.default_rng(seed)
    dealt = [subject for key in sorted(strata) for subject in generator.permutation(strata[key])]
    fold_of = {subject: number % folds for number, subject in enumerate(dealt)}
    return Folds(
        subjects={case.scan_id: case.subject for case in cases},
        fold_of={case.scan_id: fold_of[case.subject] for case in cases},
        folds=folds,
        seed=seed,
        stored=False,
    )


def _completed(corpus: Corpus, source: str, folds: int, seed: int) -> Folds:
    """The folds of the corpus's file, and of the series of the label table that it lacks."""
    path, table = corpus.path / FOLDS, corpus.labels[corpus.labels["source"] == source]
    there = read_folds(path)
    if there is not None and (there.folds, there.seed) != (folds, seed):
        raise WrongUse(
            f"{path}: this corpus was dealt into data.folds {there.folds} with data.fold_seed {there.seed}, now "
            f"{folds} with {seed} are asked for; use those, or delete the file to deal the patients again (runs on the "
            "old folds are then no longer comparable)",
        )
    known, subjects = ({}, {}) if there is None else (there.fold_of, there.subjects)
    named = {str(scan): str(subject) for scan, subject in zip(table["scan_id"], table["subject"], strict=True)}
    if there is not None and named.keys() <= known.keys():
        return there
    return Folds(
        subjects={**named, **subjects},
        fold_of=deal(table, folds, seed=seed, known=known),
        folds=folds,
        seed=seed,
        stored=False,
    )
