"""The same voxels under two names: one is kept, whoever came first, and the other comes back when it is needed."""

from __future__ import annotations

import hashlib
import itertools
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harmonize import engine, phantom
from harmonize.corpus import Corpus
from harmonize.corpus.journal import Record
from harmonize.corpus.verify import verify
from harmonize.engine import duplicates
from harmonize.labels import LABELS as LABEL_NAMES
from harmonize.settings import Settings

SETTINGS = Settings(spacing=(6.0, 6.0, 6.0))


def save(root: Path, subject: str, seed: int) -> Path:
    random = np.random.default_rng(seed)
    voxels = random.normal(10, 4, (20, 20, 16))
    voxels[4:16, 4:16, 3:13] += 200 + 80 * random.random((12, 12, 10))
    path = root / f"OpenMind/ds000001/sub-{subject}/anat/sub-{subject}_T1w.nii.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels.astype(np.float32), np.diag([-4.0, 4, 5, 1])), path)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """b, c and d hold the same; a is another scan."""
    for subject, seed in (("a", 0), ("b", 1), ("c", 1), ("d", 1)):
        save(tmp_path / "raw", subject, seed)
    return tmp_path / "raw"


def run(root: Path, out: Path, source: str = "openmind", **options) -> engine.Summary:
    return engine.run(source, root, out, SETTINGS, **({"workers": 0} | options))


def subjects(out: Path) -> list[str]:
    return sorted(subject[-1] for subject in Corpus.open(out).scans["subject"])


def content(corpus: Path) -> dict[str, str]:
    return {
        path.relative_to(corpus).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(corpus.rglob("*"))
        if path.is_file()
    }


def test_the_least_scan_id_is_kept_and_the_others_are_refused_by_its_name(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    summary = run(root, out)
    assert (summary.accepted, dict(summary.rejected)) == (2, {"duplicate": 2})
    assert subjects(out) == ["a", "b"]
    kept = Corpus.open(out).scans["scan_id"].max()
    assert all(kept in message for message in Corpus.open(out).rejected["message"])
    assert len(list((out / "images").rglob("*.nii.gz"))) == 2
    assert verify(out) == []


def test_order_workers_and_shards_change_nothing(root: Path, tmp_path: Path) -> None:
    run(root, tmp_path / "whole")

    def backwards(function, references):
        yield from ((ref, function(ref)) for ref in reversed(list(references)))

    run(root, tmp_path / "backwards", executor=backwards)
    for index in range(3):
        run(root, tmp_path / "parts", shard=(index, 3))
    assert engine.merge(tmp_path / "parts") == (2, 2)
    run(root, tmp_path / "grown", limit=1)
    run(root, tmp_path / "grown")
    for name in ("backwards", "parts", "grown"):
        assert content(tmp_path / name) == content(tmp_path / "whole")


def test_a_duplicate_is_not_done_again(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(root, tmp_path / "corpus")
    before = content(tmp_path / "corpus")
    monkeypatch.setattr("harmonize.sources.openmind.load", lambda ref: pytest.fail("a scan was loaded"))
    assert run(root, tmp_path / "corpus").known == 4
    assert run(root, tmp_path / "corpus", retry=True).known == 4
    for index in range(2):
        run(root, tmp_path / "corpus", shard=(index, 2))
    engine.merge(tmp_path / "corpus")
    assert content(tmp_path / "corpus") == before


def test_a_duplicate_comes_back_when_the_kept_one_is_another_scan_now(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    run(root, out)
    save(root, "b", 9)
    assert run(root, out).accepted == 3
    assert subjects(out) == ["a", "b", "c"]
    run(root, tmp_path / "fresh")
    assert content(out) == content(tmp_path / "fresh")


def test_a_duplicate_comes_back_when_the_kept_one_is_refused_now(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    run(root, out)
    save(root, "b", 1).write_bytes(b"")
    assert dict(run(root, out).rejected) == {"duplicate": 1, "empty": 1}
    assert subjects(out) == ["a", "c"]
    run(root, tmp_path / "fresh")
    assert content(out) == content(tmp_path / "fresh")


def test_a_kept_one_that_vanished_gives_its_place_to_one_that_is_there(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    run(root, out)
    shutil.rmtree(root / "OpenMind/ds000001/sub-b")
    run(root, out)
    run(root, tmp_path / "fresh")
    assert subjects(out) == ["a", "c"]
    assert content(out) == content(tmp_path / "fresh")


def test_shards_that_lose_the_kept_one_say_so_and_the_next_run_makes_it(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    run(root, out)
    save(root, "b", 9)
    # In the order in which the duplicates' shards see the old scan still.
    for index in reversed(range(2)):
        run(root, out, shard=(index, 2))
    engine.merge(out)
    assert verify(out) == []
    run(root, out)
    run(root, tmp_path / "fresh")
    assert content(out) == content(tmp_path / "fresh")


def test_contradictory_labels_of_the_same_voxels_are_used_by_neither(tmp_path: Path) -> None:
    (raw,) = phantom.write("rsna", tmp_path, scans=2, size=24, seed=0)
    table = pd.read_csv(raw / "train.csv", dtype=str)
    first, second = sorted(table["SeriesInstanceUID"])
    shutil.rmtree(raw / "series" / second)
    shutil.copytree(raw / "series" / first, raw / "series" / second)
    shutil.rmtree(raw / "segmentations", ignore_errors=True)
    (raw / "train_localizers.csv").unlink(missing_ok=True)
    table["Modality"] = table["Modality"].iloc[0]
    table[list(LABEL_NAMES)] = "0"
    table.loc[0, ["Aneurysm Present", "Basilar Tip"]] = "1"
    table.to_csv(raw / "train.csv", index=False)
    out = tmp_path / "corpus"
    run(raw, out, "rsna")
    corpus = Corpus.open(out)
    (kept,) = corpus.scans.to_dict("records")
    assert kept["scan_id"] == first
    assert kept["labels"] is None
    assert any("other labels" in line for line in kept["decisions"])
    assert "contradict" in corpus.rejected["message"].item()
    assert [labels is None for labels in corpus.labels["labels"]] == [True, True]
    assert verify(out) == []
    table[["Aneurysm Present", "Basilar Tip"]] = "1"
    table.to_csv(raw / "train.csv", index=False)
    run(raw, out, "rsna")
    assert Corpus.open(out).scans["labels"].item()[-1] == 1


LABELS = st.none() | st.lists(st.integers(0, 1), min_size=2, max_size=2)


@given(st.lists(st.tuples(st.integers(0, 3), LABELS), min_size=1, max_size=8), st.randoms())
def test_one_scan_a_content_stays_whatever_the_order(scans: list[tuple[int, list[int] | None]], random) -> None:
    records = {
        ("rsna", str(number)): Record(
            source="rsna",
            raw_hash=str(number),
            row={"scan_id": f"{number}", "sha256": str(content), "labels": labels},
        )
        for number, (content, labels) in enumerate(scans)
    }
    keys = list(records)
    random.shuffle(keys)
    found = duplicates.find({key: records[key] for key in keys})
    stay = [records[key].row for key in records if key not in found.kept]
    assert sorted(row["sha256"] for row in stay if row) == sorted({str(content) for content, _ in scans})
    for key, kept in found.kept.items():
        row = records[key].row
        assert row is not None
        assert kept.row is not None
        assert kept.row["sha256"] == row["sha256"]
        # One with labels before one without, then by their ids.
        assert (kept.row["labels"] is None, kept.row["scan_id"]) < (row["labels"] is None, row["scan_id"])
    for (one, first), (other, second) in itertools.combinations(records.items(), 2):
        assert first.row is not None
        assert second.row is not None
        labels = first.row["labels"], second.row["labels"]
        if first.row["sha256"] == second.row["sha256"] and None not in labels and labels[0] != labels[1]:
            assert found.of(one).labels
            assert found.of(other).labels


def labelled_twins(raw: Path, ages: tuple[int, int] = (50, 70)) -> Path:
    """Four scans twice, each with a row of the table, the second ones with a mask; gives the table."""
    rows = ["file,grade,side,age"]
    marked = np.zeros((20, 20, 16), dtype=np.uint8)
    marked[6:9, 6:9, 6:9] = 1
    for number in range(4):
        for name in ("q", "r"):
            save(raw, f"{name}{number}", number)
        mask = raw / f"OpenMind/ds000001/sub-r{number}/anat/sub-r{number}_T1w_seg.nii.gz"
        nib.save(nib.Nifti1Image(marked, np.diag([-4.0, 4, 5, 1])), mask)
        rows += [f"sub-q{number}_T1w,low,left,{ages[0]}", f"sub-r{number}_T1w,high,left,{ages[1]}"]
    (raw / "table.csv").write_text("\n".join(rows))
    return raw / "table.csv"


def test_the_copy_with_a_mask_is_kept_and_what_contradicts_it_is_named(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "corpus"
    given = {"table": labelled_twins(raw)}
    summary = run(raw, out, "nifti", given=given)
    corpus = Corpus.open(out)
    assert corpus.scans["mask_kind"].tolist() == ["labels"] * 4
    assert corpus.scans["age"].isna().all()
    assert [[entry["column"] for entry in table] for table in corpus.scans["table"]] == [["side"]] * 4
    assert all("has another age, grade: left out" in list(lines)[-1] for lines in corpus.scans["decisions"])
    assert all("they differ in age, grade" in message for message in corpus.rejected["message"])
    assert "4 with: another scan with the same voxels has another age, grade: left out" in summary.table()
    assert verify(out) == []
    before = content(out)
    assert run(raw, out, "nifti", given=given).known == 8
    assert content(out) == before


def test_what_a_duplicate_alone_has_is_named(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "corpus"
    table = labelled_twins(raw)
    table.write_text("\n".join(line for line in table.read_text().split("\n") if not line.startswith("sub-r")))
    run(raw, out, "nifti", given={"table": table})
    corpus = Corpus.open(out)
    assert corpus.scans["mask_kind"].tolist() == ["labels"] * 4
    assert all(message.endswith("only this one has age, grade, side") for message in corpus.rejected["message"])


@pytest.mark.parametrize("raw_is_there", [True, False])
def test_a_corpus_that_kept_the_poorer_copy_makes_the_richer_one_or_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raw_is_there: bool
) -> None:
    """As version 0.1.0 chose: by the scan id alone."""
    raw, out = tmp_path / "raw", tmp_path / "corpus"
    given = {"table": labelled_twins(raw, ages=(50, 50))}
    with monkeypatch.context() as patched:
        order = duplicates._order
        patched.setattr(duplicates, "_order", lambda row: (row["mask_kind"] is not None, *order(row)))
        run(raw, out, "nifti", given=given)
    assert Corpus.open(out).scans["mask_kind"].tolist() == [None] * 4
    if raw_is_there:
        run(raw, out, "nifti", given=given)
    else:
        engine.merge(out)
    assert len(Corpus.open(out).scans) == 4
    assert Corpus.open(out).scans["mask_kind"].notna().all() == raw_is_there
    assert verify(out) == []
