"""Two ranks as users start them: the losses of one, and the same weights however often and whenever they die."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from headspark.config import from_plain, to_yaml
from headspark.recipe import Recipe
from headspark.run.checkpoint import load_newest
from headspark.run.folder import read_metrics, read_state
from headspark.train import train

PRETRAIN = Path(__file__).resolve().parents[1] / "ssl" / "pretrain.py"
LAUNCH = [
    str(Path(sys.executable).with_name("accelerate")), "launch", "--multi_gpu", "--num_processes", "2",
    "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
]  # fmt: skip
ENVIRONMENT = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
STEPS = 18


def recipe(*, batch: int) -> Recipe:
    """More samples a step than there are scans: checkpoints fall in the middle of an epoch."""
    return from_plain(
        Recipe,
        {
            "data": {"patch": 16, "workers": 1, "worker_kind": "process", "val_share": 0.1},
            "augment": {"noise": 0.1},
            "encoder": {"features": [4, 8], "blocks": [1, 1], "strides": [1, 2]},
            "mask": {"block": 8, "ratio": [0.3, 0.7]},
            "decoder": {"stop_stride": 2, "width": 8},
            "optim": {"lr": 5e-3},
            "train": {
                "steps": STEPS, "batch": batch, "accumulate": 3, "threads": 1, "log_every": 1, "checkpoint_every": 3,
                "validate_every": 0, "val_samples": 2, "picture_every": 0, "trackers": [],
            },
        },
    )  # fmt: skip


def command(corpus: Path, out: Path) -> list[str]:
    path = out.with_suffix(".yaml")
    path.write_text(to_yaml(recipe(batch=1)))
    return [*LAUNCH, str(PRETRAIN), "--config", str(path), "--corpus", str(corpus), "--out", str(out)]


def launch(corpus: Path, out: Path) -> None:
    done = subprocess.run(command(corpus, out), capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr
    assert read_state(out)["device"] == "2 x CPU"  # type: ignore[index]
    assert read_state(out)["effective_batch"] == 6  # type: ignore[index]


def kill_everything(process: subprocess.Popen[bytes]) -> None:
    """As when a machine goes down: launcher, ranks and data workers at once."""
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for member in family:
        if member.is_running():
            member.send_signal(signal.SIGKILL)
    process.wait()
    psutil.wait_procs(family, timeout=30)


def measured(run: Path, name: str) -> list[float]:
    return [line[name] for line in read_metrics(run) if name in line]


def weights(run: Path) -> dict[str, torch.Tensor]:
    checkpoint = load_newest(run / "checkpoints", say=print)
    assert checkpoint is not None
    assert checkpoint.step == STEPS
    return dict(checkpoint.model)


@pytest.fixture(scope="module")
def undisturbed(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("ranks") / "two"
    launch(tiny_corpus, run)
    return run


def test_two_ranks_under_accelerate_launch_give_the_losses_of_one_with_the_same_effective_batch(
    undisturbed: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    train(recipe(batch=2), corpus=tiny_corpus, out=tmp_path / "one")
    for name in ("loss", "grad_norm", "val_loss"):
        one, two = measured(tmp_path / "one", name), measured(undisturbed, name)
        assert len(one) == len(two) >= 1
        torch.testing.assert_close(one, two, rtol=1e-3, atol=0)


def test_two_ranks_killed_at_a_random_moment_end_with_the_weights_of_an_undisturbed_run(
    undisturbed: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    run = tmp_path / "killed"
    process = subprocess.Popen(command(tiny_corpus, run), stderr=subprocess.DEVNULL, env=ENVIRONMENT)
    until = time.monotonic() + 240
    while not any((run / "checkpoints").glob("step_*")):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < until, "no checkpoint in time"
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.5))
    kill_everything(process)
    assert read_state(run)["status"] == "running"  # type: ignore[index]
    launch(tiny_corpus, run)
    assert measured(run, "loss") == measured(undisturbed, "loss")
    first, second = weights(undisturbed), weights(run)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
