"""What a run is to do: the scans of the raw folder, and which of them are its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harmonize import sources
from harmonize.engine import shared_look
from harmonize.engine.raw_scans import Found, of_shard, sort_in
from harmonize.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run is to do.

    Attributes:
        source: Registry name.
        root: The raw folder.
        out: The corpus.
        settings: How.
        shard: (i, n) of a run that does only the i-th of n parts.
        found: The scans of the raw folder.
        mine: Those of them that this run takes care of: its shard's, or all.
        whole: All of the raw folder was looked at, for this run alone.
    """

    source: str
    root: Path
    out: Path
    settings: Settings
    shard: tuple[int, int] | None
    found: Found
    mine: Found
    whole: bool


def make_plan(
    source: str,
    root: Path,
    out: Path,
    settings: Settings,
    *,
    limit: int | None,
    shard: tuple[int, int] | None,
    given: Mapping[str, Any],
) -> Plan:
    """Look at the raw folder, and take this run's part of it; shards share a look that takes long.

    Raises:
        UserError: It holds no scans.
    """
    if shard is not None and limit is None and sources.entry(source).opens_files:
        items = shared_look.discover(source, root, out, settings.salt)
    else:
        items = sources.get(source).discover(root, **given)
    found = sort_in(items, source, root, settings, limit)
    return Plan(
        source=source,
        root=root,
        out=out,
        settings=settings,
        shard=shard,
        found=found,
        mine=of_shard(found, settings, shard),
        whole=limit is None and shard is None,
    )
