"""Scans of a source with the same voxels: the one that most is known of is kept, whoever was done first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harmonize.corpus.journal import Key, Record
from harmonize.decisions import Decision, DecisionKind
from harmonize.errors import Reason, Rejection, Stage

_COLUMNS = ("age", "sex")
_MASK, _POINTS = "mask", "points"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contradictions:
    """What scans with the same voxels do not agree in.

    Attributes:
        labels: Their labels; neither's are used.
        left_out: Age, sex and columns of the table, which are left out, as where a table contradicts itself.
        kept: Masks and points, of which the kept scan's stay: they are of its voxels, as the others' are.
    """

    labels: bool = False
    left_out: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()

    def decisions(self) -> list[Decision]:
        """What the kept scan is said to have."""
        found = [DecisionKind.LABELS_CONTRADICTED()] if self.labels else []
        if self.left_out:
            found.append(DecisionKind.VALUES_CONTRADICTED(names=", ".join(self.left_out)))
        if self.kept:
            found.append(DecisionKind.COPY_DIFFERS(names=" and ".join(self.kept)))
        return found


NOTHING = Contradictions()


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicates:
    """Which accepted scans are another one's voxels again.

    Attributes:
        kept: By duplicate: the scan that stays.
        contradictions: By scan, kept or not, that does not agree with another of the same voxels.
    """

    kept: Mapping[Key, Record]
    contradictions: Mapping[Key, Contradictions]

    def of(self, key: Key) -> Contradictions:
        """What a scan and those with its voxels do not agree in."""
        return self.contradictions.get(key, NOTHING)


def find(records: Mapping[Key, Record], *, is_there: Callable[[Record], bool] | None = None) -> Duplicates:
    """Compare the accepted scans of each source by the hashes of their images: voxels, scale and place.

    The one with a mask stays, then that with labels, points, and most values of tables, then that of the least scan id.
    It depends on the records alone, so neither order nor workers nor shards show.

    Args:
        records: The scans.
        is_there: Whether a scan's files are there; one without them is kept only where none has them.
    """
    groups: dict[tuple[str, str], list[Key]] = {}
    for key, record in records.items():
        if record.row is not None:
            groups.setdefault((record.source, record.row["sha256"]), []).append(key)
    kept: dict[Key, Record] = {}
    contradictions: dict[Key, Contradictions] = {}
    for keys in groups.values():
        if len(keys) == 1:
            continue
        absent = {key: is_there is not None and not is_there(records[key]) for key in keys}
        first, *others = sorted(keys, key=lambda key: (absent[key], *_order(_row(records[key])), key))
        kept |= dict.fromkeys(others, records[first])
        found = _contradictions([_row(records[key]) for key in keys])
        if found != NOTHING:
            contradictions |= dict.fromkeys(keys, found)
    return Duplicates(kept=kept, contradictions=contradictions)


def rejection(record: Record, kept: Record, found: Contradictions) -> Rejection:
    """Why a duplicate is not in the corpus, and what it says that the kept one does not."""
    row, stays = _row(record), _row(kept)
    message = f"the same voxels as scan {stays['scan_id']}, which is kept"
    if found.labels:
        message += "; their labels contradict each other, so neither's are used"
    elif row["labels"] != stays["labels"]:
        message += "; of the two only one has labels"
    if found.left_out or found.kept:
        message += f"; they differ in {', '.join((*found.left_out, *found.kept))}"
    alone = [name for facts in (_drawn, _values) for name in facts(row) if name not in facts(stays)]
    if alone:
        message += f"; only this one has {', '.join(alone)}"
    return Rejection(Reason.DUPLICATE, message, stage=Stage.WRITE)


def lost_rejection(record: Record) -> Rejection:
    """Why a scan is not there that was a duplicate, of one that has changed since: it is made again first."""
    message = f"had the voxels of scan {record.duplicate_of}, which has changed since: the same command makes it again"
    return Rejection(Reason.DUPLICATE, message, stage=Stage.WRITE)


def without_contradictions(row: dict[str, Any], found: Contradictions) -> dict[str, Any]:
    """A kept scan's row, without what a duplicate contradicts."""
    row = row | {"decisions": [*row["decisions"], *map(str, found.decisions())]}
    if found.labels:
        row["labels"] = None
    row |= {name: None for name in _COLUMNS if name in found.left_out}
    if row.get("table"):
        row["table"] = [entry for entry in row["table"] if entry["column"] not in found.left_out] or None
    return row


def _order(row: Mapping[str, Any]) -> tuple[bool, bool, int, int, str]:
    """Ascending: the more is known of a scan, the earlier it comes."""
    drawn = _drawn(row)
    points = len(drawn.get(_POINTS, ()))
    return _MASK not in drawn, row["labels"] is None, -points, -len(_values(row)), row["scan_id"]


def _values(row: Mapping[str, Any]) -> dict[str, Any]:
    """What tables say of a scan besides its labels, by name."""
    found = {name: row[name] for name in _COLUMNS if row.get(name) is not None}
    return found | {entry["column"]: entry["value"] for entry in row.get("table") or ()}


def _drawn(row: Mapping[str, Any]) -> dict[str, Any]:
    """What somebody drew into a scan."""
    mask = {} if row.get("mask_sha256") is None else {_MASK: (row["mask_sha256"], row["mask_kind"])}
    return mask | ({_POINTS: row["points"]} if row.get("points") else {})


def _contradictions(rows: Sequence[Mapping[str, Any]]) -> Contradictions:
    labels = {tuple(row["labels"]) for row in rows if row["labels"] is not None}
    return Contradictions(
        labels=len(labels) > 1, left_out=_differing(map(_values, rows)), kept=_differing(map(_drawn, rows))
    )


def _differing(facts: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """The names under which two of them say different things."""
    first: dict[str, Any] = {}
    found: set[str] = set()
    for each in facts:
        found.update(name for name, value in each.items() if first.setdefault(name, value) != value)
    return tuple(sorted(found))


def _row(record: Record) -> dict[str, Any]:
    assert record.row is not None
    return record.row
