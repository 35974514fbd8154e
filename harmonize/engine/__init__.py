"""A run over one source: which scans are missing from the corpus, who does them, and what became of each."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from harmonize import corpus as layout
from harmonize import pool, sources, time_limit
from harmonize.corpus import journal, lock, target
from harmonize.corpus.fingerprint import Fingerprint, look_and_read
from harmonize.engine import changes, duplicates, histograms, ledger
from harmonize.engine.changes import State
from harmonize.engine.executors import Executor, cause_of_death, local, within
from harmonize.engine.ledger import Ledger
from harmonize.engine.one_scan import label_row, process, rejected, rejected_at_sight
from harmonize.engine.raw_scans import Found, discover, key_of, of_shard
from harmonize.engine.summary import Summary
from harmonize.errors import Reason, Rejection, Stage, UserError
from harmonize.files import room_in
from harmonize.progress import Progress
from harmonize.scan import ScanRef
from harmonize.settings import Settings
from harmonize.terminal import warn

__all__ = ["LOCK", "Executor", "Summary", "check", "merge", "run"]

GONE = {Reason.IO_ERROR, Reason.MISSING_FILE}
"""What a scan is rejected for when the disk below it goes away."""

AT_ONCE = 1000
"""Scans that are looked over before the journal is seen onto the disk, in case discovery rejected them."""

LOCK = target.LOCK
SHARD_IS_FITTING = "another shard of this corpus is fitting the standard histograms; waiting for it"


def run(
    source: str,
    root: Path,
    out: Path,
    settings: Settings,
    *,
    workers: int = 1,
    limit: int | None = None,
    shard: tuple[int, int] | None = None,
    nyul_folder: Path | None = None,
    executor: Executor | None = None,
    time_limit_s: float | None = None,
    retry: bool = False,
) -> Summary:
    """Bring the scans of one raw root into a corpus; those that are there already stay as they are.

    A scan is there when the journal says so and its raw files are still those that it was made from.

    Args:
        source: Registry name.
        root: The raw folder.
        out: The corpus, new or made with the same settings.
        settings: How.
        workers: Local processes; 0 works in this one.
        limit: Only the first so many scans of the root.
        shard: (i, n): only the i-th of n parts, from 0; the parts may run side by side, `merge` ends them.
        nyul_folder: Standard histograms to use instead of fitting them.
        executor: Who runs the scans, instead of local processes.
        time_limit_s: A scan that takes longer loses its process, as one that wants too much memory does.
        retry: Try all that was refused again, because files or tables were repaired since.

    Raises:
        UserError: Nothing to do, the corpus is taken or was made otherwise, or it cannot be written.
    """
    run_over = executor or partial(local, workers=workers)
    if time_limit_s is not None:
        run_over = partial(within, run_over=run_over, seconds=time_limit_s)
    with ExitStack() as stack:
        stack.enter_context(_interruptible())
        # Whatever is wrong with the command is said before the long look at the raw folder, and a wrong raw folder is
        # said before the first write.
        check(source, root, out, settings, shard=shard, nyul_folder=nyul_folder)
        with time_limit.watched(time_limit_s):
            found = discover(source, root, settings, limit)
        stack.enter_context(room_in(out))
        _take(stack, out, source, settings, shard)
        if settings.mri_norm == "nyul":
            with lock.turn(out / layout.RECORDS / LOCK, waiting=SHARD_IS_FITTING):
                histograms.complete(out / layout.NYUL, nyul_folder, found.references, root, settings, run_over)
            settings = replace(settings, nyul_folder=out / layout.NYUL)
        mine = of_shard(found, settings, shard)
        stream = stack.enter_context(journal.appending(out / layout.RECORDS / journal.journal_name(source, shard)))
        this = _Run(
            source=source,
            root=root,
            out=out,
            settings=settings,
            run_over=run_over,
            ledger=Ledger(out, stream),
            summary=Summary(source=source, left_out=found.left_out),
        )
        try:
            this.bring_in(mine, retry=retry)
            if limit is None and shard is None:
                this.forget_what_is_gone(found)
            this.bring_back_duplicates(mine)
        except KeyboardInterrupt:
            this.summary.interrupted = True
        records = this.ledger.records
        if shard is None:
            if this.summary.interrupted:
                target.remove_temporaries(out)
            outcomes = ledger.write_tables(out, records)
        else:
            outcomes = {
                key: None if record.rejection is None else record.rejection.reason.value
                for key, record in records.items()
            }
        this.count(mine, outcomes)
        return this.summary


def check(
    source: str,
    root: Path,
    out: Path,
    settings: Settings,
    *,
    shard: tuple[int, int] | None = None,
    nyul_folder: Path | None = None,
) -> None:
    """Check what can be checked of a command without a look at the raw scans; nothing is written.

    Raises:
        UserError: See `run`.
    """
    sources.get(source)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder", exit_code=2)
    target.check_place(out, root)
    layout.check_claim(out, source, settings)
    lock.check_free(out / LOCK, _busy(out), alone=shard is None)
    if shard is not None:
        lock.check_free(*_shard_lock(out, source, shard), alone=True)
    if nyul_folder is not None:
        histograms.check_given(nyul_folder, out / layout.NYUL)


def merge(out: Path) -> tuple[int, int]:
    """Put the shards' journals together and write the manifest anew from what they say.

    Returns:
        Accepted and refused scans.

    Raises:
        UserError: No corpus, a run is still writing it, it has no journal, or its disk is full.
    """
    layout.Corpus.open(out)
    if not journal.sources_in(out / layout.RECORDS):
        raise UserError(f"{out}: no journal in {layout.RECORDS}/ (a published corpus has none), so nothing to merge")
    busy = f"{out}: a run is still writing this corpus; wait for it, then merge"
    with room_in(out), lock.exclusive(out / LOCK, busy):
        target.remove_temporaries(out)
        ledger.restore_journal(out)
        outcomes = ledger.write_tables(out, journal.read(out / layout.RECORDS))
    accepted = sum(reason is None for reason in outcomes.values())
    return accepted, len(outcomes) - accepted


def _busy(out: Path) -> str:
    return f"{out}: another run is writing this corpus; wait for it, or give both --shard i/n"


def _shard_lock(out: Path, source: str, shard: tuple[int, int]) -> tuple[Path, str]:
    path = out / layout.RECORDS / journal.journal_name(source, shard)
    return path, f"{out}: shard {shard[0]}/{shard[1]} is running already"


def _take(stack: ExitStack, out: Path, source: str, settings: Settings, shard: tuple[int, int] | None) -> None:
    """Make the corpus if need be, and hold it until the stack is left."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be made ({error.strerror}); choose another --out", exit_code=2) from error
    if shard is None:
        stack.enter_context(lock.exclusive(out / LOCK, _busy(out)))
    else:
        stack.enter_context(lock.shared(out / LOCK, _busy(out)))
        stack.enter_context(lock.exclusive(*_shard_lock(out, source, shard)))
    with lock.turn(out / layout.RECORDS / LOCK, waiting=SHARD_IS_FITTING):
        layout.claim(out, source, settings)
        ledger.restore_journal(out)
    if shard is None:
        target.remove_temporaries(out)
        stack.push(partial(_remove_temporaries_after_a_fault, out))


def _remove_temporaries_after_a_fault(out: Path, kind: type[BaseException] | None, *_: object) -> None:
    """What a run that ends with an error has half-written; its workers have ended by then."""
    if kind is not None:
        target.remove_temporaries(out)


@dataclass(slots=True, kw_only=True)
class _Run:
    """One run over a raw root, once the corpus is held."""

    source: str
    root: Path
    out: Path
    settings: Settings
    run_over: Executor
    ledger: Ledger
    summary: Summary
    rejections: int = 0

    def bring_in(self, found: Found, *, retry: bool) -> None:
        """Do every scan that has no outcome, or one that no longer speaks of its raw data."""
        twice = Rejection(Reason.DUPLICATE, "another scan has the same name", stage=Stage.DISCOVER)
        self.ledger.add_all(rejected(ref, self.settings, twice) for ref in found.doubles)
        states = self._judge(found.references, retry=retry)
        missing = [ref for ref in found.references if states[ref.key] in (State.MISSING, State.CHANGED)]
        self.summary.found = len(found.references) + len(found.doubles)
        self.summary.known = len(found.references) - len(missing)
        counts = Counter(states.values())
        self.summary.changed = counts[State.CHANGED]
        self.summary.shrunk, self.summary.unrecorded = counts[State.SHRUNK], counts[State.UNRECORDED]
        if self.summary.changed:
            scans = "1 scan" if self.summary.changed == 1 else f"{self.summary.changed} scans"
            warn(f"{scans} changed since, to be made again")
        self._work(missing, len(found.references))

    def forget_what_is_gone(self, found: Found) -> None:
        """After a look at the whole root: rejections of what is not there any more, and scans under an older name."""
        records = self.ledger.records
        references = [*found.references, *found.doubles]
        gone = changes.no_longer_found(records, references, self.settings)
        replaced = changes.superseded(gone, records, references, self.settings)
        self.summary.replaced = len(replaced)
        self.summary.vanished = sum(records[key].row is not None for key in gone) - len(replaced)
        self.ledger.drop(key for key in gone if records[key].row is None or key in replaced)

    def bring_back_duplicates(self, found: Found) -> None:
        """Do scans again that had no files because another one had their voxels, which is not so any more."""
        kept = duplicates.find(self.ledger.records).kept
        needed = [ref for ref in found.references if self._has_lost_its_twin(ref, kept)]
        if needed:
            self._work(needed, len(needed))

    def count(self, found: Found, outcomes: dict[journal.Key, str | None]) -> None:
        """Count what became of each scan."""
        for ref in (*found.references, *found.doubles):
            key = key_of(ref, self.settings)
            if key in outcomes:
                reason = outcomes[key]
                if reason is None:
                    self.summary.accepted += 1
                    self.summary.note((self.ledger.records[key].row or {}).get("decisions", ()))
                else:
                    self.summary.rejected[reason] += 1

    def _judge(self, references: list[ScanRef], *, retry: bool) -> dict[str, State]:
        """What is to be done about each scan, by its key; the journal is told where that shows something new."""
        records = self.ledger.records
        kept = duplicates.find(records).kept
        states: dict[str, State] = {}
        looks: dict[str, Fingerprint | None] = {}
        for ref in references:
            key = key_of(ref, self.settings)
            states[ref.key], looks[ref.key] = changes.judge(
                ref, records.get(key), self.out, self.settings, retry=retry, duplicate=key in kept
            )
        touched = [ref for ref in references if states[ref.key] is State.TOUCHED]
        for ref, now in self._compared(touched):
            same = isinstance(now, Fingerprint) and now.content == _read(records[key_of(ref, self.settings)]).content
            states[ref.key], looks[ref.key] = (State.MOVED, now) if same else (State.CHANGED, None)
        noted = (State.MOVED, State.UNRECORDED)
        self.ledger.note(self._with_look(ref, looks[ref.key]) for ref in references if states[ref.key] in noted)
        return states

    def _with_look(self, ref: ScanRef, now: Fingerprint | None) -> journal.Record:
        record = self.ledger.records[key_of(ref, self.settings)]
        if now is not None and record.read is not None:
            now = replace(now, each=record.read.each, content=record.read.content)
        return replace(record, read=now, labels=label_row(ref, self.settings))

    def _compared(self, touched: list[ScanRef]) -> Iterator[tuple[ScanRef, Any]]:
        if not touched:
            return
        with Progress(f"compare {self.source}", total=len(touched)) as progress:
            for ref, now in self.run_over(partial(look_and_read, salt=self.settings.salt), touched):
                progress.advance()
                yield ref, now

    def _has_lost_its_twin(self, ref: ScanRef, kept: Mapping[journal.Key, journal.Record]) -> bool:
        key = key_of(ref, self.settings)
        record = self.ledger.records.get(key)
        if record is None or record.duplicate_of is None or key in kept:
            return False
        return not changes.has_files(record, self.out)

    def _work(self, missing: list[ScanRef], total: int) -> None:
        with Progress(f"harmonize {self.source}", total=total, done=total - len(missing)) as progress:
            wanted = []
            for start in range(0, len(missing), AT_ONCE):
                refs = missing[start : start + AT_ONCE]
                seen = [rejected_at_sight(ref, self.settings) for ref in refs]
                wanted += [ref for ref, record in zip(refs, seen, strict=True) if record is None]
                self._take_in([record for record in seen if record is not None], progress)
            results = self.run_over(partial(process, corpus=self.out, settings=self.settings), wanted)
            # Closed at once, so that no worker writes on while an error ends the run.
            with closing(results) as results:  # type: ignore[type-var]
                for ref, result in results:
                    if isinstance(result, pool.Died):
                        fault = Rejection(Reason.WORKER_DIED, cause_of_death(result))
                        result = rejected(ref, self.settings, fault)
                    self._take_in([result], progress)

    def _take_in(self, records: list[journal.Record], progress: Progress) -> None:
        """Note what became of scans, and say what was rejected."""
        if any(record.rejection is not None and record.rejection.reason in GONE for record in records):
            sources.check_still_there(self.root)
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


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM, which schedulers send, end the run as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
