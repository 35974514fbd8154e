"""What an earlier version took for one scan, and is several: none of the old stays beside the new."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harmonize import identity
from harmonize.corpus import fingerprint
from harmonize.corpus.journal import Record
from harmonize.engine import changes
from harmonize.scan import ScanRef
from harmonize.settings import Settings

SETTINGS = Settings()


@pytest.fixture
def woven(tmp_path: Path) -> ScanRef:
    """A scan of four files."""
    for number in range(4):
        (tmp_path / f"{number}.dcm").write_bytes(b"x")
    files = tuple(tmp_path / f"{number}.dcm" for number in range(4))
    return ScanRef(source="dicom", key="series", subject="s", root=tmp_path, paths=files, modality="CT")


def part(ref: ScanRef, key: str, *numbers: int) -> ScanRef:
    return replace(ref, key=key, paths=tuple(ref.paths[number] for number in numbers))


def accepted(ref: ScanRef, sha256: str) -> dict[tuple[str, str], Record]:
    raw_hash = identity.raw_hash(ref, SETTINGS.salt)
    read = fingerprint.look_at_each(ref, SETTINGS.salt)
    return {(ref.source, raw_hash): Record(source=ref.source, raw_hash=raw_hash, row={"sha256": sha256}, read=read)}


def test_a_scan_that_has_become_several_is_made_again(woven: ScanRef) -> None:
    records = accepted(woven, "old")
    first = part(woven, "series", 0, 2)
    assert changes.parted([first], [part(woven, "series-2", 1, 3)], records, SETTINGS) == [first]
    assert changes.parted([first], [part(woven, "series-2", 1)], records, SETTINGS) == [], "a file is gone"
    assert changes.parted([first], [], records, SETTINGS) == []
    assert changes.parted([], [part(woven, "series-2", 1, 3)], records, SETTINGS) == []


def test_an_old_name_goes_where_several_scans_hold_all_its_files(woven: ScanRef) -> None:
    old = accepted(woven, "old")
    parts = [part(woven, "series-1", 0, 2), part(woven, "series-2", 1, 3)]
    records = old | accepted(parts[0], "a") | accepted(parts[1], "b")
    assert changes.superseded(old, records, parts, SETTINGS) == set(old)
    assert changes.superseded(old, records, parts[:1], SETTINGS) == set(), "half of it is nowhere else"
