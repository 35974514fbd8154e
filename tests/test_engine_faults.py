"""A run that loses its disks: it says so, records nothing false, and goes on from there when they are back."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import standin_disk

from harmonize import engine
from harmonize.cli import main
from harmonize.errors import UserError
from harmonize.files import cure, no_room, write_text
from harmonize.settings import Settings

SETTINGS = Settings(spacing=(3.0, 3.0, 3.0))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six scans of an OpenMind tree."""
    random = np.random.default_rng(0)
    for index in range(6):
        path = tmp_path / f"raw/OpenMind/ds000001/sub-{index:02d}/anat/sub-{index:02d}_T1w.nii.gz"
        path.parent.mkdir(parents=True)
        voxels = random.normal(10, 4, (20, 20, 16))
        voxels[4:16, 4:16, 3:13] += 200 + 80 * random.random((12, 12, 10))
        nib.save(nib.Nifti1Image(voxels.astype(np.float32), np.diag([-4.0, 4, 5, 1])), path)
    return tmp_path / "raw"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 160 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("may not mount a tmpfs here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def content(corpus: Path) -> dict[str, str]:
    return {
        path.relative_to(corpus).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(corpus.rglob("*"))
        if path.is_file()
    }


def run(root: Path, out: Path, **options) -> engine.Summary:
    return engine.run("openmind", root, out, SETTINGS, **({"workers": 0} | options))


def test_a_disk_that_fills_up_ends_the_run_which_goes_on_when_there_is_room(
    root: Path, small_disk: Path, tmp_path: Path
) -> None:
    out = small_disk / "corpus"
    with pytest.raises(UserError, match="No space left on device; make room and run the same command again"):
        run(root, out)
    done = len(list(out.rglob("*.nii.gz")))
    assert 1 <= done < 6
    assert not list(out.rglob(".tmp-*"))
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    assert run(root, out).known >= done - 1
    run(root, tmp_path / "whole")
    assert content(out) == content(tmp_path / "whole")


@pytest.mark.parametrize("mount_point_stays", [False, True])
def test_a_raw_folder_that_vanishes_ends_the_run_and_no_scan_is_blamed(
    root: Path, tmp_path: Path, mount_point_stays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harmonize.engine.one_scan.RETRY_AFTER_S", 0.0)

    def losing(function, references):
        for number, ref in enumerate(references):
            if number == 2:
                root.rename(tmp_path / "elsewhere")
                if mount_point_stays:
                    root.mkdir()
            yield ref, function(ref)

    with pytest.raises(UserError, match="vanished during the run"):
        run(root, tmp_path / "corpus", executor=losing)
    if mount_point_stays:
        root.rmdir()
    (tmp_path / "elsewhere").rename(root)
    assert run(root, tmp_path / "corpus").known == 2
    run(root, tmp_path / "whole")
    assert content(tmp_path / "corpus") == content(tmp_path / "whole")


def test_a_file_that_is_gone_is_recorded_and_looked_for_again(root: Path, tmp_path: Path) -> None:
    victim = root / "OpenMind/ds000001/sub-03/anat/sub-03_T1w.nii.gz"

    def losing(function, references):
        references = list(references)
        victim.rename(tmp_path / "kept")
        for ref in references:
            yield ref, function(ref)

    summary = run(root, tmp_path / "corpus", executor=losing)
    assert (summary.accepted, dict(summary.rejected)) == (5, {"missing_file": 1})
    (tmp_path / "kept").rename(victim)
    assert run(root, tmp_path / "corpus").accepted == 6


@pytest.mark.parametrize("command", ["merge", "report", "run"])
def test_a_disk_that_is_full_when_tables_are_written_leaves_the_old_ones(
    root: Path, small_disk: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    out = small_disk / "corpus"
    run(root, out)
    before = content(out)
    with pytest.raises(OSError, match="No space"), (small_disk / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))
    words = {
        "merge": ["merge", str(out)],
        "report": ["report", str(out), "--workers", "1"],
        "run": ["openmind", str(root), "--out", str(out), "--spacing", "3", "--mri-norm", "zscore", "--workers", "0"],
    }
    assert main(words[command]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {out}: No space left on device; make room")
    assert content(out) == before
    assert not list(out.rglob(".tmp-*"))
    (small_disk / "filler").unlink()
    assert main(words[command]) == 0


@pytest.mark.parametrize(
    "table", ["metadata.parquet", "rejected.parquet", "README.md", "openmind.jsonl", "corpus.json"]
)
def test_no_room_for_any_one_of_the_tables_is_one_line_and_loses_nothing(
    root: Path, tmp_path: Path, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Path.replace

    def full(self: Path, target: Path) -> Path:
        if Path(target).name == table:
            raise OSError(28, "No space left on device")
        return replace(self, target)

    out = tmp_path / "corpus"
    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", full)
        with pytest.raises(UserError, match="No space left on device; make room"):
            run(root, out)
    assert not list(out.rglob(".tmp-*"))
    assert run(root, out).known == (0 if table == "corpus.json" else 6)
    run(root, tmp_path / "whole")
    assert content(out) == content(tmp_path / "whole")


def test_workers_that_write_while_the_run_ends_leave_no_temporaries(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(stream: object, *records: object) -> None:
        raise OSError(28, "No space left on device")

    out = tmp_path / "corpus"
    closed = []

    def writing(function, references):
        try:
            for ref in references:
                result = function(ref)
                (out / "images/.tmp-99-x.nii.gz").write_bytes(b"half")
                yield ref, result
        finally:
            closed.append(True)

    with monkeypatch.context() as patched:
        patched.setattr("harmonize.corpus.journal.append", full)
        with pytest.raises(UserError, match="No space left on device"):
            run(root, out, executor=writing)
    assert closed
    assert not list(out.rglob(".tmp-*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_while_histograms_are_fitted_is_one_line_and_the_same_command_goes_on(
    root: Path, tmp_path: Path, number: signal.Signals, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    from harmonize.engine import histograms

    def stopped(ref, *, settings):
        os.kill(os.getpid(), number)
        time.sleep(5)

    words = ["openmind", str(root), "--out", str(tmp_path / "corpus"), "--spacing", "3", "--workers", "0"]
    with monkeypatch.context() as patched:
        patched.setattr(histograms, "landmarks_of", stopped)
        assert main(words) == 75
    assert capsys.readouterr().err.splitlines()[-1] == "error: stopped; the same command goes on from here"
    assert main(words) == 0


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_share_that_sees_no_folder_onto_a_disk_takes_a_corpus(
    root: Path, tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, seen = os.fsync, []

    def of_files_alone(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            seen.append(descriptor)
            raise OSError(number, os.strerror(number))
        synced(descriptor)

    monkeypatch.setattr(os, "fsync", of_files_alone)
    assert run(root, tmp_path / "corpus", limit=1).accepted == 1
    assert seen

    def of_nothing(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", of_nothing)
    with pytest.raises(OSError, match=os.strerror(number)):
        write_text(tmp_path / "a.txt", "lost")


def test_a_disk_that_may_only_be_read_is_not_said_to_be_full() -> None:
    error = OSError(errno.EROFS, os.strerror(errno.EROFS))
    for said in (cure(error), str(no_room(Path("corpus"), error))):
        assert "mount it so that it may be written to" in said
        assert "make room" not in said
    assert "make room" in cure(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))


@pytest.mark.parametrize("command", ["merge", "run"])
def test_a_limit_on_the_size_of_files_names_the_file_and_what_to_do(
    root: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "corpus"
    words = ["openmind", str(root), "--out", str(out), "--spacing", "6", "--mri-norm", "zscore", "--workers", "0"]
    assert main(words) == 0
    before = (out / "metadata.parquet").read_bytes()
    image = next(path for path in sorted(root.rglob("*.nii.gz")))
    image.write_bytes(b"broken")
    journal = out / "records/openmind.jsonl"
    capsys.readouterr()
    with standin_disk.file_size_limit(journal.stat().st_size - 1):
        assert main(words if command == "run" else ["merge", str(out)]) == 1
    said = capsys.readouterr().err
    assert f"error: {journal}: File too large; raise the limit on a file's size (ulimit -f)" in said
    assert (out / "metadata.parquet").read_bytes() == before
    assert main(words) == 0
