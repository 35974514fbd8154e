"""Runs on a real SLURM: told to stop, out of time, on two nodes; folds; encoders; and what a user asks too much of."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import psutil
import pytest
import standin_cluster
import yaml
from safetensors.torch import load_file, save_file
from standin_cluster import ROOT, Cluster, logs, steps_done

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

FIXTURES = ROOT / "tests/fixtures/v0_1_0"
STEPS = {"pretrain": 40, "finetune": 200}
SOME = 3
"""Steps after which a run is disturbed."""

TOY = [
    "--config", "recipes/demo.yaml", "--data.patch", "32", "--data.workers", "0", "--encoder.features", "[4,4,4,4]",
    "--decoder.width", "4", "--train.batch", "1", "--train.checkpoint_every", "1000", "--train.log_every", "1",
    "--train.validate_every", "0", "--train.picture_every", "0", "--train.threads", "1",
]  # fmt: skip
TOY_FINETUNING = {
    "data": {"patch": [16, 16, 16], "folds": 2, "mirror": False, "workers": 0},
    "scratch": {"features": [4, 8], "blocks": [1, 1], "strides": [1, 2]},
    "head": {"stride": 2, "width": 4, "top": 2},
    "stages": [
        {"name": "head", "steps": 20, "head_lr": 0.01},
        {"name": "all", "steps": STEPS["finetune"] - 20, "head_lr": 0.01, "encoder_lr": 0.01, "layers": "all"},
    ],
    "train": {"batch": 1, "checkpoint_every": 1000, "log_every": 1, "threads": 1},
}
SMALL = ("--cpus-per-task=1", "--mem=2500")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus with labelled series, and the folds that runs deal it into."""
    folder = tmp_path_factory.mktemp("labelled") / "corpus"
    shutil.copytree(FIXTURES / "corpus", folder)
    return folder


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the jobs of `jobs` are submitted from."""
    return standin_cluster.project(tmp_path_factory.mktemp("jobs") / "project")


def command(kind: str, folder: Path, out: str, tiny_corpus: Path, labelled: Path) -> list[object]:
    """A script and its words."""
    if kind == "pretrain":
        words = [*TOY, "--train.steps", str(STEPS[kind]), "--corpus", tiny_corpus]
    else:
        (folder / "finetune.yaml").write_text(yaml.safe_dump(TOY_FINETUNING))
        words = ["--config", "finetune.yaml", "--corpus", labelled]
    return [f"slurm/{kind}.sbatch", *words, "--out", out]


@pytest.fixture(scope="module")
def jobs(slurm: Cluster, project: Path, tiny_corpus: Path, labelled: Path) -> Iterator[dict[str, str]]:
    """The jobs of both programs, by the name of their run's folder; ``second`` is one into a folder that is in use.

    One is left alone (``whole``). One is told to stop by what SLURM sends before the time is up (``told``). One is held
    in the middle of a step until its time, which is cut to a minute, is over (``timed``): SLURM wakes it up, and sends
    SIGTERM.
    """
    given = {}
    for kind in STEPS:
        for case in ("timed", "told", "whole"):
            name = f"{kind}-{case}"
            # A signal that does nothing, instead of the script's USR1 before the time is up.
            options = ("--time=30", "--signal=B:CONT@1")
            given[name] = slurm.submit(project, *SMALL, *options, *command(kind, project, name, tiny_corpus, labelled))
    disturbed = {name for name in given if not name.endswith("whole")}
    while disturbed:
        name = slurm.until(lambda: next((n for n in disturbed if len(steps_done(project / n)) >= SOME), ""), project)
        disturbed.remove(name)
        if name.endswith("told"):
            slurm.call("scancel", "--signal=USR1", "--batch", given[name])
        else:
            for process in ranks(given[name]):
                process.suspend()
    words = command("pretrain", project, "pretrain-timed", tiny_corpus, labelled)
    given["second"] = slurm.submit(project, *SMALL, "--time=30", "--job-name=second", *words)
    slurm.wait(given["second"], folder=project)
    for kind in STEPS:
        slurm.call("scontrol", "update", f"JobId={given[f'{kind}-timed']}", "TimeLimit=1")
    for kind in STEPS:
        job = given[f"{kind}-timed"]
        slurm.until(lambda job=job, kind=kind: slurm.hurry() or "requeueing" in said_by(project, kind, job), project)
        slurm.call("scontrol", "update", f"JobId={job}", "TimeLimit=30", code=None)
    yield given
    slurm.call("scancel", *given.values(), code=None)


def said_by(folder: Path, script: str, job: str) -> str:
    path = folder / f"{script}-{job}.log"
    return path.read_text() if path.exists() else ""


def ranks(job: str) -> list[psutil.Process]:
    """The processes of a job that train."""
    found = []
    for process in psutil.process_iter():
        try:
            environment = process.environ()
        except psutil.Error:  # it has ended
            continue
        if environment.get("SLURM_JOB_ID") == job and "RANK" in environment:
            found.append(process)
    return found


def result(run: Path, step: int) -> dict[str, bytes]:
    """The weights that a finished run ends with, and where it predicts, what it says."""
    checkpoint = run / f"checkpoints/step_{step:06d}/model.safetensors"
    files = [checkpoint, *run.glob("*.safetensors"), *run.glob("predictions.parquet")]
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in files}


def test_a_second_job_into_the_folder_of_a_run_is_refused(slurm: Cluster, jobs: dict[str, str], project: Path) -> None:
    assert slurm.states(jobs["second"]) == ["FAILED"]
    log = said_by(project, "second", jobs["second"])
    assert "error: pretrain-timed: another process is writing to this run (process " in log
    assert "Traceback" not in log


@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize(("case", "said"), [("told", "told to stop (restart 0)"), ("timed", "DUE TO TIME LIMIT")])
def test_a_job_that_is_stopped_comes_back_and_ends_with_the_weights_of_an_undisturbed_one(
    kind: str, case: str, said: str, slurm: Cluster, jobs: dict[str, str], project: Path
) -> None:
    whole, run = f"{kind}-whole", f"{kind}-{case}"
    ended = slurm.wait(jobs[whole], jobs[run], folder=project)
    assert ended == {jobs[whole]: ["COMPLETED"], jobs[run]: ["COMPLETED"]}, logs(project)
    log = said_by(project, kind, jobs[run])
    assert said in log
    assert f"stopped with status 75; requeueing job {jobs[run]}" in log
    assert "requeueing" not in said_by(project, kind, jobs[whole])
    assert json.loads((project / run / "run.json").read_text())["status"] == "finished"
    assert steps_done(project / run) == list(range(1, STEPS[kind] + 1))
    assert result(project / run, STEPS[kind]) == result(project / whole, STEPS[kind])


def test_two_nodes_of_two_gpus_stop_together_go_on_and_have_the_losses_of_four_local_ranks(
    slurm: Cluster, submit_folder: Path, tiny_corpus: Path
) -> None:
    # The nodes of this SLURM share one machine's memory, where a node's ranks would put what they share.
    words = [*TOY, "--data.cache", "ram", "--train.steps", "12", "--corpus", str(tiny_corpus), "--out"]
    options = ["--nodes=2", "--gres=gpu:2", "--cpus-per-task=2", "--mem=5000", "--time=30"]
    job = slurm.submit(submit_folder, *options, "slurm/pretrain.sbatch", *words, "run")
    slurm.until(lambda: len(steps_done(submit_folder / "run")) >= 2, submit_folder, job=job)
    slurm.call("scancel", "--signal=USR1", "--batch", job)
    assert slurm.wait(job, folder=submit_folder) == {job: ["COMPLETED"]}, logs(submit_folder)
    assert "stopped with status 75; requeueing" in logs(submit_folder)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=4"]
    subprocess.run(
        [*launcher, "ssl/pretrain.py", *words, "local"],
        cwd=submit_folder, env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}, check=True,
        capture_output=True,
    )  # fmt: skip
    for run in ("run", "local"):
        assert json.loads((submit_folder / run / "run.json").read_text())["device"] == "4 x CPU"
    assert losses(submit_folder / "run") == pytest.approx(losses(submit_folder / "local"), rel=1e-5)
    assert len(losses(submit_folder / "run")) == 12


def losses(run: Path) -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def test_the_folds_of_an_array_are_gathered_with_their_report(
    slurm: Cluster, submit_folder: Path, labelled: Path
) -> None:
    stages = [{"name": "all", "steps": 2, "head_lr": 0.01, "encoder_lr": 0.01, "layers": "all"}]
    (submit_folder / "cv.yaml").write_text(yaml.safe_dump(TOY_FINETUNING | {"stages": stages}))
    words = ["slurm/cv.sbatch", "--config", "cv.yaml", "--corpus", labelled, "--out", "CV"]
    job = slurm.submit(submit_folder, "--array=0-1", *SMALL, "--time=30", *words)
    assert slurm.wait(job, folder=submit_folder) == {job: ["COMPLETED", "COMPLETED"]}, logs(submit_folder)
    folds = pd.read_parquet(submit_folder / "CV/predictions.parquet")["fold"]
    assert set(folds) == {0, 1}
    assert "CV/report.html: the report" in logs(submit_folder)
    assert "data:image/png;base64," in (submit_folder / "CV/report.html").read_text()


def test_an_array_embeds_with_an_encoder_each_and_the_job_behind_it_probes_them_side_by_side(
    slurm: Cluster, submit_folder: Path, labelled: Path
) -> None:
    for name, factor in (("one", 1), ("two", -1)):
        shutil.copytree(FIXTURES / "encoder", submit_folder / name)
        (submit_folder / name / "model.safetensors").chmod(0o644)
        path = submit_folder / name / "model.safetensors"
        save_file({key: factor * value for key, value in load_file(path).items()}, path)
    (submit_folder / "ENCODERS.txt").write_text("one\ntwo\n")
    scans = pd.read_parquet(labelled / "metadata.parquet")
    (submit_folder / "labels.csv").write_text(
        "scan_id,lesion\n" + "".join(f"{scan_id},{number % 2}\n" for number, scan_id in enumerate(scans["scan_id"]))
    )
    words = ["slurm/probe.sbatch", "ENCODERS.txt", "PROBES", "--corpus", labelled]
    array = slurm.submit(submit_folder, "--array=1-2", *SMALL, "--time=30", *words)
    few = ["--labels", "labels.csv", "--folds", "2", "--draws", "10", "--shots"]
    probe = slurm.submit(submit_folder, f"--dependency=afterok:{array}", *SMALL, "--time=30", *words, *few)
    assert slurm.wait(array, probe, folder=submit_folder)[probe] == ["COMPLETED"], logs(submit_folder)
    found = json.loads((submit_folder / "PROBES/probe.json").read_text())
    assert {"one", "two", "random", "intensities"} <= {row["encoder"] for row in found["rows"]}
    assert found["encoders"]["one"] != found["encoders"]["two"]


def test_a_job_that_asks_for_too_much_says_so(slurm: Cluster, submit_folder: Path, tiny_corpus: Path) -> None:
    words = ["slurm/pretrain.sbatch", *TOY, "--train.steps", "9", "--corpus", tiny_corpus, "--out", "run"]
    for options in ("--gres=gpu:9", "--mem=999G"):
        said = slurm.call("sbatch", options, *words, folder=submit_folder, code=1)
        assert "Requested node configuration is not available" in said
    short = slurm.submit(submit_folder, "--cpus-per-task=1", "--mem=120", "--time=5", *words)
    many = slurm.submit(submit_folder, *SMALL, "--gres=gpu:1", "--export=ALL,RANKS_PER_NODE=2", "--time=5", *words)
    ended = slurm.wait(short, many, folder=submit_folder)
    log = said_by(submit_folder, "pretrain", short)
    assert ended[short] == ["FAILED"]
    assert "exceeded memory limit" in log
    assert "error: a rank was killed (signal 9), most often for its memory: ask for more by sbatch --mem=" in log
    assert ended[many] == ["FAILED"]
    log = said_by(submit_folder, "pretrain", many)
    assert log.startswith("error: RANKS_PER_NODE=2: the job has 1 GPUs on a node, and each rank needs its own")
