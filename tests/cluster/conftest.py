"""A real SLURM of two virtual nodes on this host, for the tests of the batch scripts."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue")


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Environment in which ``sbatch`` speaks to a SLURM that this fixture started; needs root and slurm-wlm."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"no SLURM here (missing: {', '.join(missing) or 'root'}); apt-get install slurm-wlm")
    folder = tmp_path_factory.mktemp("slurm")
    configuration = folder / "slurm.conf"
    configuration.write_text(_configuration(folder))
    environment = {**os.environ, "SLURM_CONF": str(configuration), "PATH": f"{os.environ['PATH']}:/usr/sbin"}
    munge_was_running = subprocess.run(["pgrep", "munged"], capture_output=True).returncode == 0
    if not munge_was_running:
        Path("/run/munge").mkdir(exist_ok=True)
        shutil.chown("/run/munge", "munge", "munge")
        subprocess.run(["runuser", "-u", "munge", "--", "munged"], check=True)
    daemons = [
        subprocess.Popen(["slurmctld", "-D", "-c"], env=environment, stderr=subprocess.DEVNULL),
        *(
            subprocess.Popen(["slurmd", "-D", "-N", node], env=environment, stderr=subprocess.DEVNULL)
            for node in ("n1", "n2")
        ),
    ]
    try:
        _wait_for_nodes(environment)
        yield environment
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(timeout=30)
        if not munge_was_running:
            os.kill(int(Path("/run/munge/munged.pid").read_text()), signal.SIGTERM)


def _wait_for_nodes(environment: dict[str, str]) -> None:
    for _ in range(60):
        done = subprocess.run(["sinfo", "-h", "-o", "%T %D"], env=environment, capture_output=True, text=True)
        if "idle 2" in done.stdout:
            return
        time.sleep(0.5)
    pytest.fail(f"SLURM did not come up: {done.stdout}{done.stderr}")


def _configuration(folder: Path) -> str:
    host = socket.gethostname().split(".")[0]
    for name in ("state", "spool-n1", "spool-n2"):
        (folder / name).mkdir()
    nodes = "\n".join(
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=8 RealMemory=4000"
        for name, port in (("n1", 6818), ("n2", 6819))
    )
    return f"""ClusterName=box
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort=6827
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/linux
ReturnToService=2
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/jobs.txt
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
{nodes}
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""
