"""A real SLURM of two virtual nodes on this host, for the tests of the batch scripts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import standin_cluster
from standin_cluster import Cluster

REQUIRED = "HEADSPARK_SLURM"
"""Set to ``required`` where these tests must not be skipped."""


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Skips where there can be none, or fails where it was said that there must be one."""
    reason = standin_cluster.missing()
    if reason is not None:
        if os.environ.get(REQUIRED) == "required":
            pytest.fail(reason)
        pytest.skip(f"no SLURM here: {reason}")
    with standin_cluster.running(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture
def submit_folder(tmp_path: Path) -> Path:
    """A folder as users submit from."""
    return standin_cluster.project(tmp_path / "project")
