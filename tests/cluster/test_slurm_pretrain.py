"""Pretraining on a real SLURM: stopped by a signal, saved, requeued by itself, and finished."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from standin_cluster import Cluster, logs, steps_done

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

STEPS = 40
TOY = [
    "--data.patch", "32", "--data.workers", "0", "--encoder.features", "[4,4,4,4]", "--decoder.width", "4",
    "--train.steps", str(STEPS), "--train.batch", "1", "--train.checkpoint_every", "1000", "--train.log_every", "1",
    "--train.validate_every", "1000", "--train.picture_every", "1000", "--train.threads", "1",
]  # fmt: skip


def submit(slurm: Cluster, project: Path, corpus: Path, *options: str) -> str:
    words = ["--cpus-per-task=2", "--mem=1500", "--time=30", *options, "slurm/pretrain.sbatch"]
    return slurm.submit(project, *words, "--config", "recipes/demo.yaml", "--corpus", corpus, "--out", "run", *TOY)


def test_a_job_that_is_told_to_stop_saves_is_requeued_and_finishes_by_itself(
    slurm: Cluster, submit_folder: Path, tiny_corpus: Path
) -> None:
    run = submit_folder / "run"
    job = submit(slurm, submit_folder, tiny_corpus)
    slurm.until(lambda: len(steps_done(run)) >= 3, submit_folder)
    slurm.call("scancel", "--signal=USR1", "--batch", job)
    slurm.until(lambda: slurm.states(job) == ["PENDING"], submit_folder)
    stopped_at = max(steps_done(run))
    assert 3 <= stopped_at < STEPS
    assert (run / f"checkpoints/step_{stopped_at:06d}").is_dir()
    assert slurm.wait(job, folder=submit_folder) == {job: ["COMPLETED"]}
    assert "stopped with status 75; requeueing" in logs(submit_folder)
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    assert steps_done(run) == list(range(1, STEPS + 1))


def test_two_nodes_train_together_and_stop_together(slurm: Cluster, submit_folder: Path, tiny_corpus: Path) -> None:
    run = submit_folder / "run"
    job = submit(slurm, submit_folder, tiny_corpus, "--nodes=2", "--no-requeue")
    slurm.until(lambda: len(steps_done(run)) >= 2, submit_folder)
    slurm.call("scancel", "--signal=USR1", "--batch", job)
    slurm.wait(job, folder=submit_folder)
    assert "stopped with status 75" in logs(submit_folder)
    stopped_at = max(steps_done(run))
    assert stopped_at < STEPS
    assert (run / f"checkpoints/step_{stopped_at:06d}").is_dir()
