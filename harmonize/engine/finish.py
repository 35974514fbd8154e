"""End a run, or all shards of one: the tables are made from the journal, and what became of the scans is counted."""

from __future__ import annotations

from pathlib import Path

from harmonize.corpus import RECORDS, Corpus, journal, target
from harmonize.corpus.journal import Key
from harmonize.decisions import Decision
from harmonize.engine import shared_look
from harmonize.engine.hold import alone
from harmonize.engine.ledger import Ledger, restore_journal, write_tables
from harmonize.engine.plan import Plan
from harmonize.engine.raw_scans import key_of
from harmonize.engine.summary import Summary
from harmonize.errors import UserError
from harmonize.files import room_in


def finish(plan: Plan, ledger: Ledger, summary: Summary) -> Summary:
    """Write the tables, unless a merge of all shards is to do that, and count what became of the scans."""
    if plan.shard is None:
        if summary.interrupted:
            target.remove_temporaries(plan.out)
        whole = plan.source if plan.whole and not summary.interrupted else None
        outcomes, decided = write_tables(plan.out, ledger.records, whole=whole)
        shared_look.forget(plan.out)
    else:
        outcomes = {
            key: None if record.rejection is None else record.rejection.reason.value
            for key, record in ledger.records.items()
        }
        decided = {}
    _count(plan, ledger, summary, outcomes, decided)
    return summary


def merge(out: Path) -> tuple[int, int]:
    """Put the shards' journals together and write the manifest again from what they say.

    Returns:
        Accepted and rejected scans.

    Raises:
        UserError: No corpus, a run is still writing it, it has no journal, or its disk is full.
    """
    stray = shared_look.strays(out)
    if stray and not journal.sources_in(out / RECORDS):
        looks = ", ".join(f"{RECORDS}/{source}{target.LOOK}" for source in stray)
        raise UserError(f"{out}: shards were stopped before they began a scan, only {looks} is there; give them again")
    Corpus.open(out)
    if not journal.sources_in(out / RECORDS):
        raise UserError(f"{out}: no journal in {RECORDS}/ (a published corpus has none), so nothing to merge")
    busy = f"{out}: a run is still writing this corpus; wait for it, then merge"
    with room_in(out), alone(out, busy):
        restore_journal(out)
        outcomes, _ = write_tables(out, journal.read(out / RECORDS))
        shared_look.forget(out)
    accepted = sum(reason is None for reason in outcomes.values())
    return accepted, len(outcomes) - accepted


def _count(
    plan: Plan,
    ledger: Ledger,
    summary: Summary,
    outcomes: dict[Key, str | None],
    decided: dict[Key, list[Decision]],
) -> None:
    for ref in (*plan.mine.references, *plan.mine.duplicates):
        key = key_of(ref, plan.settings)
        if key in outcomes:
            reason = outcomes[key]
            if reason is None:
                summary.accepted += 1
                summary.note([*(ledger.records[key].row or {}).get("decisions", ()), *decided.get(key, ())])
            else:
                summary.rejected[reason] += 1
