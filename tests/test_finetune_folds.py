"""Folds belong to the label table: not to the training seed, not to what was refused, and additions move nobody."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune import folds as folds_module
from finetune.dealing import deal
from finetune.folds import FOLDS, Folds, corpus_folds, folds_of_run, keep_folds, read_folds
from finetune.recipe import Recipe, TrainConfig
from finetune.samples import DataConfig
from finetune.series import Case
from harmonize.corpus import Corpus, claim, image_name, write_manifest
from harmonize.corpus.verify import verify
from harmonize.errors import UserError
from harmonize.labels import LABELS
from harmonize.settings import Settings
from headspark.config import to_yaml
from headspark.run.folder import METRICS, RECIPE, STATE

MODALITIES = ("CTA", "MRA", "T2w", "T1post")


def labels_of(present: bool) -> list[int]:
    return [0] * (len(LABELS) - 1) + [int(present)]


def label_table(series: list[tuple[str, str, bool | None, str]]) -> pd.DataFrame:
    """Rows (scan, subject, present, modality)."""
    rows = [
        {
            "source": "rsna",
            "scan_id": scan,
            "subject": subject,
            "modality": modality,
            "labels": None if present is None else labels_of(present),
        }
        for scan, subject, present, modality in series
    ]
    return pd.DataFrame(rows, columns=["source", "scan_id", "subject", "modality", "labels"])


def write_tables(path: Path, table: pd.DataFrame, *, refused: frozenset[str] = frozenset()) -> Corpus:
    """A corpus of tables alone: no image is looked at to deal folds."""
    claim(path, "rsna", Settings())
    accepted = []
    for row in table.to_dict("records"):
        if row["scan_id"] in refused:
            continue
        image = image_name("rsna", row["subject"], row["scan_id"])
        accepted.append({**row, "image_file_name": image, "unit": "HU", "decisions": [], "points": []})
    rejected = [
        {"source": "rsna", "raw_hash": scan, "stage": "load", "reason": "truncated", "message": "cut"}
        for scan in sorted(refused)
    ]
    write_manifest(path, accepted, rejected, table.to_dict("records"))
    return Corpus.open(path)


patients = st.lists(
    st.tuples(st.sampled_from([True, False, None]), st.sampled_from(MODALITIES), st.integers(1, 3)),
    min_size=6,
    max_size=40,
)


def table_of(drawn: list[tuple[bool | None, str, int]], prefix: str = "p") -> pd.DataFrame:
    return label_table(
        [
            (f"{prefix}{number}.{series}", f"{prefix}{number}", present, modality)
            for number, (present, modality, count) in enumerate(drawn)
            for series in range(count)
        ]
    )


@settings(max_examples=25, deadline=None)
@given(patients, st.integers(2, 6), st.integers(0, 5))
def test_folds_keep_patients_together_and_share_out_each_stratum(
    drawn: list[tuple[bool | None, str, int]], count: int, seed: int
) -> None:
    table = table_of(drawn)
    fold_of = deal(table, count, seed=seed)
    found = table.assign(fold=[fold_of[scan] for scan in table["scan_id"]])
    assert (found.groupby("subject")["fold"].nunique() == 1).all()
    first = found.drop_duplicates("subject")
    strata = first.assign(present=[-1 if x is None else x[-1] for x in first["labels"]])
    for _, stratum in [*strata.groupby(["present", "modality"]), ("all", strata)]:
        sizes = np.bincount(stratum["fold"], minlength=count)
        assert sizes.max() - sizes.min() <= 1
    assert deal(table.sample(frac=1, random_state=seed), count, seed=seed) == fold_of, "order does not matter"


@settings(max_examples=15, deadline=None)
@given(patients, patients, st.integers(2, 6))
def test_patients_that_come_later_move_nobody(
    drawn: list[tuple[bool | None, str, int]], later: list[tuple[bool | None, str, int]], count: int
) -> None:
    before = table_of(drawn)
    fold_of = deal(before, count, seed=0)
    more = pd.concat([table_of(later, "a"), before, label_table([("p0.later", "p0", False, "CTA")])])
    again = deal(more, count, seed=0, known=fold_of)
    assert {scan: again[scan] for scan in fold_of} == fold_of
    assert again.keys() == set(more["scan_id"])
    assert again["p0.later"] == fold_of["p0.0"], "another series of a patient stays with the patient"


def test_rare_places_are_shared_out_among_the_folds() -> None:
    """Of 300 patients the 20 with places 0 to 3 lie in few strata, and each fold of 5 gets one of each."""
    table = table_of([(number % 2 == 0, MODALITIES[number // 2 % 4], 1) for number in range(300)])
    labels = [list(row) for row in table["labels"]]
    for place in range(4):
        for number in range(5):
            labels[2 * (7 * place + number)][place] = 1
    for number in range(0, 300, 6):
        labels[number][5] = 1
    table["labels"] = labels
    for seed in range(5):
        fold_of = deal(table, 5, seed=seed)
        found = table.assign(fold=[fold_of[scan] for scan in table["scan_id"]])
        for place in range(4):
            having = found[[row[place] == 1 for row in found["labels"]]]
            assert sorted(having["fold"]) == [0, 1, 2, 3, 4]
        sizes = np.bincount(found[[row[5] == 1 for row in found["labels"]]]["fold"], minlength=5)
        assert sizes.max() - sizes.min() <= 1
        assert (found.groupby(["modality", "fold"]).size().groupby("modality").agg(np.ptp) <= 2).all()


def test_another_fold_seed_deals_otherwise() -> None:
    table = table_of([(True, "CTA", 1)] * 20)
    assert deal(table, 4, seed=0) != deal(table, 4, seed=1)


TABLE = table_of([(number % 3 == 0, MODALITIES[number % 4], 1) for number in range(24)])


def dealt(corpus: Corpus, *, seed: int = 0) -> Folds:
    """The folds of a corpus, written as the first run on it does."""
    found = corpus_folds(corpus, "rsna", 4, seed=seed)
    keep_folds(found, corpus, "rsna", corpus.path / "run")
    assert not (corpus.path / "run").exists()
    return found


def test_two_corpora_of_one_table_have_equal_folds_whatever_was_refused(tmp_path: Path) -> None:
    whole = write_tables(tmp_path / "whole", TABLE)
    holed = write_tables(tmp_path / "holed", TABLE, refused=frozenset({"p0.0", "p7.0", "p8.0"}))
    assert len(holed.scans) == len(whole.scans) - 3
    first, second = (dealt(corpus, seed=3) for corpus in (whole, holed))
    assert first.fold_of == second.fold_of
    assert (whole.path / FOLDS).read_bytes() == (holed.path / FOLDS).read_bytes()
    assert not [fault for fault in verify(whole.path) if "folds" in fault]


def test_the_training_seed_moves_no_patient(tmp_path: Path) -> None:
    corpus = write_tables(tmp_path / "corpus", TABLE)
    runs = [
        folds_of_run(
            corpus, "rsna", Recipe(data=DataConfig(folds=3), train=TrainConfig(seed=seed)), [], tmp_path / "none"
        )
        for seed in (0, 1)
    ]
    assert runs[0].fold_of == runs[1].fold_of


def test_the_file_is_read_and_another_dealing_is_refused(tmp_path: Path) -> None:
    corpus = write_tables(tmp_path / "corpus", TABLE)
    first = dealt(corpus, seed=3)
    written = (corpus.path / FOLDS).read_bytes()
    assert list(pd.read_parquet(corpus.path / FOLDS).columns) == ["subject", "scan_id", "fold"]
    again = corpus_folds(Corpus.open(corpus.path), "rsna", 4, seed=3)
    assert again.fold_of == first.fold_of
    assert again.stored
    for folds, seed in ((5, 3), (4, 2)):
        with pytest.raises(UserError, match=r"data\.folds 4 with data\.fold_seed 3") as refusal:
            corpus_folds(corpus, "rsna", folds, seed=seed)
        assert refusal.value.exit_code == 2
    assert (corpus.path / FOLDS).read_bytes() == written


def test_series_added_to_the_corpus_get_folds_and_the_old_ones_stay(tmp_path: Path) -> None:
    before = dealt(write_tables(tmp_path / "corpus", TABLE))
    grown = write_tables(tmp_path / "corpus", pd.concat([TABLE, table_of([(True, "CTA", 2)] * 3, "new")]))
    after = dealt(grown)
    assert len(after.fold_of) == len(before.fold_of) + 6
    assert after.fold_of.items() >= before.fold_of.items()
    stored = read_folds(grown.path / FOLDS)
    assert stored is not None
    assert stored.fold_of == after.fold_of
    # A scan that left the corpus keeps its fold, for the day it comes back.
    shrunk = write_tables(tmp_path / "corpus", TABLE.iloc[3:])
    assert corpus_folds(shrunk, "rsna", 4, seed=0).fold_of == after.fold_of


@pytest.mark.parametrize(
    "fault", [OSError(errno.EROFS, "Read-only file system"), UserError("this file system has no locks")]
)
def test_a_corpus_that_cannot_be_written_has_the_same_folds_and_the_run_keeps_them(
    fault: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    writable = dealt(write_tables(tmp_path / "writable", TABLE))
    corpus = write_tables(tmp_path / "corpus", TABLE)

    def refuse(path: Path, **options: object) -> None:
        raise fault

    monkeypatch.setattr(folds_module.lock, "turn", refuse)
    found = corpus_folds(corpus, "rsna", 4, seed=0)
    assert found.fold_of == writable.fold_of
    (tmp_path / "run").mkdir()
    keep_folds(found, corpus, "rsna", tmp_path / "run")
    assert "the run keeps its folds" in capsys.readouterr().err
    assert not (corpus.path / FOLDS).exists()
    own = read_folds(tmp_path / "run" / FOLDS)
    assert own is not None
    assert own.fold_of == writable.fold_of


def test_a_run_that_dealt_otherwise_meanwhile_is_noticed(tmp_path: Path) -> None:
    corpus = write_tables(tmp_path / "corpus", TABLE)
    found = corpus_folds(corpus, "rsna", 3, seed=0)
    dealt(corpus)
    with pytest.raises(UserError, match=r"data\.folds 4"):
        keep_folds(found, corpus, "rsna", tmp_path / "run")


def test_a_damaged_file_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    corpus = write_tables(tmp_path / "corpus", TABLE)
    (corpus.path / FOLDS).write_bytes(b"no table")
    with pytest.raises(UserError, match="deal the patients again"):
        corpus_folds(corpus, "rsna", 4, seed=0)
    TABLE[["subject", "scan_id"]].assign(fold=0).to_parquet(corpus.path / FOLDS)
    with pytest.raises(UserError, match="deal the patients again"):
        corpus_folds(corpus, "rsna", 4, seed=0)


def test_more_folds_than_patients_and_empty_folds_are_refused(tmp_path: Path) -> None:
    corpus = write_tables(tmp_path / "corpus", TABLE)
    with pytest.raises(UserError, match="24 patients"):
        corpus_folds(corpus, "rsna", 50, seed=0)
    assert not (corpus.path / FOLDS).exists()
    found = corpus_folds(corpus, "rsna", 4, seed=0)
    only = [case_of(scan, "CTA", True) for scan, fold in found.fold_of.items() if fold == 1]
    with pytest.raises(UserError, match=r"data\.fold 0"):
        found.split(only, 0)
    with pytest.raises(UserError, match="left to train on"):
        found.split(only, 1)


def case_of(scan: str, modality: str, present: bool) -> Case:
    return Case(
        scan_id=scan,
        subject=scan.split(".")[0],
        modality=modality,
        unit="HU",
        image=Path(),
        mask=None,
        foreground_box=(0, 1) * 3,
        labels=tuple(labels_of(present)),
    )


OF_VERSION_0_1_0 = [1, 2, 3, 1, 2, 1, 2, 0, 0, 2, 1, 2, 0, 3, 2, 0, 3, 0, 3, 1, 1, 3, 0, 3]
"""What that version dealt to the 24 series of `TABLE`, into 4 folds with the training seed 5."""


def test_a_run_that_version_0_1_0_began_keeps_its_folds(tmp_path: Path) -> None:
    corpus = write_tables(tmp_path / "corpus", TABLE)
    cases = [case_of(row.scan_id, row.modality, bool(row.labels[-1])) for row in TABLE.itertuples()]
    recipe = Recipe(data=DataConfig(folds=4), train=TrainConfig(seed=5))
    out = tmp_path / "run"
    out.mkdir()
    (out / STATE).write_text('{"status": "running"}')
    (out / METRICS).write_text('{"step": 1, "loss": 0.5}\n')
    (out / RECIPE).write_text("\n".join(line for line in to_yaml(recipe).splitlines() if "fold_seed" not in line))
    found = folds_of_run(corpus, "rsna", recipe, cases, out)
    assert [found.fold_of[case.scan_id] for case in cases] == OF_VERSION_0_1_0
    assert not found.stored
    assert not (corpus.path / FOLDS).exists()
