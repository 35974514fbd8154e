"""slurm/meet.py: the nodes of a job try whether they can meet before they train."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

MEET = Path(__file__).resolve().parents[1] / "slurm/meet.py"


@pytest.fixture
def node() -> Callable[..., subprocess.CompletedProcess[str]]:
    """One of two nodes that try whether they can meet."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]

    def run(rank: int, patience_s: float) -> subprocess.CompletedProcess[str]:
        given = {
            "SLURM_PROCID": str(rank), "SLURM_NTASKS": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            "SLURMD_NODENAME": f"node-{rank + 1}", "HEADSPARK_MEET_S": str(patience_s),
        }  # fmt: skip
        words = [sys.executable, "-I", str(MEET), "meet"]
        return subprocess.run(words, env=os.environ | given, capture_output=True, text=True, timeout=60)

    return run


def test_nodes_that_reach_each_other_say_nothing(node: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    ended: list[subprocess.CompletedProcess[str]] = []
    threads = [threading.Thread(target=lambda rank=rank: ended.append(node(rank, 30))) for rank in (1, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(done.returncode, done.stdout, done.stderr) for done in ended] == [(0, "", "")] * 2


def test_nodes_that_do_not_say_so_within_a_minute_not_within_six_hours(
    node: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    first, second = node(0, 0.3), node(1, 0.3)
    assert (first.returncode, second.returncode) == (2, 2)
    assert first.stderr.startswith("error: node-1: 1 of 1 nodes did not call at port ")
    assert second.stderr.startswith("error: node-2: cannot reach the first node at 127.0.0.1:")
    assert "Connection refused" in second.stderr
