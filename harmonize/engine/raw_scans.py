"""The scans of a raw root: each named once, and parted among shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from harmonize import identity
from harmonize.corpus.journal import Key
from harmonize.errors import UserError
from harmonize.scan import LeftOut, ScanRef
from harmonize.settings import Settings


@dataclass(slots=True)
class Found:
    """What a look at the whole raw folder gave.

    Attributes:
        references: The scans.
        duplicates: Those whose name in the corpus an earlier one has taken.
        left_out: Files that no scan is made of, by kind and reason.
    """

    references: list[ScanRef] = field(default_factory=list)
    duplicates: list[ScanRef] = field(default_factory=list)
    left_out: Counter[tuple[str, str]] = field(default_factory=Counter)


def sort_in(
    items: Iterable[ScanRef | LeftOut], source: str, root: Path, settings: Settings, limit: int | None
) -> Found:
    """Name each scan once.

    Args:
        items: What the source discovers.
        source: Registry name.
        root: The raw folder.
        settings: How the corpus is made; ids are hashed with its salt.
        limit: Only the first so many scans.

    Raises:
        UserError: There are no scans.
    """
    found = Found()
    keys: set[str] = set()
    names: set[tuple[str, str]] = set()

    def seen() -> Iterator[ScanRef]:
        for item in items:
            if isinstance(item, LeftOut):
                found.left_out[item.what, item.why] += item.count
            else:
                yield item

    for ref in islice(seen(), limit):
        if ref.key in keys:
            found.left_out["named twice", "the same scan was found before"] += 1
            continue
        keys.add(ref.key)
        # Folded, because the corpus may be copied to a file system that does not tell case.
        name = (identity.subject_id(ref, settings.salt).casefold(), identity.scan_id(ref, settings.salt).casefold())
        (found.duplicates if name in names else found.references).append(ref)
        names.add(name)
    if not found.references:
        there = ", ".join(f"{count} {what} ({why})" for (what, why), count in found.left_out.most_common(3))
        seen_instead = f", only {there}" if there else ""
        raise UserError(f"{root}: no {source} scans found{seen_instead}; give the folder that holds the raw data")
    return found


def of_shard(found: Found, settings: Settings, shard: tuple[int, int] | None) -> Found:
    """The scans of one shard (i, n); all without one."""
    if shard is None:
        return found
    index, count = shard
    return Found(
        references=[ref for ref in found.references if _shard_of(ref, settings, count) == index],
        duplicates=[ref for ref in found.duplicates if _shard_of(ref, settings, count) == index],
    )


def _shard_of(ref: ScanRef, settings: Settings, parts: int) -> int:
    """Which shard a scan belongs to: by its hash, so that a scan more or less moves no other."""
    return int(identity.raw_hash(ref, settings.salt), 16) % parts


def key_of(ref: ScanRef, settings: Settings) -> Key:
    """A raw scan's key in the journal."""
    return ref.source, identity.raw_hash(ref, settings.salt)
