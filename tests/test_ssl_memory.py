"""The memory that is free is what the tightest of all control groups around the process leaves."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headspark.data.memory import free_memory

GIB = 2**30
AVAILABLE = 500 * GIB
UNLIMITED_V1 = "9223372036854771712"
V2_MOUNT = "29 23 0:26 {shown} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1_MOUNT = "35 31 0:32 {shown} /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory"
SLURM = "/system.slice/slurmstepd.scope/job_7/step_0/user/task_0"


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=AVAILABLE))


def process(folder: Path, *, groups: list[str], mounts: list[str]) -> Path:
    made = folder / "proc"
    made.mkdir(parents=True)
    (made / "cgroup").write_text("".join(f"{line}\n" for line in groups))
    (made / "mountinfo").write_text("22 1 8:1 / / rw - ext4 /dev/sda1 rw\n" + "".join(f"{line}\n" for line in mounts))
    return made


def group(folder: Path, files: Mapping[str, object]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(f"{content}\n")


def v2(limit: object, used: int, *, inactive: int = 0, high: object = "max") -> dict[str, object]:
    return {
        "memory.max": limit, "memory.high": high, "memory.current": used,
        "memory.stat": f"anon {used}\ninactive_file {inactive}\nactive_file 0",
    }  # fmt: skip


def test_the_limit_of_a_slurm_job_counts_for_its_tasks(tmp_path: Path) -> None:
    top = tmp_path / "sys/fs/cgroup"
    group(top / SLURM.lstrip("/"), v2("max", 3 * GIB))
    group(top / "system.slice/slurmstepd.scope/job_7", v2(32 * GIB, 5 * GIB))
    group(top / "system.slice", v2("max", 90 * GIB))
    asking = process(tmp_path, groups=[f"0::{SLURM}"], mounts=[V2_MOUNT.format(shown="/")])
    assert free_memory(asking, tmp_path) == 27 * GIB


def test_page_cache_that_nobody_uses_is_free(tmp_path: Path) -> None:
    group(tmp_path / "sys/fs/cgroup/job", v2(32 * GIB, 30 * GIB, inactive=20 * GIB))
    asking = process(tmp_path, groups=["0::/job"], mounts=[V2_MOUNT.format(shown="/")])
    assert free_memory(asking, tmp_path) == 22 * GIB


def test_a_soft_limit_counts_too(tmp_path: Path) -> None:
    group(tmp_path / "sys/fs/cgroup/job", v2(32 * GIB, GIB, high=16 * GIB))
    asking = process(tmp_path, groups=["0::/job"], mounts=[V2_MOUNT.format(shown="/")])
    assert free_memory(asking, tmp_path) == 15 * GIB


def test_a_group_beyond_its_limit_leaves_nothing(tmp_path: Path) -> None:
    group(tmp_path / "sys/fs/cgroup/job", v2(GIB, 2 * GIB))
    asking = process(tmp_path, groups=["0::/job"], mounts=[V2_MOUNT.format(shown="/")])
    assert free_memory(asking, tmp_path) == 0


@pytest.mark.parametrize("cgroup", [[], ["0::/"], ["0::/job"], ["no such line"]])
def test_without_a_limit_it_is_the_machines(tmp_path: Path, cgroup: list[str]) -> None:
    group(tmp_path / "sys/fs/cgroup/job", v2("max", 2 * GIB))
    asking = process(tmp_path, groups=cgroup, mounts=[V2_MOUNT.format(shown="/")])
    assert free_memory(asking, tmp_path) == AVAILABLE


def test_a_system_without_control_groups_has_the_machines_memory(tmp_path: Path) -> None:
    assert free_memory(tmp_path / "no-proc", tmp_path) == AVAILABLE


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/", "/"),  # a container with a name space of its own
        ("/docker/4f2a", "/docker/4f2a"),  # one without: paths are the host's, its own group alone is mounted
        ("/../../init.scope", "/"),  # moved here from outside
        ("/docker/other", "/docker/4f2a"),
    ],
)
def test_the_limit_of_a_container_counts_however_its_groups_are_shown(tmp_path: Path, path: str, shown: str) -> None:
    group(tmp_path / "sys/fs/cgroup", v2(8 * GIB, 2 * GIB))
    asking = process(tmp_path, groups=[f"0::{path}"], mounts=[V2_MOUNT.format(shown=shown)])
    assert free_memory(asking, tmp_path) == 6 * GIB


def test_groups_of_the_first_kind_nest_too(tmp_path: Path) -> None:
    top = tmp_path / "sys/fs/cgroup/memory"
    stat = "inactive_file 1\ntotal_inactive_file {}\nhierarchical_memory_limit {}"
    own = {
        "memory.limit_in_bytes": UNLIMITED_V1, "memory.usage_in_bytes": 2 * GIB,
        "memory.stat": stat.format(0, UNLIMITED_V1),
    }  # fmt: skip
    job = {
        "memory.limit_in_bytes": 16 * GIB, "memory.usage_in_bytes": 9 * GIB,
        "memory.stat": stat.format(4 * GIB, 16 * GIB),
    }  # fmt: skip
    group(top / "slurm/uid_1/job_7/step_0/task_0", own)
    group(top / "slurm/uid_1/job_7", job)
    asking = process(
        tmp_path,
        groups=["5:cpu,cpuacct:/slurm", "4:memory:/slurm/uid_1/job_7/step_0/task_0", "0::/"],
        mounts=[V1_MOUNT.format(shown="/"), "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw"],
    )
    assert free_memory(asking, tmp_path) == 11 * GIB


def test_a_limit_that_a_container_hides_is_told_by_the_statistics(tmp_path: Path) -> None:
    own = {
        "memory.limit_in_bytes": UNLIMITED_V1, "memory.usage_in_bytes": GIB,
        "memory.stat": f"hierarchical_memory_limit {4 * GIB}",
    }  # fmt: skip
    group(tmp_path / "sys/fs/cgroup/memory", own)
    asking = process(tmp_path, groups=["4:memory:/kubepods/pod"], mounts=[V1_MOUNT.format(shown="/kubepods/pod")])
    assert free_memory(asking, tmp_path) == 3 * GIB


def test_ulimit_leaves_a_process_less_than_the_machine_has() -> None:
    """In a process of its own: a limit cannot be taken back by whoever is not root."""
    code = (
        "import psutil; from headspark.data.memory import free_memory, address_limit; process = psutil.Process();"
        "before = address_limit(); limit = process.memory_info().vms + 300 * 2**20;"
        "process.rlimit(psutil.RLIMIT_AS, (limit, limit));"
        "print(before, free_memory() <= 300 * 2**20, address_limit() == limit)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["None", "True", "True"]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(levels=st.lists(st.tuples(st.none() | st.integers(0, 600), st.integers(0, 90), st.integers(0, 90)), max_size=6))
def test_it_is_the_least_that_any_level_leaves(
    tmp_path_factory: pytest.TempPathFactory, levels: list[tuple[int | None, int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("machine")
    place, path = folder / "sys/fs/cgroup", ""
    for number, (limit, used, inactive) in enumerate(levels):
        path += f"/level {number}"
        group(
            place / path.lstrip("/"),
            v2("max" if limit is None else limit * GIB, used * GIB, inactive=inactive * GIB),
        )
    asking = process(folder, groups=[f"0::{path or '/'}"], mounts=[V2_MOUNT.format(shown="/")])
    left = [limit - max(used - inactive, 0) for limit, used, inactive in levels if limit is not None]
    assert free_memory(asking, folder) == max(min([AVAILABLE // GIB, *left]), 0) * GIB
