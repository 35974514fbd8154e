"""harmonize on a real SLURM: an array of shards by the batch script, and jobs of one worker by dask-jobqueue."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
from contextlib import suppress
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from standin_cluster import Cluster, logs

from harmonize import engine
from harmonize.corpus.verify import verify
from harmonize.settings import Settings

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

OPTIONS = ["--spacing", "4", "--mri-norm", "zscore"]
SETTINGS = Settings(spacing=(4.0, 4.0, 4.0), mri_norm="zscore")
SMALL = ["--cpus-per-task=1", "--mem=1000", "--time=5"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six scans of an OpenMind tree."""
    random = np.random.default_rng(0)
    for index in range(6):
        path = scan(tmp_path / "raw", index)
        path.parent.mkdir(parents=True)
        voxels = random.normal(10, 4, (16, 16, 12))
        voxels[4:12, 4:12, 3:9] += 200 + 10 * index + 80 * random.random((8, 8, 6))
        nib.save(nib.Nifti1Image(voxels.astype(np.float32), np.diag([-4.0, 4, 5, 1])), path)
    return tmp_path / "raw"


def scan(root: Path, index: int) -> Path:
    return root / f"OpenMind/ds000001/sub-{index:02d}/anat/sub-{index:02d}_T1w.nii.gz"


def content(corpus: Path) -> dict[str, str]:
    return {
        path.relative_to(corpus).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(corpus.rglob("*"))
        if path.is_file()
    }


def test_an_array_of_shards_that_is_merged_equals_one_local_run(
    slurm: Cluster, root: Path, submit_folder: Path, tmp_path: Path
) -> None:
    array = ["slurm/harmonize.sbatch", "openmind", root, "corpus", *OPTIONS]
    shards = slurm.submit(submit_folder, "--array=1-3", *SMALL, *array)
    merge = slurm.submit(submit_folder, f"--dependency=afterany:{shards}", *SMALL, "slurm/merge.sbatch", "corpus")
    assert slurm.wait(merge, folder=submit_folder) == {merge: ["COMPLETED"]}, logs(submit_folder)
    engine.run("openmind", root, tmp_path / "local", SETTINGS, workers=0)
    assert content(submit_folder / "corpus") == content(tmp_path / "local")
    assert verify(submit_folder / "corpus") == []


def test_some_tasks_of_an_array_are_refused(slurm: Cluster, root: Path, submit_folder: Path) -> None:
    job = slurm.submit(
        submit_folder, "--array=1,3", *SMALL, "slurm/harmonize.sbatch", "openmind", root, "corpus", *OPTIONS
    )
    assert slurm.wait(job, folder=submit_folder) == {job: ["FAILED", "FAILED"]}
    assert "give the whole array again" in logs(submit_folder)


def test_slurm_jobs_write_the_same_bytes_and_a_scan_that_hangs_takes_nobody_with_it(
    slurm: Cluster, root: Path, submit_folder: Path
) -> None:
    poisoned = scan(root, 0)
    whole = poisoned.read_bytes()
    script = f"""
import os
from pathlib import Path
from harmonize import engine
from harmonize.engine import dask_workers
from harmonize.settings import Settings

def hanging(function, references):  # opening a pipe that nobody writes to never returns
    Path({str(poisoned)!r}).unlink()
    os.mkfifo({str(poisoned)!r})
    yield from executor(function, references)

jobs = dask_workers.SlurmJobs(count=2, logs=Path("logs").absolute(), memory="1GB", minutes=5)
settings = Settings(spacing=(4.0, 4.0, 4.0), mri_norm="zscore")
with dask_workers.slurm_jobs(jobs) as executor:
    summary = engine.run(
        "openmind", Path({str(root)!r}), Path("corpus").absolute(), settings, executor=hanging, time_limit_s=5.0
    )
print(summary.table())
"""
    assert "worker_died" in slurm.call(".venv/bin/python", "-c", script, folder=submit_folder)
    poisoned.unlink()
    poisoned.write_bytes(whole)
    # What was given up is tried again, and nothing else.
    assert "6 (5 done before)" in slurm.call(*on_slurm(root), folder=submit_folder)
    assert images(submit_folder / "corpus") == images(local(root, submit_folder))
    assert verify(submit_folder / "corpus") == []


def test_a_job_of_a_worker_that_is_killed_is_replaced_and_the_corpus_is_complete(
    slurm: Cluster, root: Path, submit_folder: Path
) -> None:
    expected = images(local(root, submit_folder))
    held = scan(root, 5)
    whole = held.read_bytes()
    command = subprocess.Popen(
        on_slurm(root), cwd=submit_folder, env=slurm.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    journal = submit_folder / "corpus/records/openmind.jsonl"
    try:
        # The plan is made, no worker is there yet: the last scan becomes a pipe, at which its worker will wait.
        slurm.until(lambda: "harmonize" in slurm.call("squeue", "--noheader", "--format=%j"), submit_folder)
        held.unlink()
        os.mkfifo(held)
        writer = slurm.until(lambda: writing_end(held), submit_folder)
        job = job_that_reads(held)
        slurm.until(lambda: journal.is_file() and journal.read_text().count("\n") >= 5, submit_folder)
        held.unlink()
        held.write_bytes(whole)
        slurm.call("scancel", "--signal=KILL", "--full", job)
        said, _ = command.communicate(timeout=120)
        os.close(writer)
    finally:
        command.kill()
    assert command.returncode == 0, said
    assert "rejected       0" in said.decode(), said
    assert images(submit_folder / "corpus") == expected
    assert verify(submit_folder / "corpus") == []
    slurm.until(lambda: not slurm.call("squeue", "--noheader"), submit_folder)


def on_slurm(root: Path) -> list[str]:
    """The command of a user, with two workers."""
    words = [".venv/bin/harmonize", "openmind", str(root), "--out", "corpus", *OPTIONS]
    return [*words, "--executor", "slurm", "--workers", "2", "--slurm-memory", "1GB", "--slurm-minutes", "5"]


def local(root: Path, folder: Path) -> Path:
    """The corpus that one local process makes."""
    engine.run("openmind", root, folder / "local", SETTINGS, workers=0)
    return folder / "local"


def images(corpus: Path) -> dict[str, str]:
    return {name: digest for name, digest in content(corpus).items() if name.startswith("images")}


def writing_end(pipe: Path) -> int | None:
    """A pipe, opened to write; None as long as nobody has begun to read it."""
    try:
        return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return None


def job_that_reads(pipe: Path) -> str:
    """The SLURM job of the process that has a pipe open."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            if process.name != str(os.getpid()) and pipe in [one.readlink() for one in (process / "fd").iterdir()]:
                words = (process / "environ").read_bytes().decode().split("\0")
                found |= {word.partition("=")[2] for word in words if word.startswith("SLURM_JOB_ID=")}
    (job,) = found
    return job


def test_a_partition_that_does_not_exist_is_a_clear_error(slurm: Cluster, root: Path, submit_folder: Path) -> None:
    words = ["openmind", root, "--out", "corpus", "--executor", "slurm", "--slurm-partition", "nowhere"]
    assert "invalid partition" in slurm.call(".venv/bin/harmonize", *words, folder=submit_folder, code=2)
