"""Do what is missing: judge what is there, run the scans, and note what became of each as it is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from harmonize import pool, sources
from harmonize.corpus import journal
from harmonize.corpus.fingerprint import Fingerprint, look_and_read
from harmonize.engine import changes, duplicates, elsewhere
from harmonize.engine.changes import State
from harmonize.engine.executors import Executor, cause_of_death
from harmonize.engine.ledger import Ledger
from harmonize.engine.one_scan import label_row, process, rejected, rejected_at_sight
from harmonize.engine.plan import Plan
from harmonize.engine.raw_scans import key_of
from harmonize.engine.summary import Summary
from harmonize.errors import Reason, Rejection, Stage
from harmonize.progress import Progress
from harmonize.scan import ScanRef
from harmonize.terminal import warn

DISK_GONE = {Reason.IO_ERROR, Reason.MISSING_FILE}
"""What a scan is rejected for when the disk below it goes away."""

AT_ONCE = 1000
"""Scans that are looked over before the journal is seen onto the disk, in case discovery rejected them."""


def work(plan: Plan, ledger: Ledger, run_over: Executor, *, retry: bool) -> Summary:
    """Do a plan; what became of each scan stands in the ledger, and what was found on the way is counted.

    Args:
        plan: The plan, with its standard histograms.
        ledger: Of the corpus, which is held.
        run_over: Who runs the scans.
        retry: Try all that was rejected again.

    Returns:
        The counts; `interrupted` where the run was stopped.
    """
    this = _Work(plan=plan, ledger=ledger, run_over=run_over, summary=Summary(source=plan.source))
    this.summary.left_out = plan.found.left_out
    try:
        this.bring_in(retry=retry)
        if plan.whole:
            this.forget_what_is_gone()
        this.bring_back_duplicates()
    except KeyboardInterrupt:
        this.summary.interrupted = True
    return this.summary


@dataclass(slots=True, kw_only=True)
class _Work:
    plan: Plan
    ledger: Ledger
    run_over: Executor
    summary: Summary
    rejections: int = 0

    def bring_in(self, *, retry: bool) -> None:
        """Do every scan that has no outcome, or one that no longer speaks of its raw data."""
        mine = self.plan.mine
        twice = Rejection(Reason.DUPLICATE, "another scan has the same name", stage=Stage.DISCOVER)
        states = self._judge(mine.references, retry=retry)
        self.ledger.add_all(rejected(ref, self.plan.settings, twice) for ref in mine.duplicates)
        missing = [ref for ref in mine.references if states[ref.key] in (State.MISSING, State.CHANGED)]
        self.summary.found = len(mine.references) + len(mine.duplicates)
        self.summary.known = len(mine.references) - len(missing)
        counts = Counter(states.values())
        self.summary.changed = counts[State.CHANGED]
        self.summary.shrunk, self.summary.unrecorded = counts[State.SHRUNK], counts[State.UNRECORDED]
        if self.summary.changed:
            scans = "1 scan" if self.summary.changed == 1 else f"{self.summary.changed} scans"
            warn(f"{scans} changed since, to be made again")
        self._work(missing, len(mine.references))

    def forget_what_is_gone(self) -> None:
        """After a look at the whole root: rejections of what is not there any more, and scans under an older name."""
        records = self.ledger.records
        references = [*self.plan.found.references, *self.plan.found.duplicates]
        gone = changes.no_longer_found(records, references, self.plan.settings)
        replaced = changes.superseded(gone, records, references, self.plan.settings)
        self.summary.replaced = len(replaced)
        self.summary.vanished = sum(records[key].row is not None for key in gone) - len(replaced)
        self.ledger.drop(key for key in gone if records[key].row is None or key in replaced)

    def bring_back_duplicates(self) -> None:
        """Do scans again that had no files because another one had their voxels, which is not so any more."""
        kept = duplicates.find(self.ledger.records).kept
        needed = [ref for ref in self.plan.mine.references if self._has_lost_its_twin(ref, kept)]
        if needed:
            self._work(needed, len(needed))

    def _judge(self, references: list[ScanRef], *, retry: bool) -> dict[str, State]:
        """What is to be done about each scan, by its key; the journal is told where that shows something new."""
        records = self.ledger.records
        kept = duplicates.find(records).kept
        states: dict[str, State] = {}
        looks: dict[str, Fingerprint | None] = {}
        for ref in references:
            key = key_of(ref, self.plan.settings)
            states[ref.key], looks[ref.key] = changes.judge(
                ref, records.get(key), self.plan.out, self.plan.settings, retry=retry, duplicate=key in kept
            )
        states |= elsewhere.judge(
            states, references, records, self.plan.settings, out=self.plan.out, compare=self._compared
        )
        touched = [ref for ref in references if states[ref.key] is State.TOUCHED]
        for ref, now in self._compared(partial(look_and_read, salt=self.plan.settings.salt), touched):
            same = (
                isinstance(now, Fingerprint) and now.content == _read(records[key_of(ref, self.plan.settings)]).content
            )
            states[ref.key], looks[ref.key] = (State.MOVED, now) if same else (State.CHANGED, None)
        shrunk = [ref for ref in references if states[ref.key] is State.SHRUNK]
        without = [ref for ref in references if states[ref.key] is State.MISSING]
        for ref in changes.parted(shrunk, without, records, self.plan.settings):
            states[ref.key], looks[ref.key] = State.CHANGED, None
        noted = (State.MOVED, State.UNRECORDED)
        self.ledger.note(self._with_look(ref, looks[ref.key]) for ref in references if states[ref.key] in noted)
        return states

    def _with_look(self, ref: ScanRef, now: Fingerprint | None) -> journal.Record:
        record = self.ledger.records[key_of(ref, self.plan.settings)]
        if now is not None and record.read is not None:
            now = replace(now, each=record.read.each, content=record.read.content)
        return replace(record, read=now, labels=label_row(ref, self.plan.settings))

    def _compared(self, read: Callable[[ScanRef], Any], wanted: list[ScanRef]) -> Iterator[tuple[ScanRef, Any]]:
        if not wanted:
            return
        with Progress(f"compare {self.plan.source}", total=len(wanted)) as progress:
            for ref, found in self.run_over(read, wanted):
                progress.advance()
                yield ref, found

    def _has_lost_its_twin(self, ref: ScanRef, kept: Mapping[journal.Key, journal.Record]) -> bool:
        key = key_of(ref, self.plan.settings)
        record = self.ledger.records.get(key)
        if record is None or record.duplicate_of is None or key in kept:
            return False
        return not changes.has_files(record, self.plan.out)

    def _work(self, missing: list[ScanRef], total: int) -> None:
        with Progress(f"harmonize {self.plan.source}", total=total, done=total - len(missing)) as progress:
            wanted = []
            for start in range(0, len(missing), AT_ONCE):
                refs = missing[start : start + AT_ONCE]
                seen = [rejected_at_sight(ref, self.plan.settings) for ref in refs]
                wanted += [ref for ref, record in zip(refs, seen, strict=True) if record is None]
                self._take_in([record for record in seen if record is not None], progress)
            results = self.run_over(partial(process, corpus=self.plan.out, settings=self.plan.settings), wanted)
            # Closed at once, so that no worker writes on while an error ends the run.
            with closing(results) as results:  # type: ignore[type-var]
                for ref, result in results:
                    if isinstance(result, pool.Died):
                        fault = Rejection(Reason.WORKER_DIED, cause_of_death(result))
                        result = rejected(ref, self.plan.settings, fault)
                    self._take_in([result], progress)

    def _take_in(self, records: list[journal.Record], progress: Progress) -> None:
        """Note what became of scans, and say what was rejected."""
        if any(record.rejection is not None and record.rejection.reason in DISK_GONE for record in records):
            sources.check_still_there(self.plan.root)
        for record, stands in zip(records, self.ledger.add_all(records), strict=True):
            rejection = record.rejection
            if rejection is not None:
                self.rejections += 1
                message = f"{rejection.reason}: {rejection.message}"
                if stands.row is not None:
                    self.summary.outdated += 1
                    message += "; the scan made before stays"
                progress.say(f"rejected {record.raw_hash}: {message}")
            progress.advance(rejected=self.rejections)


def _read(record: journal.Record) -> Fingerprint:
    assert record.read is not None
    return record.read
