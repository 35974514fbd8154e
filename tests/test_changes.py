"""A scan is done when its record speaks of the raw data that lie there now, not when its name is known."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from harmonize import engine, phantom
from harmonize.corpus import RECORDS, Corpus, journal
from harmonize.corpus.verify import verify
from harmonize.errors import UserError
from harmonize.settings import Settings

SETTINGS = Settings(spacing=(6.0, 6.0, 6.0))


def head(seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    voxels = random.normal(10, 4, (20, 20, 16))
    voxels[4:16, 4:16, 3:13] += 200 + 80 * random.random((12, 12, 10))
    return voxels.astype(np.float32)


def save(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(head(seed), np.diag([-4.0, 4, 5, 1])), path)


def image(root: Path, number: int) -> Path:
    return root / f"OpenMind/ds000001/sub-{number:02d}/anat/sub-{number:02d}_T1w.nii.gz"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number in range(3):
        save(image(tmp_path / "raw", number), number)
    return tmp_path / "raw"


@pytest.fixture(scope="module")
def rsna_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (root,) = phantom.write("rsna", tmp_path_factory.mktemp("phantom"), scans=2, size=24, seed=0)
    return root


@pytest.fixture
def rsna(rsna_tree: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(rsna_tree, tmp_path / "rsna"))


def run(root: Path, out: Path, source: str = "openmind", **options) -> engine.Summary:
    return engine.run(source, root, out, SETTINGS, **({"workers": 0} | options))


def content(corpus: Path) -> dict[str, str]:
    return {
        path.relative_to(corpus).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(corpus.rglob("*"))
        if path.is_file()
    }


def equals_a_fresh_one(root: Path, out: Path, source: str = "openmind") -> bool:
    fresh = out.with_name(f"{out.name}-fresh")
    run(root, fresh, source)
    return content(out) == content(fresh) and verify(out) == []


def touch(path: Path, seconds: float = 100) -> None:
    about = path.stat()
    os.utime(path, (about.st_atime, about.st_mtime + seconds))


def slices(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())


def multi_file_series(rsna: Path) -> Path:
    return next(folder for folder in sorted((rsna / "series").iterdir()) if len(slices(folder)) > 4)


def test_a_replaced_file_is_made_again_and_said(root: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "corpus"
    run(root, out)
    save(image(root, 1), 7)
    summary = run(root, out)
    assert (summary.known, summary.changed) == (2, 1)
    assert "1 scan changed since" in capsys.readouterr().err
    assert "made again" in summary.table()
    assert equals_a_fresh_one(root, out)
    assert run(root, out).known == 3


def test_another_content_of_the_same_size_is_seen(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    for number in range(3):
        plain = image(root, number).with_suffix("")
        nib.save(nib.load(image(root, number)), plain)
        image(root, number).unlink()
    run(root, out)
    raw = image(root, 1).with_suffix("")
    size = raw.stat().st_size
    nib.save(nib.Nifti1Image(head(9), np.diag([-4.0, 4, 5, 1])), raw)
    assert raw.stat().st_size == size
    touch(raw)
    assert run(root, out).changed == 1
    assert equals_a_fresh_one(root, out)


@pytest.mark.parametrize("workers", [0, 1])
def test_files_with_other_times_and_the_same_content_are_compared_once(
    root: Path, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "corpus"
    run(root, out)
    images = {path: path.stat().st_mtime_ns for path in (out / "images").rglob("*.gz")}
    for number in range(3):
        touch(image(root, number))
    summary = run(root, out, workers=workers)
    assert (summary.known, summary.changed) == (3, 0)
    assert {path: path.stat().st_mtime_ns for path in images} == images
    monkeypatch.setattr("harmonize.corpus.fingerprint._checksum", lambda path: pytest.fail("a file was read"))
    assert run(root, out).known == 3


def test_a_second_run_opens_no_raw_file(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(root, tmp_path / "corpus")
    monkeypatch.setattr("harmonize.corpus.fingerprint._checksum", lambda path: pytest.fail("a file was read"))
    monkeypatch.setattr("harmonize.sources.openmind.load", lambda ref: pytest.fail("a scan was loaded"))
    assert run(root, tmp_path / "corpus").known == 3


def test_a_moved_raw_folder_changes_nothing(root: Path, tmp_path: Path) -> None:
    run(root, tmp_path / "corpus")
    root.rename(tmp_path / "elsewhere")
    summary = run(tmp_path / "elsewhere", tmp_path / "corpus")
    assert (summary.known, summary.changed, summary.vanished) == (3, 0, 0)
    image(tmp_path / "elsewhere", 0).unlink()
    assert run(tmp_path / "elsewhere", tmp_path / "corpus").vanished == 1


def test_a_mask_that_comes_later_is_used(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    run(root, out)
    outside = np.ones((20, 20, 16), dtype=np.uint8)
    outside[4:16, 4:16, 3:13] = 0
    folder = image(root, 0).with_name("sub-00_T1w__Data")
    folder.mkdir()
    nib.save(nib.Nifti1Image(outside, np.diag([-4.0, 4, 5, 1])), folder / "fb_mask.nii.gz")
    assert run(root, out).changed == 1
    assert equals_a_fresh_one(root, out)


def test_a_table_that_comes_later_is_used(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    run(root, out)
    name = image(root, 2).relative_to(root).as_posix()
    (root / "openneuro_metadata.csv").write_text(f"image_path,modality,age\n{name},T1w,44\n")
    assert run(root, out).changed == 1
    assert Corpus.open(out).scans["age"].dropna().tolist() == [44.0]
    assert equals_a_fresh_one(root, out)


def test_a_series_that_grew_during_its_download_is_made_again(rsna: Path, tmp_path: Path) -> None:
    out, folder = tmp_path / "corpus", multi_file_series(rsna)
    late = slices(folder)[len(slices(folder)) // 2 :]
    for path in late:
        path.rename(tmp_path / path.name)
    run(rsna, out, "rsna")
    for path in late:
        (tmp_path / path.name).rename(path)
    assert run(rsna, out, "rsna").changed == 1
    assert equals_a_fresh_one(rsna, out, "rsna")


def test_a_corrected_label_reaches_the_corpus(rsna: Path, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    run(rsna, out, "rsna")
    table = pd.read_csv(rsna / "train.csv", dtype=str)
    table["Aneurysm Present"] = ["1" if value == "0" else "0" for value in table["Aneurysm Present"]]
    table.to_csv(rsna / "train.csv", index=False)
    assert run(rsna, out, "rsna").changed == 2
    assert equals_a_fresh_one(rsna, out, "rsna")


def test_a_vanished_file_leaves_its_scan_and_is_said(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    run(root, out)
    image(root, 1).unlink()
    summary = run(root, out)
    assert (summary.found, summary.vanished) == (2, 1)
    assert "1 that the raw folder no longer has" in summary.table()
    assert len(Corpus.open(out).scans) == 3
    assert verify(out) == []


def test_slices_that_vanish_leave_their_scan_until_a_retry(rsna: Path, tmp_path: Path) -> None:
    out, folder = tmp_path / "corpus", multi_file_series(rsna)
    run(rsna, out, "rsna")
    before = content(out)
    slices(folder)[-1].unlink()
    summary = run(rsna, out, "rsna")
    assert (summary.shrunk, summary.changed) == (1, 0)
    assert "--retry" in summary.table()
    assert content(out) == before
    assert run(rsna, out, "rsna", retry=True).changed == 1
    assert equals_a_fresh_one(rsna, out, "rsna")


def test_a_mask_that_vanishes_leaves_its_scan_until_a_retry(rsna: Path, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    run(rsna, out, "rsna")
    before = content(out)
    masks = [path for path in (rsna / "segmentations").rglob("*") if path.is_file()]
    assert masks
    for path in masks:
        path.unlink()
    assert run(rsna, out, "rsna").changed == 0
    assert content(out) == before
    run(rsna, out, "rsna", retry=True)
    assert equals_a_fresh_one(rsna, out, "rsna")


def test_fewer_but_other_files_are_a_change(rsna: Path, tmp_path: Path) -> None:
    """As when the volumes of a series are numbered anew because another one came before them."""
    out, folder = tmp_path / "corpus", multi_file_series(rsna)
    run(rsna, out, "rsna")
    first, last, *_ = slices(folder)
    last.unlink()
    first.rename(folder / f"new-{first.name}")
    assert (summary := run(rsna, out, "rsna")).changed == 1
    assert summary.shrunk == 0
    assert equals_a_fresh_one(rsna, out, "rsna")


def test_a_scan_that_is_refused_after_a_change_leaves_the_corpus_with_its_files(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    run(root, out)
    image(root, 1).write_bytes(image(root, 1).read_bytes()[:900])
    assert dict(run(root, out).rejected) == {"truncated": 1}
    assert equals_a_fresh_one(root, out)


def test_a_changed_scan_that_cannot_be_read_now_stays_as_it_was(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "corpus"
    run(root, out)
    before = content(out)
    save(image(root, 1), 7)

    def failing(ref):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr("harmonize.sources.openmind.load", failing)
        patched.setattr("harmonize.engine.one_scan.RETRY_AFTER_S", 0.0)
        summary = run(root, out)
    assert (summary.accepted, summary.outdated) == (3, 1)
    assert content(out) == before
    assert run(root, out).changed == 1
    assert equals_a_fresh_one(root, out)


def test_a_file_that_changes_while_it_is_read_is_read_again(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harmonize.sources import openmind

    load = openmind.load

    def growing(ref):
        scan = load(ref)
        if "sub-01" in ref.key:
            save(image(root, 1), 7)
            touch(image(root, 1))
        return scan

    out = tmp_path / "corpus"
    with monkeypatch.context() as patched:
        patched.setattr("harmonize.sources.openmind.load", growing)
        run(root, out)
    assert run(root, out).changed == 1
    assert equals_a_fresh_one(root, out)


def test_what_was_made_without_an_unreadable_file_is_tried_again(
    rsna: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The superuser may read everything, so the refusal is put into Python's own `open`."""
    out, folder = tmp_path / "corpus", multi_file_series(rsna)
    locked = slices(folder)[len(slices(folder)) // 2]
    reading, checksum = "harmonize.dicom.read_frames", "harmonize.corpus.fingerprint._checksum"
    from harmonize import dicom
    from harmonize.corpus import fingerprint

    def refusing(original):
        def call(path, *arguments, **options):
            if path == locked:
                raise PermissionError(13, "Permission denied", str(path))
            return original(path, *arguments, **options)

        return call

    with monkeypatch.context() as patched:
        patched.setattr(reading, refusing(dicom.read_frames))
        patched.setattr(checksum, refusing(fingerprint._checksum))
        run(rsna, out, "rsna")
    (partly,) = [row for row in Corpus.open(out).scans.itertuples() if row.scan_id == folder.name]
    assert any("could not be read" in line for line in partly.decisions)
    assert run(rsna, out, "rsna").known == 1
    assert equals_a_fresh_one(rsna, out, "rsna")


def test_refusals_of_what_is_gone_leave_the_table(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    image(root, 1).write_bytes(b"broken")
    save(image(tmp_path / "other", 5), 5)
    image(tmp_path / "other", 6).parent.mkdir(parents=True)
    image(tmp_path / "other", 6).write_bytes(b"broken too")
    run(root, out)
    run(tmp_path / "other", out)
    assert len(Corpus.open(out).rejected) == 2
    image(root, 1).unlink()
    run(root, out, limit=1)
    run(root, out, shard=(0, 1))
    engine.merge(out)
    assert len(Corpus.open(out).rejected) == 2
    run(root, out)
    # The other raw folder's refusal is not this one's to forget.
    assert len(Corpus.open(out).rejected) == 1
    assert len(Corpus.open(out).scans) == 3


def test_a_run_of_slices_that_grew_replaces_the_shorter_one(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "corpus"
    folder = raw / "Images_png/000001_01_01"
    folder.mkdir(parents=True)

    def write(first: int, last: int) -> None:
        for number in range(first, last + 1):
            pixels = np.full((24, 24), 32768 - 1000, dtype=np.uint16)
            pixels[6:18, 6:18] = 32768 + 40 + number % 7
            Image.fromarray(pixels).save(folder / f"{number:03d}.png")
        row = f'000001_01_01_{first:03d}.png,"{first}, {last}","4, 4, 4"'
        (raw / "DL_info.csv").write_text(f"File_name,Slice_range,Spacing_mm_px_\n{row}\n")

    write(10, 20)
    run(raw, out, "deeplesion")
    write(5, 30)
    assert run(raw, out, "deeplesion").replaced == 1
    assert Corpus.open(out).scans["scan_id"].tolist() == ["000001_01_01_005-030"]
    assert equals_a_fresh_one(raw, out, "deeplesion")
    folder.joinpath("017.png").unlink()
    # Two shorter runs do not replace the whole one, which was made when all slices were there.
    assert run(raw, out, "deeplesion").vanished == 1
    assert "000001_01_01_005-030" in Corpus.open(out).scans["scan_id"].tolist()


def test_a_renamed_scan_has_its_new_name_alone(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    run(root, out)
    image(root, 8).parent.mkdir(parents=True)
    image(root, 0).rename(image(root, 8))
    assert run(root, out).replaced == 1
    assert sorted(Corpus.open(out).scans["subject"]) == [f"ds000001_sub-{number:02d}" for number in (1, 2, 8)]
    assert equals_a_fresh_one(root, out)


def make_old(out: Path) -> None:
    """Turn the journal into one of version 0.1.0."""
    for path in (out / RECORDS).glob(f"*{journal.SUFFIX}"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        old = [{name: line.get(name) for name in ("source", "raw_hash", "row", "rejection")} for line in lines]
        path.write_text("".join(json.dumps(line, sort_keys=True) + "\n" for line in old))


@pytest.mark.parametrize("shards", [1, 2])
def test_records_of_version_0_1_0_are_kept_and_that_is_said_once(root: Path, tmp_path: Path, shards: int) -> None:
    out = tmp_path / "corpus"
    run(root, out)
    images = {path: path.stat().st_mtime_ns for path in (out / "images").rglob("*.gz")}
    make_old(out)
    parts = [None] if shards == 1 else [(index, shards) for index in range(shards)]
    summaries = [run(root, out, shard=part) for part in parts]
    assert sum(summary.unrecorded for summary in summaries) == 3
    assert any("version 0.1.0" in summary.table() for summary in summaries)
    assert run(root, out).unrecorded == 0
    assert {path: path.stat().st_mtime_ns for path in images} == images
    save(image(root, 1), 7)
    assert run(root, out).changed == 1


@pytest.mark.parametrize("parts", [2, 3])
def test_shards_see_changes_too(root: Path, tmp_path: Path, parts: int) -> None:
    out = tmp_path / "corpus"
    run(root, out)
    save(image(root, 0), 7)
    image(root, 1).write_bytes(image(root, 1).read_bytes()[:900])
    summaries = [run(root, out, shard=(index, parts)) for index in range(parts)]
    assert sum(summary.changed for summary in summaries) == 2
    engine.merge(out)
    assert equals_a_fresh_one(root, out)


def test_a_published_corpus_without_its_journal_keeps_its_scans(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    run(root, out)
    shutil.rmtree(out / RECORDS)
    before = (out / "metadata.parquet").read_bytes()
    with pytest.raises(UserError, match="nothing to merge"):
        engine.merge(out)
    assert (out / "metadata.parquet").read_bytes() == before
    image(root, 0).unlink()
    save(image(root, 4), 4)
    assert run(root, out).accepted == 3
    assert len(Corpus.open(out).scans) == 4


def test_a_published_corpus_without_its_journal_keeps_the_labels_of_what_was_rejected(
    rsna: Path, root: Path, tmp_path: Path
) -> None:
    first = min((rsna / "series").iterdir())
    kept = {path: path.read_bytes() for path in first.iterdir()}
    for path in kept:
        path.write_bytes(path.read_bytes()[:200])
    out = tmp_path / "corpus"
    assert run(rsna, out, source="rsna").rejected.total() == 1
    before = (out / "labels.parquet").read_bytes()
    shutil.rmtree(out / RECORDS)
    for _ in range(2):
        run(root, out)
        assert (out / "labels.parquet").read_bytes() == before
    engine.merge(out)
    assert (out / "labels.parquet").read_bytes() == before
    for path, content in kept.items():
        path.write_bytes(content)
    assert run(rsna, out, source="rsna", retry=True).rejected.total() == 0
    labels = Corpus.open(out).labels
    assert len(labels) == 2
    assert labels["accepted"].all()


class Crash(BaseException):
    """The power goes."""


def crash_at(number: int, patched: pytest.MonkeyPatch) -> list[str]:
    """Let the n-th write of a run be its last; gives the writes."""
    writes: list[str] = []

    def counted(name: str, original):
        def call(*arguments, **options):
            writes.append(name)
            if len(writes) > number:
                raise Crash
            return original(*arguments, **options)

        return call

    patched.setattr(Path, "replace", counted("replace", Path.replace))
    patched.setattr(Path, "unlink", counted("unlink", Path.unlink))
    patched.setattr(journal, "append", counted("append", journal.append))
    return writes


def test_a_crash_at_any_write_of_a_second_run_is_made_good_by_the_next(tmp_path: Path) -> None:
    """One scan is replaced, one refused now, one renamed, one a duplicate of another's old voxels, one new."""
    root, out = tmp_path / "raw", tmp_path / "corpus"
    for number, seed in enumerate((0, 1, 2, 0)):
        save(image(root, number), seed)
    run(root, out)
    save(image(root, 0), 7)
    image(root, 1).write_bytes(b"broken")
    image(root, 5).parent.mkdir(parents=True)
    image(root, 2).rename(image(root, 5))
    save(image(root, 6), 6)
    run(root, tmp_path / "fresh")
    expected = content(tmp_path / "fresh")
    kinds: set[str] = set()
    for number in range(100):
        shutil.copytree(out, tmp_path / f"{number}")
        with pytest.MonkeyPatch.context() as patched:
            writes = crash_at(number, patched)
            try:
                run(root, tmp_path / f"{number}")
                break
            except Crash:
                kinds.add(writes[number])
        run(root, tmp_path / f"{number}")
        assert content(tmp_path / f"{number}") == expected, (number, writes[-1])
    assert kinds == {"replace", "unlink", "append"}
    assert number > 10


STEPS = st.one_of(
    st.tuples(st.just("save"), st.integers(0, 3), st.integers(0, 3)),
    st.tuples(st.just("break"), st.integers(0, 3), st.just(0)),
    st.tuples(st.just("touch"), st.integers(0, 3), st.just(0)),
    st.tuples(st.just("run"), st.sampled_from(["whole", "shards", "shards, not merged", "limit"]), st.just(0)),
)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEPS, min_size=3, max_size=9))
def test_whatever_happened_before_the_last_run_gives_what_a_first_one_would(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, Any, int]]
) -> None:
    folder = tmp_path_factory.mktemp("steps")
    root, out = folder / "raw", folder / "corpus"
    for number in range(4):
        save(image(root, number), number % 3)
    time = 1000
    for step, what, seed in steps:
        time += 10
        if step == "run":
            parts = [None] if what in ("whole", "limit") else [(0, 2), (1, 2)]
            for part in parts:
                run(root, out, shard=part, limit=2 if what == "limit" else None)
            if what == "shards":
                engine.merge(out)
            continue
        if step == "save":
            save(image(root, what), seed)
        elif step == "break":
            image(root, what).write_bytes(b"broken")
        os.utime(image(root, what), (time, time))
    run(root, out)
    assert equals_a_fresh_one(root, out)
