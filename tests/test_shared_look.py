"""Shards share one look at the raw folder: once for all of them, of no use to anybody else, and gone when merged."""

from __future__ import annotations

import collections
import copyreg
import os
import pickle
import shutil
import threading
import zlib
from collections import Counter
from pathlib import Path

import pydicom
import pytest

from harmonize import dicom, engine, phantom
from harmonize.cli import main
from harmonize.corpus import Corpus, lock
from harmonize.corpus.publishable import publishable
from harmonize.corpus.target import LOCK
from harmonize.corpus.verify import verify
from harmonize.engine import shared_look
from harmonize.errors import Rejection, UserError
from harmonize.scan import ScanRef
from harmonize.settings import Settings
from harmonize.sources import dicom_folder

SETTINGS = Settings(spacing=(8.0, 8.0, 8.0), salt="a secret of this house")
PATIENT = "Zqxjkv"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Private DICOM: no table says that an id is public."""
    (root,) = phantom.write("tcia", tmp_path_factory.mktemp("made"), scans=3, size=24, seed=0, workers=0)
    for path in root.rglob("metadata.csv"):
        path.unlink()
    for path in sorted(root.rglob("*.dcm")):
        dataset = pydicom.dcmread(path)
        dataset.PatientID = f"{PATIENT}-{dataset.PatientID}"
        dataset.save_as(path)
    root.rename(root.with_name(f"raw-{PATIENT}"))
    return root.with_name(f"raw-{PATIENT}")


@pytest.fixture
def raw(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / made.name))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[Path]:
    """How often discovery read the header of each file."""
    counts: Counter[Path] = Counter()
    find_volumes = dicom_folder.find_volumes

    def counting(paths):
        given = list(paths)
        counts.update(given)
        return find_volumes(given)

    monkeypatch.setattr(dicom_folder, "find_volumes", counting)
    return counts


def run(raw: Path, out: Path, shard: tuple[int, int] | None = None) -> engine.Summary:
    return engine.run("tcia", raw, out, SETTINGS, workers=0, shard=shard)


def look_of(out: Path) -> Path:
    return out / "records/tcia.look"


def content(out: Path) -> dict[str, bytes]:
    files = (path for path in out.rglob("*") if path.is_file() and path.name != LOCK)
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}


def test_three_shards_read_each_header_once_and_make_what_one_run_makes(
    raw: Path, tmp_path: Path, reads: Counter[Path]
) -> None:
    run(raw, tmp_path / "whole")
    alone = reads.copy()
    assert set(alone.values()) == {1}
    assert not look_of(tmp_path / "whole").exists()
    reads.clear()
    summaries = [run(raw, tmp_path / "parts", (index, 3)) for index in range(3)]
    assert reads == alone
    assert summaries[1].left_out == summaries[0].left_out
    assert look_of(tmp_path / "parts").exists()
    engine.merge(tmp_path / "parts")
    assert content(tmp_path / "parts") == content(tmp_path / "whole")


def test_shards_that_start_together_wait_for_one_look(raw: Path, tmp_path: Path, reads: Counter[Path]) -> None:
    faults: list[BaseException] = []

    def one(index: int) -> None:
        try:
            run(raw, tmp_path / "parts", (index, 3))
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=one, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert set(reads.values()) == {1}
    engine.merge(tmp_path / "parts")
    assert verify(tmp_path / "parts") == []
    run(raw, tmp_path / "whole")
    assert content(tmp_path / "parts") == content(tmp_path / "whole")


def add_a_file(raw: Path) -> None:
    (raw / "more.txt").write_text("more")


def touch(raw: Path) -> None:
    path = sorted(raw.rglob("*.dcm"))[0]
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


def shorten(raw: Path) -> None:
    path, time_ns = sorted(raw.rglob("*.dcm"))[0], 0
    time_ns = path.stat().st_mtime_ns
    path.write_bytes(path.read_bytes()[:-2])
    os.utime(path, ns=(time_ns, time_ns))


def remove(raw: Path) -> None:
    sorted(raw.rglob("*.dcm"))[0].unlink()


@pytest.mark.parametrize("change", [add_a_file, touch, shorten, remove])
def test_a_raw_folder_that_changed_is_looked_at_again(raw: Path, tmp_path: Path, reads: Counter[Path], change) -> None:
    run(raw, tmp_path / "parts", (0, 3))
    change(raw)
    run(raw, tmp_path / "parts", (1, 3))
    run(raw, tmp_path / "parts", (2, 3))
    there = sorted(raw.rglob("*.dcm"))
    assert [reads[path] for path in there] == [2] * len(there)


def test_a_file_that_could_not_be_read_is_tried_by_every_shard(
    raw: Path, tmp_path: Path, reads: Counter[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = sorted(raw.rglob("*.dcm"))[0]
    read_frames = dicom.read_frames

    def failing(path, **options):
        if path == bad:
            raise OSError(5, "Input/output error")
        return read_frames(path, **options)

    monkeypatch.setattr(dicom, "read_frames", failing)
    run(raw, tmp_path / "parts", (0, 3))
    monkeypatch.setattr(dicom, "read_frames", read_frames)
    run(raw, tmp_path / "parts", (1, 3))
    run(raw, tmp_path / "parts", (2, 3))
    assert set(reads.values()) == {2}
    assert look_of(tmp_path / "parts").exists()


@pytest.fixture
def parts(raw: Path, tmp_path: Path) -> Path:
    """A corpus of which one shard of three is done."""
    run(raw, tmp_path / "parts", (0, 3))
    return tmp_path / "parts"


def test_what_is_shared_is_the_users_own_and_shows_nothing(raw: Path, parts: Path) -> None:
    path = look_of(parts)
    assert path.stat().st_mode & 0o777 == 0o600
    names = {found.name for found in raw.rglob("*.dcm")} | {PATIENT}
    leaks = [name for name in names for held in content(parts).values() if name.encode() in held]
    assert leaks == []
    # A key made of anything else opens nothing: another salt, another place of the same files.
    listing = shared_look._listing(raw)
    assert listing is not None
    key = shared_look._key("tcia", raw, SETTINGS.salt, listing)
    found = shared_look._read(path, key)
    assert found is not None
    assert any(PATIENT in ref.subject for ref in found if isinstance(ref, ScanRef))
    assert shared_look._read(path, shared_look._key("tcia", raw, "another", listing)) is None
    assert shared_look._read(path, shared_look._key("tcia", raw.parent, SETTINGS.salt, listing)) is None


def test_what_is_shared_is_not_published_and_goes_with_the_merge(raw: Path, parts: Path) -> None:
    for index in (1, 2):
        run(raw, parts, (index, 3))
    kept = look_of(parts).read_bytes()
    engine.merge(parts)
    assert not look_of(parts).exists()
    look_of(parts).write_bytes(kept)  # as a merge that was killed leaves it
    assert verify(parts) == []
    found = publishable(Corpus.open(parts))
    assert not [name for name in (*found.files, *found.at_home) if "look" in name]
    run(raw, parts)  # a run over everything ends what shards began, too
    assert not look_of(parts).exists()


@pytest.mark.parametrize("at", [0, 20, 60, -1])
def test_a_look_that_was_damaged_or_forged_is_made_again(raw: Path, parts: Path, reads: Counter[Path], at: int) -> None:
    damaged = bytearray(look_of(parts).read_bytes())
    damaged[at] ^= 1
    look_of(parts).write_bytes(damaged)
    run(raw, parts, (1, 3))
    assert set(reads.values()) == {1}
    run(raw, parts, (2, 3))
    assert set(reads.values()) == {1}


def test_a_run_that_was_killed_after_its_look_leaves_a_folder_that_is_taken_up(
    raw: Path, parts: Path, reads: Counter[Path]
) -> None:
    look = look_of(parts).read_bytes()
    out = parts.with_name("new")
    (out / "records").mkdir(parents=True)
    (out / "records" / LOCK).touch()
    look_of(out).write_bytes(look)
    (out / "records/.tmp-7-tcia.look").write_bytes(look[:9])
    run(raw, out, (1, 3))
    assert not reads
    run(raw, out)
    assert sorted(path.name for path in (out / "records").iterdir()) == [LOCK, "tcia.jsonl"]


def test_merge_names_a_look_whose_shards_began_nothing(
    raw: Path, parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    look = look_of(parts).read_bytes()
    killed = parts.with_name("killed")
    (killed / "records").mkdir(parents=True)
    look_of(killed).write_bytes(look)
    assert main(["merge", str(killed)]) == 1
    assert "only records/tcia.look is there; give them again" in capsys.readouterr().err
    assert look_of(killed).read_bytes() == look

    other = parts.with_name("other")
    (slices,) = phantom.write("deeplesion", parts.with_name("slices"), scans=1, size=24, seed=0, workers=0)
    engine.run("deeplesion", slices, other, SETTINGS, workers=0)
    look_of(other).write_bytes(look)
    assert main(["merge", str(other)]) == 1
    assert "no shard of tcia began a scan, records/tcia.look was all that they left" in capsys.readouterr().out
    assert not look_of(other).exists()
    assert main(["merge", str(other)]) == 0


def test_a_folder_without_a_file_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no tcia scans found; it is empty"):
        run(tmp_path / "empty", tmp_path / "out", (0, 2))
    assert not (tmp_path / "out").exists()


def test_what_stands_in_a_look_can_be_plain_data_alone(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[object, ...]:
            return os.system, (f"touch {tmp_path / 'harm'}",)

    key = bytes(32)
    path = tmp_path / "tcia.look"
    path.write_bytes(shared_look._cipher(key).encrypt(zlib.compress(pickle.dumps([Harm()]))))
    assert shared_look._read(path, key) is None
    assert not (tmp_path / "harm").exists()


def test_who_looks_while_another_looks_waits(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "parts"
    with lock.exclusive(out / "records" / LOCK, "busy"):
        thread = threading.Thread(target=run, args=(raw, out, (0, 3)))
        thread.start()
        said = ""
        while "looks through the raw folder" not in said:
            said += capsys.readouterr().err
        assert not look_of(out).exists()
    thread.join()
    assert look_of(out).exists()


def test_a_library_that_pickles_exceptions_its_own_way_hinders_no_shard(
    raw: Path, tmp_path: Path, reads: Counter[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As distributed does with tblib, for every exception class that it finds.
    monkeypatch.setitem(copyreg.dispatch_table, Rejection, lambda found: (collections.Counter, ()))
    for index in range(2):
        run(raw, tmp_path / "parts", (index, 2))
    assert set(reads.values()) == {1}
