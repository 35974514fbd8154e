"""How much memory this process may still take: what is free on the machine, and what its control groups leave it.

A job of SLURM with cgroup v2 lies in nested groups (job, step, task), those of a container or of systemd lie above it,
and each may have a limit: going beyond any of them ends the job. cgroup v1 nests in the same way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil

PROCESS = Path("/proc/self")


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


def free_memory(process: Path = PROCESS, root: Path = Path("/")) -> int:
    """Bytes that this process could still take.

    Args:
        process: Its folder below /proc.
        root: Where the file system begins that mount points are named in.

    Returns:
        The least of what is free on the machine and what each control group around the process leaves.
    """
    free = psutil.virtual_memory().available
    for kind, group, top in _groups(process, root):
        for folder in (group, *group.parents):
            left = _left(kind, folder)
            free = free if left is None else min(free, left)
            if folder == top:
                break
    return max(free, 0)


def _groups(process: Path, root: Path) -> Iterator[tuple[_Kind, Path, Path]]:
    """Each control group of the process that may limit memory: its kind, its folder, and the outermost visible one."""
    paths: dict[_Kind, PurePosixPath] = {}
    for line in _lines(process / "cgroup"):
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not controllers:
            paths[_V2] = PurePosixPath(path)
        elif "memory" in controllers.split(","):
            paths[_V1] = PurePosixPath(path)
    for kind, shown, mount in _mounts(process):
        if kind not in paths:
            continue
        top = root / mount.relative_to("/")
        # A container may mount its own group alone, or be shown a path that leads out of it.
        inner = paths[kind].relative_to(shown) if paths[kind].is_relative_to(shown) else PurePosixPath()
        yield kind, top if ".." in inner.parts else top / inner, top


def _mounts(process: Path) -> Iterator[tuple[_Kind, PurePosixPath, PurePosixPath]]:
    """Where the file systems of control groups are mounted: kind, the group that is mounted, mount point."""
    for line in _lines(process / "mountinfo"):
        before, _, after = line.partition(" - ")
        fields, (system, *rest) = before.split(), after.split() or [""]
        if system == "cgroup2":
            kind = _V2
        elif system == "cgroup" and "memory" in rest[-1].split(","):
            kind = _V1
        else:
            continue
        shown, mount = (PurePosixPath(re.sub(r"\\(\d{3})", _octal, field)) for field in fields[3:5])
        yield kind, shown, mount


def _octal(found: re.Match[str]) -> str:
    """A blank as mountinfo writes it."""
    return chr(int(found[1], 8))


def _left(kind: _Kind, folder: Path) -> int | None:
    """Bytes that one group leaves; None if it has no limit."""
    statistics = dict(line.split(" ", 1) for line in _lines(folder / "memory.stat") if " " in line)
    limits = [_number(" ".join(_lines(folder / name))) for name in kind.limits]
    if kind.inherited is not None:
        limits.append(_number(statistics.get(kind.inherited, "")))
    known = [limit for limit in limits if limit is not None]
    used = _number(" ".join(_lines(folder / kind.usage)))
    if not known or used is None:
        return None
    return min(known) - max(used - (_number(statistics.get(kind.reclaimable, "")) or 0), 0)


def _number(text: str) -> int | None:
    """A count of bytes; None for ``max`` and for what is absent."""
    return int(text) if text.strip().isdecimal() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []  # another system, no such group, or one that this user may not look into
