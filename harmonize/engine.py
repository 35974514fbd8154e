"""A run over one source: which scans are missing from the corpus, who does them, and what became of each."""

from __future__ import annotations

import random
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from harmonize import corpus as layout
from harmonize import identity, journal, lock, nyul, pool, sources, time_limit
from harmonize.errors import Reason, Rejection, UserError
from harmonize.files import TEMPORARY
from harmonize.process import landmarks_of, process, refused
from harmonize.progress import Progress
from harmonize.scan import LeftOut, ScanRef
from harmonize.settings import Settings

PASSING = {Reason.IO_ERROR.value, Reason.MISSING_FILE.value, Reason.WORKER_DIED.value}
"""Refusals that say nothing about the scan itself: the next run tries these again."""

GONE = {Reason.IO_ERROR.value, Reason.MISSING_FILE.value}
"""What a scan is refused for when the disk below it goes away."""

LOCK = ".lock"
SHARD_IS_FITTING = "another shard of this corpus is fitting the standard histograms; waiting for it"

Executor = Callable[[Callable[[ScanRef], Any], Iterable[ScanRef]], Iterator[tuple[ScanRef, Any]]]
"""Yields each reference with what the function made of it, or with `harmonize.pool.Died`; in any order. Local processes
are one; a cluster's scheduler can be another."""


@dataclass(slots=True, kw_only=True)
class Summary:
    """What a run found and did.

    Attributes:
        source: Registry name.
        found: Scans that the run was to take care of.
        known: Of these, how many an earlier run had done.
        accepted: In the corpus now.
        rejected: Refused, by reason code.
        interrupted: The run was stopped before its end.
        left_out: What the source saw and made no scan of: files by kind and reason.
    """

    source: str
    found: int = 0
    known: int = 0
    accepted: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    interrupted: bool = False
    left_out: Counter[tuple[str, str]] = field(default_factory=Counter)

    def table(self) -> str:
        """The lines that end a run."""
        lines = [
            ("source", self.source),
            ("scans", f"{self.found} ({self.known} done before)"),
            ("accepted", str(self.accepted)),
            ("rejected", str(self.rejected.total())),
            *((f"  {reason}", str(count)) for reason, count in sorted(self.rejected.items())),
            *([("left out", f"{self.left_out.total()} files")] if self.left_out else []),
            *((f"  {what}", f"{count} ({why})") for (what, why), count in sorted(self.left_out.items())),
        ]
        width = max(len(name) for name, _ in lines) + 2
        return "\n".join(f"{name:<{width}}{value}" for name, value in lines)


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
    if not root.is_dir():
        raise UserError(f"{root}: no such folder", exit_code=2)
    if out.resolve().is_relative_to(root.resolve()):
        raise UserError(f"{out}: lies inside the raw folder {root}; give --out a place outside", exit_code=2)
    run_over = executor or partial(_local, workers=workers)
    if time_limit_s is not None:
        run_over = partial(_within, run_over=run_over, seconds=time_limit_s)
    with ExitStack() as stack:
        stack.enter_context(_interruptible())
        _take(stack, out, source, shard)
        # Wrong settings are said before the long look at the raw folder, and a wrong raw folder claims nothing.
        with lock.turn(out / layout.RECORDS / LOCK, waiting=SHARD_IS_FITTING):
            layout.check_claim(out, source, settings)
        references, doubles, left_out = _discover(source, root, settings, limit)
        with lock.turn(out / layout.RECORDS / LOCK, waiting=SHARD_IS_FITTING):
            layout.claim(out, source, settings)
        if settings.mri_norm == "nyul":
            settings = _with_histograms(root, out, references, settings, nyul_folder, run_over)
        if shard is not None:
            references = [ref for ref in references if _part(ref, settings, shard[1]) == shard[0]]
            doubles = [ref for ref in doubles if _part(ref, settings, shard[1]) == shard[0]]
        records = journal.read(out / layout.RECORDS)
        missing = [ref for ref in references if _is_missing(out, records.get(_key(ref, settings)), retry=retry)]
        summary = Summary(source=source, found=len(references) + len(doubles), known=len(references) - len(missing))
        summary.left_out = left_out
        path = out / layout.RECORDS / journal.journal_name(source, shard)
        with journal.appending(path) as stream:

            def keep(record: journal.Record) -> None:
                journal.append(stream, record)
                records[record.source, record.raw_hash] = record

            for ref in doubles:
                keep(refused(ref, settings, Rejection(Reason.DUPLICATE, "another scan has the same name")))
            try:
                _work(source, missing, len(references), root, out, settings, run_over, keep)
            except KeyboardInterrupt:
                summary.interrupted = True
        if summary.interrupted and shard is None:
            _sweep(out)
        if shard is None:
            _finish(out, records)
        for ref in (*references, *doubles):
            record = records.get(_key(ref, settings))
            if record is not None and record.row is not None:
                summary.accepted += 1
            elif record is not None and record.rejection is not None:
                summary.rejected[record.rejection["reason"]] += 1
        return summary


def merge(out: Path) -> tuple[int, int]:
    """Put the shards' journals together and write the manifest anew from what they say.

    Returns:
        Accepted and refused scans.

    Raises:
        UserError: No corpus, or a run is still writing it.
    """
    layout.Corpus.open(out)
    with lock.exclusive(out / LOCK, f"{out}: a run is still writing this corpus; wait for it, then merge"):
        _sweep(out)
        records = journal.read(out / layout.RECORDS)
        _finish(out, records)
    accepted = sum(record.row is not None for record in records.values())
    return accepted, len(records) - accepted


def _take(stack: ExitStack, out: Path, source: str, shard: tuple[int, int] | None) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be made ({error.strerror}); choose another --out", exit_code=2) from error
    busy = f"{out}: another run is writing this corpus; wait for it, or give both --shard i/n"
    if shard is None:
        stack.enter_context(lock.exclusive(out / LOCK, busy))
        _sweep(out)
        return
    stack.enter_context(lock.shared(out / LOCK, busy))
    journal_path = out / layout.RECORDS / journal.journal_name(source, shard)
    stack.enter_context(lock.exclusive(journal_path, f"{out}: shard {shard[0]}/{shard[1]} is running already"))


def _sweep(out: Path) -> None:
    """Remove the temporary files of runs that were killed; only while nobody else writes."""
    for path in out.rglob(f"{TEMPORARY}*"):
        path.unlink(missing_ok=True)


def _discover(
    source: str, root: Path, settings: Settings, limit: int | None
) -> tuple[list[ScanRef], list[ScanRef], Counter[tuple[str, str]]]:
    """The references of a root, those whose name in the corpus an earlier one has taken, and what was left out."""
    references: list[ScanRef] = []
    doubles: list[ScanRef] = []
    keys: set[str] = set()
    names: set[tuple[str, str]] = set()
    left_out: Counter[tuple[str, str]] = Counter()

    def found() -> Iterator[ScanRef]:
        for item in sources.get(source).discover(root):
            if isinstance(item, LeftOut):
                left_out[item.what, item.why] += item.count
            else:
                yield item

    for ref in islice(found(), limit):
        if ref.key in keys:
            continue
        keys.add(ref.key)
        # Folded, because the corpus may be copied to a file system that does not tell case.
        name = (identity.subject_id(ref, settings.salt).casefold(), identity.scan_id(ref, settings.salt).casefold())
        (doubles if name in names else references).append(ref)
        names.add(name)
    if not references:
        raise UserError(f"{root}: no {source} scans found; give the folder that holds the raw data")
    return references, doubles, left_out


def _work(
    source: str,
    missing: list[ScanRef],
    total: int,
    root: Path,
    out: Path,
    settings: Settings,
    run_over: Executor,
    keep: Callable[[journal.Record], None],
) -> None:
    rejected = 0
    with Progress(f"harmonize {source}", total=total, done=total - len(missing)) as progress:
        for ref, result in run_over(partial(process, corpus=out, settings=settings), missing):
            if isinstance(result, pool.Died):
                result = refused(ref, settings, Rejection(Reason.WORKER_DIED, _cause_of_death(result)))
            refusal = result.rejection
            if refusal is not None and refusal["reason"] in GONE:
                _check_still_there(root)
            keep(result)
            if refusal is not None:
                rejected += 1
                progress.say(f"rejected {result.raw_hash}: {refusal['reason']}: {refusal['message']}")
            progress.advance(rejected=rejected)


def _local(
    function: Callable[[ScanRef], Any], references: Iterable[ScanRef], *, workers: int
) -> Iterator[tuple[ScanRef, Any]]:
    return pool.run(function, references, workers=workers)


def _check_still_there(root: Path) -> None:
    """Raise if the raw folder is gone, or empty as a mount point is when nothing is mounted on it.

    Raises:
        UserError: It is.
    """
    try:
        vanished = next(root.iterdir(), None) is None
    except OSError:
        vanished = True
    if vanished:
        raise UserError(f"{root}: vanished during the run; bring it back and run the same command again")


def _within(
    function: Callable[[ScanRef], Any], references: Iterable[ScanRef], *, run_over: Executor, seconds: float
) -> Iterator[tuple[ScanRef, Any]]:
    return run_over(partial(time_limit.within, function=function, seconds=seconds), references)


def _cause_of_death(died: pool.Died) -> str:
    if died.exit_code == time_limit.EXIT_CODE:
        return "it twice took longer than the time limit of a scan"
    if died.exit_code is None:
        return "its workers died, probably for memory or at the time limit of a scan"
    return f"its process was killed twice (exit code {died.exit_code}), probably for memory"


def _with_histograms(
    root: Path, out: Path, references: list[ScanRef], settings: Settings, given: Path | None, run_over: Executor
) -> Settings:
    """Settings that point at the corpus's standard histograms, after what is missing there was copied or fitted."""
    folder = out / layout.NYUL
    with lock.turn(out / layout.RECORDS / LOCK, waiting=SHARD_IS_FITTING):
        if given is not None:
            _adopt(given, folder)
        by_modality: dict[str | None, list[ScanRef]] = {}
        for ref in references:
            by_modality.setdefault(ref.modality, []).append(ref)
        wanted = [
            ref
            for modality, group in sorted(by_modality.items(), key=lambda item: item[0] or "")
            if modality is None or not nyul.histogram_path(folder, modality).is_file()
            for ref in _sample(group, settings)
        ]
        if wanted:
            _fit(wanted, root, folder, settings, run_over)
    return replace(settings, nyul_folder=folder)


def _sample(group: list[ScanRef], settings: Settings) -> list[ScanRef]:
    ordered = sorted(group, key=lambda ref: ref.key)
    count = min(settings.nyul_sample, len(ordered))
    return random.Random(settings.seed).sample(ordered, count)


def _fit(wanted: list[ScanRef], root: Path, folder: Path, settings: Settings, run_over: Executor) -> None:
    found: dict[str, list[tuple[str, list[float]]]] = {}
    unused = 0
    with Progress("fit nyul", total=len(wanted)) as progress:
        for ref, result in run_over(partial(landmarks_of, settings=settings), wanted):
            if result is None or isinstance(result, pool.Died):
                unused += 1
            else:
                modality, landmarks = result
                found.setdefault(modality, []).append((ref.key, landmarks))
            progress.advance(unused=unused)
    if unused:
        _check_still_there(root)
    for modality, landmarks_by_key in sorted(found.items()):
        path = nyul.histogram_path(folder, modality)
        if not path.is_file():
            # In the order of the keys: a sum of floats depends on its order.
            nyul.save(path, nyul.fit(np.asarray(landmarks) for _, landmarks in sorted(landmarks_by_key)))
            # A user who tries a few scans first must know that the corpus keeps what these few gave.
            count = len(landmarks_by_key)
            scans = "1 scan" if count == 1 else f"{count} scans"
            print(f"nyul: {modality} fitted on {scans}, for all of this corpus", file=sys.stderr, flush=True)


def _adopt(given: Path, folder: Path) -> None:
    """Copy a user's standard histograms into the corpus.

    Raises:
        UserError: The folder holds none, or the corpus was made with others.
    """
    paths = sorted(given.glob("*.npy"))
    if not paths:
        raise UserError(f"--nyul {given}: holds no <modality>.npy", exit_code=2)
    for path in paths:
        histogram, there = nyul.load(path), folder / path.name
        if not there.is_file():
            nyul.save(there, histogram)
        elif not histogram.equals(nyul.load(there)):
            raise UserError(f"--nyul {given}: {path.name} differs from the one this corpus was made with", exit_code=2)


def _part(ref: ScanRef, settings: Settings, parts: int) -> int:
    """Which shard a scan belongs to: by its hash, so that a scan more or less moves no other."""
    return int(identity.raw_hash(ref, settings.salt), 16) % parts


def _key(ref: ScanRef, settings: Settings) -> journal.Key:
    return ref.source, identity.raw_hash(ref, settings.salt)


def _is_missing(out: Path, record: journal.Record | None, *, retry: bool) -> bool:
    if record is None:
        return True
    if record.row is None:
        return retry or record.rejection is None or record.rejection["reason"] in PASSING
    names = (record.row.get(column) for column in layout.FILE_COLUMNS)
    return not all((out / name).is_file() for name in names if name is not None)


def _finish(out: Path, records: dict[journal.Key, journal.Record]) -> None:
    journal.compact(out / layout.RECORDS, records)
    layout.write_manifest(
        out,
        [record.row for record in records.values() if record.row is not None],
        [record.rejection for record in records.values() if record.rejection is not None],
        [record.labels for record in records.values() if record.labels is not None],
    )


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
