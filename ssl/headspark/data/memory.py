"""How much memory this process may still take: what is free on the machine, and what its job leaves it.

Going beyond the limit of any control group around the process ends the job; so may going beyond what SLURM granted,
which counts the memory of a job itself where it has no control groups for that.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from harmonize.control_groups import PROCESS, control_groups, read_lines

MIB, GIB = 2**20, 2**30
SHARED_MEMORY = Path("/dev/shm")
"""Where processes of a machine share memory; Linux alone has it."""


def gib(size: float) -> str:
    """Bytes in GiB."""
    return f"{size / GIB:.1f} GiB"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """One of the two kinds of control groups, and the names of its files.

    Attributes:
        limits: Beyond these a group is slowed down or killed.
        usage: What all its processes and inner groups take, the page cache included.
        reclaimable: The part of memory.stat that the kernel gives back before it kills: old pages of files.
        inherited: The smallest limit of all outer groups as memory.stat tells it, those that a container hides too.
    """

    limits: tuple[str, ...]
    usage: str
    reclaimable: str
    inherited: str | None


_V2 = _Kind(
    limits=("memory.max", "memory.high"), usage="memory.current", reclaimable="inactive_file", inherited=None
)  # fmt: skip
_V1 = _Kind(
    limits=("memory.limit_in_bytes",),
    usage="memory.usage_in_bytes",
    reclaimable="total_inactive_file",
    inherited="hierarchical_memory_limit",
)
_KINDS = {1: _V1, 2: _V2}


def free_memory(process: Path = PROCESS, root: Path = Path("/"), environment: Mapping[str, str] | None = None) -> int:
    """Bytes that this process could still take.

    Args:
        process: Its folder below /proc.
        root: Where the file system begins that mount points are named in.
        environment: Where SLURM says what it granted; None: the process's own.

    Returns:
        The least of what is free on the machine, what each control group around the process leaves, and what SLURM
        granted the job on this node and ``ulimit -v`` the process, without what this process has of it already.
    """
    free = psutil.virtual_memory().available
    for group in control_groups("memory", process, root):
        left = _left(_KINDS[group.version], group.folder)
        free = free if left is None else min(free, left)
    granted = slurm_memory(os.environ if environment is None else environment)
    if granted is not None:
        free = min(free, granted - psutil.Process().memory_info().rss)
    addresses = address_limit()
    if addresses is not None:
        free = min(free, addresses - psutil.Process().memory_info().vms)
    return max(free, 0)


def address_limit() -> int | None:
    """Bytes of addresses that ``ulimit -v`` leaves each process, which libraries take more of than of memory; None
    without such a limit, and where there are none."""
    if not hasattr(psutil, "RLIMIT_AS"):  # Linux alone counts them
        return None
    limit = psutil.Process().rlimit(psutil.RLIMIT_AS)[0]
    return None if limit == psutil.RLIM_INFINITY else int(limit)


def slurm_memory(environment: Mapping[str, str]) -> int | None:
    """Bytes that SLURM granted a job on this node; None outside of a job, and where it granted all there are."""
    node = environment.get("SLURM_MEM_PER_NODE", "")
    core, cores = environment.get("SLURM_MEM_PER_CPU", ""), environment.get("SLURM_CPUS_ON_NODE", "")
    granted = 0
    if node.isdecimal():
        granted = int(node) * MIB
    elif core.isdecimal() and cores.isdecimal():
        granted = int(core) * int(cores) * MIB
    return granted or None  # 0 is how SLURM writes all of a node


def _left(kind: _Kind, folder: Path) -> int | None:
    """Bytes that one group leaves; None if it has no limit."""
    statistics = dict(line.split(" ", 1) for line in read_lines(folder / "memory.stat") if " " in line)
    limits = [_number(" ".join(read_lines(folder / name))) for name in kind.limits]
    if kind.inherited is not None:
        limits.append(_number(statistics.get(kind.inherited, "")))
    known = [limit for limit in limits if limit is not None]
    used = _number(" ".join(read_lines(folder / kind.usage)))
    if not known or used is None:
        return None
    return min(known) - max(used - (_number(statistics.get(kind.reclaimable, "")) or 0), 0)


def _number(text: str) -> int | None:
    """A count of bytes; None for ``max`` and for what is absent."""
    return int(text) if text.strip().isdecimal() else None
