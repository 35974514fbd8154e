"""The lines that end a run: what was left out and what was decided, by kind, and never a page of them."""

from __future__ import annotations

from collections import Counter

from harmonize.engine.summary import MOST_KINDS, Summary


def lines(summary: Summary) -> list[str]:
    return summary.table().splitlines()


def test_a_plain_run_has_no_more_lines_than_it_needs() -> None:
    summary = Summary(source="tcia", found=2, accepted=2)
    summary.note(["40 slices of CT, 3.000 mm apart"])
    assert [line.split()[0] for line in lines(summary)] == ["source", "scans", "accepted", "rejected"]


def test_unusual_decisions_are_counted_without_their_numbers() -> None:
    summary = Summary(source="tcia")
    for missing in (1, 2):
        summary.note([f"missing slices: {missing}, interpolated between true positions"] * 2)
    summary.note(["MONOCHROME1: taken as HU", "values beyond the range of float32: divided by 2^129"])
    text = summary.table()
    assert "2 with: missing slices: N, interpolated" in text
    assert "MONOCHROME1: taken as HU" in text  # the digit belongs to the word
    assert "float32: divided by N^N" in text


def test_many_kinds_are_cut_short_and_still_add_up() -> None:
    kinds = {(f".x{number:02d}", "no image"): number + 1 for number in range(40)}
    summary = Summary(source="tcia", left_out=Counter(kinds))
    shown = [line for line in lines(summary) if line.startswith("  .x")]
    assert len(shown) == MOST_KINDS
    assert shown[-1].split()[:2] == [".x39", "40"]
    left = sum(count for _, count in kinds.items()) - sum(int(line.split()[1]) for line in shown)
    assert any(line.split()[:2] == ["others", str(left)] for line in lines(summary))


def test_every_kind_of_change_is_said() -> None:
    summary = Summary(source="tcia", changed=1, shrunk=2, vanished=3, replaced=4, unrecorded=5, outdated=6)
    text = summary.table()
    for count in range(1, 7):
        assert any(f" {count} " in line for line in text.splitlines()[4:])
