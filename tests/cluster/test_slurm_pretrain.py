"""Pretraining on a real SLURM: stopped by a signal, saved, requeued by itself, and finished."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

REPOSITORY = Path(__file__).resolve().parents[2]
STEPS = 40
TOY = [
    "--data.patch", "32", "--data.workers", "0", "--encoder.features", "[4,4,4,4]", "--decoder.width", "4",
    "--train.steps", str(STEPS), "--train.batch", "1", "--train.checkpoint_every", "1000", "--train.log_every", "1",
    "--train.validate_every", "1000", "--train.picture_every", "1000", "--train.threads", "1",
]  # fmt: skip
PATIENCE_S = 500


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder as users submit from."""
    (tmp_path / ".venv").symlink_to(sys.prefix)
    for name in ("slurm", "ssl", "recipes"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    return tmp_path


def submit(project: Path, slurm: dict[str, str], corpus: Path, *options: str) -> str:
    command = ["sbatch", "--parsable", "--cpus-per-task=2", "--mem=1500", "--time=30", *options]
    command += ["slurm/pretrain.sbatch", "--config", "recipes/demo.yaml", "--corpus", str(corpus), "--out", "run", *TOY]
    return subprocess.run(command, cwd=project, env=slurm, check=True, capture_output=True, text=True).stdout.strip()


def steps_done(project: Path) -> list[int]:
    path = project / "run/metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [line["step"] for line in map(json.loads, lines) if "loss" in line]


def state(slurm: dict[str, str], job: str) -> str:
    said = subprocess.run(["scontrol", "show", "job", job], env=slurm, capture_output=True, text=True).stdout
    return said.partition("JobState=")[2].split()[0] if "JobState=" in said else "GONE"


def wait_until(project: Path, met: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not met():
        logs = "".join(path.read_text() for path in project.glob("*.log"))
        assert time.monotonic() < deadline, logs
        time.sleep(0.5)


def test_a_job_that_is_told_to_stop_saves_is_requeued_and_finishes_by_itself(
    slurm: dict[str, str], project: Path, tiny_corpus: Path
) -> None:
    job = submit(project, slurm, tiny_corpus)
    wait_until(project, lambda: len(steps_done(project)) >= 3)
    subprocess.run(["scancel", "--signal=USR1", "--batch", job], env=slurm, check=True)
    wait_until(project, lambda: state(slurm, job) == "PENDING")
    stopped_at = max(steps_done(project))
    assert 3 <= stopped_at < STEPS
    assert (project / f"run/checkpoints/step_{stopped_at:06d}").is_dir()
    wait_until(project, lambda: state(slurm, job) in ("COMPLETED", "FAILED", "GONE"))
    log = (project / f"pretrain-{job}.log").read_text()
    assert "stopped with status 75; requeueing" in log, log
    assert json.loads((project / "run/run.json").read_text())["status"] == "finished", log
    assert steps_done(project) == list(range(1, STEPS + 1))


def test_two_nodes_train_together_and_stop_together(slurm: dict[str, str], project: Path, tiny_corpus: Path) -> None:
    job = submit(project, slurm, tiny_corpus, "--nodes=2", "--no-requeue")
    wait_until(project, lambda: len(steps_done(project)) >= 2)
    subprocess.run(["scancel", "--signal=USR1", "--batch", job], env=slurm, check=True)
    wait_until(project, lambda: state(slurm, job) in ("COMPLETED", "FAILED", "PENDING", "GONE"))
    log = (project / f"pretrain-{job}.log").read_text()
    assert "stopped with status 75" in log, log
    stopped_at = max(steps_done(project))
    assert stopped_at < STEPS
    assert (project / f"run/checkpoints/step_{stopped_at:06d}").is_dir()
