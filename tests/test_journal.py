"""The journal: whole lines or none, the same file whatever the order and the shards."""

from __future__ import annotations

from pathlib import Path

from harmonize import journal
from harmonize.journal import Record


def accepted(name: str) -> Record:
    return Record(source="tcia", raw_hash=name, row={"scan_id": name, "source": "tcia"})


def refused(name: str) -> Record:
    return Record(source="tcia", raw_hash=name, rejection={"reason": "empty"})


def write(path: Path, *records: Record) -> None:
    with journal.appending(path) as stream:
        for record in records:
            journal.append(stream, record)


def test_a_line_cut_by_a_kill_is_ignored_and_the_next_run_begins_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "tcia.jsonl"
    write(path, accepted("a"), accepted("b"))
    path.write_bytes(path.read_bytes()[:-20])
    write(path, accepted("c"))
    assert set(journal.read(tmp_path)) == {("tcia", "a"), ("tcia", "c")}


def test_an_accepted_scan_outlives_its_refusal(tmp_path: Path) -> None:
    write(tmp_path / "tcia.jsonl", refused("a"), accepted("a"), refused("a"))
    assert journal.read(tmp_path)["tcia", "a"].row is not None


def test_order_and_shards_do_not_show_after_a_run(tmp_path: Path) -> None:
    write(tmp_path / "one/tcia.jsonl", accepted("a"), refused("b"), accepted("c"))
    write(tmp_path / "two/tcia.shard-0-of-2.jsonl", accepted("c"))
    write(tmp_path / "two/tcia.shard-1-of-2.jsonl", refused("b"), accepted("a"))
    for folder in ("one", "two"):
        journal.compact(tmp_path / folder, journal.read(tmp_path / folder))
    assert [path.name for path in (tmp_path / "two").iterdir()] == ["tcia.jsonl"]
    assert (tmp_path / "one/tcia.jsonl").read_bytes() == (tmp_path / "two/tcia.jsonl").read_bytes()
