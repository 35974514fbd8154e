"""Scans of a source with the same voxels: the one with the least scan id is kept, whoever was done first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harmonize.corpus.journal import Key, Record
from harmonize.decisions import DecisionKind
from harmonize.errors import Reason, Rejection, Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicates:
    """Which accepted scans are another one's voxels again.

    Attributes:
        kept: By duplicate: the scan that stays.
        contradicted: Scans, kept or not, whose labels are not those of another with the same voxels.
    """

    kept: Mapping[Key, Record]
    contradicted: frozenset[Key]


def find(records: Mapping[Key, Record]) -> Duplicates:
    """Compare the accepted scans of each source by the hashes of their images: voxels, scale and place.

    It depends on the records alone, so neither order nor workers nor shards show.
    """
    groups: dict[tuple[str, str], list[Key]] = {}
    for key, record in records.items():
        if record.row is not None:
            groups.setdefault((record.source, record.row["sha256"]), []).append(key)
    kept: dict[Key, Record] = {}
    contradicted: set[Key] = set()
    for keys in groups.values():
        if len(keys) == 1:
            continue
        first, *others = sorted(keys, key=lambda key: (_row(records[key])["scan_id"], key))
        kept |= dict.fromkeys(others, records[first])
        labels = {tuple(found) for key in keys if (found := _row(records[key])["labels"]) is not None}
        if len(labels) > 1:
            contradicted.update(keys)
    return Duplicates(kept=kept, contradicted=frozenset(contradicted))


def rejection(record: Record, kept: Record, *, contradicted: bool) -> Rejection:
    """Why a duplicate is not in the corpus."""
    message = f"the same voxels as scan {_row(kept)['scan_id']}, which is kept"
    if contradicted:
        message += "; their labels contradict each other, so neither's are used"
    elif _row(record)["labels"] != _row(kept)["labels"]:
        message += "; of the two only one has labels"
    return Rejection(Reason.DUPLICATE, message, stage=Stage.WRITE)


def lost_rejection(record: Record) -> Rejection:
    """Why a scan is not there that was a duplicate, of one that has changed since: it is made again first."""
    message = f"had the voxels of scan {record.duplicate_of}, which has changed since: the same command makes it again"
    return Rejection(Reason.DUPLICATE, message, stage=Stage.WRITE)


def without_labels(row: dict[str, Any]) -> dict[str, Any]:
    """A kept scan's row, where a duplicate contradicts its labels."""
    return row | {"labels": None, "decisions": [*row["decisions"], DecisionKind.LABELS_CONTRADICTED()]}


def _row(record: Record) -> dict[str, Any]:
    assert record.row is not None
    return record.row
