"""harmonize on a real SLURM: an array of shards by the batch script, and jobs of one worker by dask-jobqueue."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from harmonize import engine
from harmonize.corpus.verify import verify
from harmonize.settings import Settings

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

REPOSITORY = Path(__file__).resolve().parents[2]
OPTIONS = ["--spacing", "4", "--mri-norm", "zscore"]
SETTINGS = Settings(spacing=(4.0, 4.0, 4.0), mri_norm="zscore")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six scans of an OpenMind tree."""
    random = np.random.default_rng(0)
    for index in range(6):
        path = tmp_path / f"raw/OpenMind/ds000001/sub-{index:02d}/anat/sub-{index:02d}_T1w.nii.gz"
        path.parent.mkdir(parents=True)
        voxels = random.normal(10, 4, (16, 16, 12))
        voxels[4:12, 4:12, 3:9] += 200 + 10 * index + 80 * random.random((8, 8, 6))
        nib.save(nib.Nifti1Image(voxels.astype(np.float32), np.diag([-4.0, 4, 5, 1])), path)
    return tmp_path / "raw"


@pytest.fixture
def submit_folder(tmp_path: Path) -> Path:
    """A folder as users submit from: it has .venv and the batch scripts."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / "slurm").symlink_to(REPOSITORY / "slurm")
    return folder


def content(corpus: Path) -> dict[str, str]:
    return {
        path.relative_to(corpus).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(corpus.rglob("*"))
        if path.is_file()
    }


def command(arguments: list[str], folder: Path, slurm: dict[str, str], code: int = 0) -> str:
    done = subprocess.run(arguments, cwd=folder, env=slurm, capture_output=True, text=True, timeout=240)
    logs = "".join(path.read_text() for path in folder.glob("*.log"))
    assert done.returncode == code, f"{done.stdout}{done.stderr}{logs}"
    return done.stdout + done.stderr + logs


def test_an_array_of_shards_that_is_merged_equals_one_local_run(
    slurm: dict[str, str], root: Path, submit_folder: Path, tmp_path: Path
) -> None:
    small = ["--wait", "--cpus-per-task=1", "--mem=1000", "--time=5"]
    array = ["slurm/harmonize.sbatch", "openmind", str(root), "corpus", *OPTIONS]
    command(["sbatch", "--array=1-3", *small, *array], submit_folder, slurm)
    command(["sbatch", *small, "--wrap", ".venv/bin/harmonize merge corpus"], submit_folder, slurm)
    engine.run("openmind", root, tmp_path / "local", SETTINGS, workers=0)
    assert content(submit_folder / "corpus") == content(tmp_path / "local")
    assert verify(submit_folder / "corpus") == []


def test_some_tasks_of_an_array_are_refused(slurm: dict[str, str], root: Path, submit_folder: Path) -> None:
    array = ["slurm/harmonize.sbatch", "openmind", str(root), "corpus", *OPTIONS]
    arguments = ["sbatch", "--wait", "--array=1,3", "--cpus-per-task=1", "--mem=1000", *array]
    assert "give the whole array again" in command(arguments, submit_folder, slurm, code=2)


def test_slurm_jobs_write_the_same_bytes_and_a_scan_that_hangs_takes_nobody_with_it(
    slurm: dict[str, str], root: Path, submit_folder: Path, tmp_path: Path
) -> None:
    poisoned = root / "OpenMind/ds000001/sub-00/anat/sub-00_T1w.nii.gz"
    poisoned.unlink()
    os.mkfifo(poisoned)
    script = (
        "import sys; from pathlib import Path; "
        "from harmonize import engine; from harmonize.engine import dask_workers; "
        "from harmonize.settings import Settings; "
        "jobs = dask_workers.SlurmJobs(count=2, logs=Path('logs').absolute(), memory='1GB', minutes=5)\n"
        f"with dask_workers.slurm_jobs(jobs) as executor:\n"
        f"    summary = engine.run('openmind', Path({str(root)!r}), Path('corpus').absolute(), "
        "Settings(spacing=(4.0, 4.0, 4.0)), executor=executor, time_limit_s=5.0)\n"
        "print(summary.table())"
    )
    said = command([".venv/bin/python", "-c", script], submit_folder, slurm)
    assert "worker_died" in said
    poisoned.unlink()
    arguments = ["openmind", str(root), "--out", "corpus", *OPTIONS, "--executor", "slurm", "--workers", "2"]
    # The pipe has gone, so that only five scans are found; none is done again.
    said = command(
        [".venv/bin/harmonize", *arguments, "--slurm-memory", "1GB", "--slurm-minutes", "5"], submit_folder, slurm
    )
    assert "5 (5 done before)" in said
    assert verify(submit_folder / "corpus") == []
    engine.run("openmind", root, tmp_path / "local", SETTINGS, workers=0)
    made = content(submit_folder / "corpus")
    assert {k: v for k, v in content(tmp_path / "local").items() if k.startswith("images")}.items() <= made.items()
    assert not subprocess.run(["squeue", "-h"], env=slurm, capture_output=True, text=True).stdout


def test_a_partition_that_does_not_exist_is_a_clear_error(
    slurm: dict[str, str], root: Path, submit_folder: Path
) -> None:
    arguments = ["openmind", str(root), "--out", "corpus", "--executor", "slurm", "--slurm-partition", "nowhere"]
    assert "invalid partition" in command([".venv/bin/harmonize", *arguments], submit_folder, slurm, code=2)
