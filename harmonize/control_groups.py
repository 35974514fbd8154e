"""The control groups around a process: what a job, a container or a service may take of the machine that it runs on.

A job of SLURM with cgroup v2 lies in nested groups (job, step, task), those of a container or of systemd lie above it,
and each may have a limit: the tightest counts. cgroup v1 nests in the same way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

PROCESS = Path("/proc/self")


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlGroup:
    """One group that a process lies in.

    Attributes:
        version: 1 or 2: they have files of other names.
        folder: With these files.
    """

    version: int
    folder: Path


def control_groups(controller: str, process: Path = PROCESS, root: Path = Path("/")) -> Iterator[ControlGroup]:
    """Each group around a process that may limit something, from the innermost to the outermost that is visible.

    Args:
        controller: What is limited: ``memory`` or ``cpu``.
        process: Its folder below /proc.
        root: Where the file system begins that mount points are named in.
    """
    paths: dict[int, PurePosixPath] = {}
    for line in read_lines(process / "cgroup"):
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not controllers:
            paths[2] = PurePosixPath(path)
        elif controller in controllers.split(","):
            paths[1] = PurePosixPath(path)
    for version, shown, mount in _mounts(controller, process):
        if version not in paths:
            continue
        top = root / mount.relative_to("/")
        # A container may mount its own group alone, or be shown a path that leads out of it.
        inner = paths[version].relative_to(shown) if paths[version].is_relative_to(shown) else PurePosixPath()
        group = top if ".." in inner.parts else top / inner
        for folder in (group, *group.parents):
            yield ControlGroup(version=version, folder=folder)
            if folder == top:
                break


def core_limit(process: Path = PROCESS, root: Path = Path("/")) -> float | None:
    """So many cores' time the tightest group leaves this process and those that share it; None without a limit."""
    limits = []
    for group in control_groups("cpu", process, root):
        names = ("cpu.max",) if group.version == 2 else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        words = " ".join(" ".join(read_lines(group.folder / name)) for name in names).split()
        if len(words) == 2 and all(word.isdecimal() and int(word) > 0 for word in words):  # v1 says -1, v2 max
            limits.append(int(words[0]) / int(words[1]))
    return min(limits, default=None)


def _mounts(controller: str, process: Path) -> Iterator[tuple[int, PurePosixPath, PurePosixPath]]:
    """Where the file systems of control groups are mounted: version, the group that is mounted, mount point."""
    for line in read_lines(process / "mountinfo"):
        before, _, after = line.partition(" - ")
        fields, (system, *rest) = before.split(), after.split() or [""]
        if system == "cgroup2":
            version = 2
        elif system == "cgroup" and controller in rest[-1].split(","):
            version = 1
        else:
            continue
        shown, mount = (PurePosixPath(re.sub(r"\\(\d{3})", _octal, field)) for field in fields[3:5])
        yield version, shown, mount


def _octal(found: re.Match[str]) -> str:
    """A blank as mountinfo writes it."""
    return chr(int(found[1], 8))


def read_lines(path: Path) -> list[str]:
    """The lines of a file of the kernel's; none where there is none to read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []  # another system, no such group, or one that this user may not look into
