"""A run that loses its disks: it says so, records nothing false, and goes on from there when they are back."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from harmonize import engine
from harmonize.errors import UserError
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
    monkeypatch.setattr("harmonize.process.RETRY_AFTER_S", 0.0)

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
