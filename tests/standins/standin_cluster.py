"""A real SLURM of two virtual nodes on this machine, for the tests of the batch scripts.

Nothing of the system is touched: keys, sockets, ports and logs are its own, so that several may run side by side.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol")
NODES = ("n1", "n2")
GPUS = 2
"""Of each node: devices that SLURM takes for GPUs, and hands out by `CUDA_VISIBLE_DEVICES`."""

MEMORY_MIB = 16000
PATIENCE_S = 400.0
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "GONE")
_WITH_PARENT = ("setpriv", "--pdeathsig", "TERM")
"""Starts a daemon that ends when the tests do, however they end."""

_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"


def missing() -> str | None:
    """Why no SLURM can be started here; None where one can."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=_PATH) is None]
    if absent:
        return f"{', '.join(absent)} not installed: apt-get install slurm-wlm munge"
    return None if os.geteuid() == 0 else "SLURM's daemons need root here"


@dataclass(frozen=True, slots=True)
class Cluster:
    """A SLURM that runs.

    Attributes:
        environment: In which `sbatch` and its like speak to it.
        folder: Of its logs.
    """

    environment: dict[str, str]
    folder: Path

    def call(self, *words: object, folder: Path | None = None, code: int | None = 0) -> str:
        """What a command says on both streams.

        Args:
            words: The command.
            folder: Where to run it.
            code: How it must end; None: in any way.
        """
        done = subprocess.run(
            list(map(str, words)), cwd=folder, env=self.environment, capture_output=True, text=True, timeout=PATIENCE_S
        )
        assert code is None or done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def submit(self, folder: Path, *words: object) -> str:
        """Hand in a job; gives its number."""
        return self.call("sbatch", "--parsable", *words, folder=folder).split()[-1]

    def states(self, job: str) -> list[str]:
        """Of a job, or of each task of an array; ``GONE`` once SLURM has forgotten it."""
        said = self.call("scontrol", "--oneliner", "show", "job", job, code=None)
        found = [word.partition("=")[2] for word in said.split() if word.startswith("JobState=")]
        return found or ["GONE"]

    def wait(self, *jobs: str, folder: Path) -> dict[str, list[str]]:
        """Wait until jobs have ended; those that were requeued are started at once instead of in two minutes."""

        def over() -> bool:
            self.hurry()
            return all(state in ENDED for job in jobs for state in self.states(job))

        self.until(over, folder)
        return {job: self.states(job) for job in jobs}

    def hurry(self) -> None:
        """Start the jobs soon that wait for the two minutes that SLURM lets pass after they were requeued.

        Not at once: a node that has just ended a job takes it for the ended one within the same second.
        """
        said = self.call("squeue", "--noheader", "--format=%i %S", "--states=PENDING", code=None)
        for line in said.splitlines():
            number, _, start = line.partition(" ")
            with suppress(ValueError):  # none is planned yet, or SLURM has forgotten the job
                if datetime.fromisoformat(start) - datetime.now() > timedelta(seconds=5):
                    self.call("scontrol", "update", f"JobId={number}", "StartTime=now+3", code=None)

    def until(self, met: Callable[[], T], folder: Path, job: str | None = None) -> T:
        """Wait for something, and give it; what the jobs' logs in `folder` say is shown where it does not come.

        Args:
            met: What is waited for; false as long as it has not come.
            folder: That the jobs were submitted from.
            job: That is to bring it; once that has ended, it will not come.
        """
        deadline = time.monotonic() + PATIENCE_S
        while not (found := met()):
            assert time.monotonic() < deadline, f"not in {PATIENCE_S:g} s\n{self.call('squeue')}{logs(folder)}"
            ended = job is not None and all(state in ENDED for state in self.states(job))
            assert not ended or met(), f"job {job} has ended\n{logs(folder)}"
            time.sleep(0.1)
        return found


def logs(folder: Path) -> str:
    """What the jobs that were submitted from a folder have said."""
    return "".join(f"--- {path.name}\n{path.read_text(errors='replace')}" for path in sorted(folder.glob("*.log")))


def project(folder: Path) -> Path:
    """Make of a folder one as users submit from: a checkout with its .venv."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".venv").symlink_to(sys.prefix)
    for name in ("slurm", "ssl", "recipes"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def steps_done(run: Path) -> list[int]:
    """The steps that a run has logged a loss of."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    whole = [json.loads(line) for line in lines if line.endswith("\n")]
    return [line["step"] for line in whole if "loss" in line]


@contextmanager
def running(folder: Path) -> Iterator[Cluster]:
    """Start it, and end it.

    Args:
        folder: For its files.
    """
    ports = _free_ports(1 + len(NODES))
    configuration = folder / "slurm.conf"
    configuration.write_text(_configuration(folder, ports))
    _make_gpus(folder)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
    environment = inherited | {"SLURM_CONF": str(configuration), "PATH": _PATH, "PYTHONPATH": f"{ROOT}:{ROOT / 'ssl'}"}
    daemons = []
    try:
        daemons.append(_start_munge(folder))
        for words in (["slurmctld", "-D", "-c"], *(["slurmd", "-D", "-N", node] for node in NODES)):
            daemons.append(subprocess.Popen([*_WITH_PARENT, *words], env=environment, stderr=subprocess.DEVNULL))
        cluster = Cluster(environment, folder)
        for _ in range(120):
            if f"idle {len(NODES)}" in cluster.call("sinfo", "-h", "-o", "%T %D", code=None):
                break
            time.sleep(0.25)
        else:
            said = "".join((folder / name).read_text() for name in ("slurmctld.log", "slurmd-n1.log"))
            raise AssertionError(f"SLURM did not come up: {said[-4000:]}")
        yield cluster
        cluster.call("scancel", "--user", "root", code=None)
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(timeout=30)


def _start_munge(folder: Path) -> subprocess.Popen[bytes]:
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    words = ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", f"--key-file={key}"]
    words += [f"--{name}-file={folder}/munged.{name}" for name in ("pid", "log", "seed")]
    daemon = subprocess.Popen([*_WITH_PARENT, *words], env={**os.environ, "PATH": _PATH}, stderr=subprocess.DEVNULL)
    for _ in range(100):
        if (folder / "munge.socket").exists():
            break
        time.sleep(0.1)
    return daemon


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _make_gpus(folder: Path) -> None:
    """Devices that every system has stand for GPUs; SLURM looks whether they are there, and counts them."""
    devices = iter(("null", "zero", "full", "urandom"))
    lines = [f"NodeName={node} Name=gpu File=/dev/{next(devices)}\n" for node in NODES for _ in range(GPUS)]
    (folder / "gres.conf").write_text("".join(lines))


def _configuration(folder: Path, ports: list[int]) -> str:
    host = socket.gethostname().split(".")[0]
    for name in ("state", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir()
    nodes = "\n".join(
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=8 RealMemory={MEMORY_MIB} "
        f"Gres=gpu:{GPUS}"
        for name, port in zip(NODES, ports[1:], strict=True)
    )
    return f"""ClusterName=box
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=2
JobAcctGatherParams=OverMemoryKill
DependencyParameters=kill_invalid_depend
GresTypes=gpu
ReturnToService=2
KillWait=30
SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=2
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/jobs.txt
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
{nodes}
PartitionName=all Nodes={",".join(NODES)} Default=YES MaxTime=INFINITE State=UP
"""
