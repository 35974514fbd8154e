"""The journal: whole lines or none, the same file whatever the order and the shards."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TextIO

import pytest

from harmonize.corpus import journal
from harmonize.corpus.fingerprint import Fingerprint
from harmonize.corpus.journal import Record
from harmonize.errors import Reason, Rejection
from harmonize.files import atomic_path


def accepted(name: str) -> Record:
    return Record(source="tcia", raw_hash=name, row={"scan_id": name, "source": "tcia"})


def refused(name: str) -> Record:
    return Record(source="tcia", raw_hash=name, rejection=Rejection(Reason.EMPTY, "an empty file"))


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


PRINT = Fingerprint(files="f", each="abcd", said="s", times="t", root="r", content="c", partial=True)


def test_what_a_scan_was_made_from_comes_back(tmp_path: Path) -> None:
    write(tmp_path / "tcia.jsonl", replace(accepted("a"), read=PRINT), replace(refused("b"), read=PRINT))
    journal.compact(tmp_path, journal.read(tmp_path))
    assert {record.read for record in journal.read(tmp_path).values()} == {PRINT}


def test_a_fingerprint_of_another_version_is_not_the_same_and_loses_no_scan(tmp_path: Path) -> None:
    write(tmp_path / "tcia.jsonl", replace(accepted("a"), read=PRINT))
    path = tmp_path / "tcia.jsonl"
    path.write_text(path.read_text().replace('"files"', '"names"'))
    found = journal.read(tmp_path)["tcia", "a"]
    assert found.row is not None
    assert found.read == replace(PRINT, files="")


def failed(number: int) -> OSError:
    """What reading or writing an open file raises: no name is in it."""
    return OSError(number, os.strerror(number))


@pytest.mark.parametrize("what", ["journal", "file"])
def test_a_raw_file_that_cannot_be_read_is_not_blamed_on_what_is_written(tmp_path: Path, what: str) -> None:
    path = tmp_path / "tcia.jsonl"
    with pytest.raises(OSError, match="Input/output error") as caught, files_open(what, path):
        raise failed(errno.EIO)
    assert caught.value.filename is None


@pytest.mark.parametrize("number", [errno.EIO, errno.EFBIG])
@pytest.mark.parametrize("what", ["journal", "file"])
def test_what_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, number: int
) -> None:
    path = tmp_path / "tcia.jsonl"

    def failing(descriptor: int) -> None:
        raise failed(number)

    with pytest.raises(OSError, match=os.strerror(number)) as caught, files_open(what, path) as stream:
        monkeypatch.setattr(os, "fsync", failing)
        if what == "journal":
            journal.append(stream, accepted("a"))
        else:
            stream.write("")
    assert caught.value.filename == str(path)


@contextmanager
def files_open(what: str, path: Path) -> Iterator[TextIO]:
    """A journal, or a file that is replaced as a whole."""
    if what == "journal":
        with journal.appending(path) as stream:
            yield stream
    else:
        with atomic_path(path) as temporary, temporary.open("w") as stream:
            yield stream


@pytest.mark.parametrize("first", ["tcia.jsonl", "tcia.shard-0-of-2.jsonl"])
def test_a_later_attempt_replaces_an_earlier_one_wherever_it_stands(tmp_path: Path, first: str) -> None:
    second = {"tcia.jsonl", "tcia.shard-0-of-2.jsonl"}.difference({first}).pop()
    write(tmp_path / first, accepted("a"), refused("b"))
    write(tmp_path / second, replace(refused("a"), attempt=1), replace(accepted("b"), attempt=1))
    found = journal.read(tmp_path)
    assert found["tcia", "a"].row is None
    assert found["tcia", "b"].row is not None
    journal.compact(tmp_path, found)
    assert {record.attempt for record in journal.read(tmp_path).values()} == {0}


def test_a_source_that_lost_all_its_records_has_an_empty_journal(tmp_path: Path) -> None:
    write(tmp_path / "tcia.jsonl", refused("a"))
    journal.compact(tmp_path, {})
    assert journal.read(tmp_path) == {}
    assert journal.sources_in(tmp_path) == {"tcia"}
