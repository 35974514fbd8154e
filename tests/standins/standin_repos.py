"""What the stand-in for the Hugging Face Hub remembers, and how it lists it."""

from __future__ import annotations

import hashlib
import re
import threading
from dataclasses import dataclass, field
from typing import Any

LFS_SUFFIXES = (".safetensors", ".png", ".nii.gz", ".parquet")


@dataclass
class Repo:
    private: bool
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{}])
    tags: dict[str, int] = field(default_factory=dict)
    gated: bool = False
    admitted: bool = False

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1]

    @property
    def sha(self) -> str:
        return f"{len(self.commits):040x}"

    def at(self, revision: str) -> int | None:
        """The number of the commit that a branch, a tag or a hash names."""
        known = {"main": len(self.commits), **self.tags}
        if re.fullmatch(r"[0-9a-f]{40}", revision) and 0 < int(revision, 16) <= len(self.commits):
            return int(revision, 16)
        return known.get(revision)


@dataclass
class Hub:
    """What the stand-in remembers; datasets are named ``datasets/user/name``.

    Attributes:
        part_bytes: LFS files that are larger go in parts of so many bytes; None: as a whole.
        forgets_parts: No part that was offered before is taken.
        received: Bytes of LFS files that came, whole or in parts.
        sent: Bytes of files that went out.
        break_upload_after: Each connection is cut that would make `received` larger.
        break_download_after: Likewise for `sent`.
        silent: Set: whatever is asked to be written is taken, and never answered.
    """

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    downloads: list[str] = field(default_factory=list)
    uploads: list[str] = field(default_factory=list)
    fail_uploads: bool = False
    break_after: int | None = None
    fail_downloads: int = 0
    part_bytes: int | None = None
    forgets_parts: bool = False
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)
    silent: threading.Event = field(default_factory=threading.Event)
    received: int = 0
    sent: int = 0
    break_upload_after: int | None = None
    break_download_after: int | None = None


def entry_of(path: str, content: bytes) -> dict[str, object]:
    oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry: dict[str, object] = {"type": "file", "path": path, "size": len(content), "oid": oid}
    if path.endswith(LFS_SUFFIXES):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return entry


def oid_of(entry: dict[str, Any]) -> dict[str, object]:
    """What the client compares its file with: git's hash, or that of a large one."""
    return {"oid": entry.get("lfs", entry)["oid"]} if entry else {}


def tree_of(files: dict[str, bytes], folder: str, recursive: bool) -> list[dict[str, object]]:
    prefix = f"{folder}/" if folder else ""
    below = {path: content for path, content in files.items() if path.startswith(prefix)}
    parts = {path: path.removeprefix(prefix).split("/") for path in below}
    folders = {
        prefix + "/".join(names[:depth])
        for names in parts.values()
        for depth in range(1, len(names) if recursive else min(2, len(names)))
    }
    shown = [entry_of(path, below[path]) for path in below if recursive or len(parts[path]) == 1]
    return [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in sorted(folders)] + shown
