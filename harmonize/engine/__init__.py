"""A run over one source: which scans are missing from the corpus, who does them, and what became of each."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from harmonize import time_limit
from harmonize.corpus import RECORDS, journal
from harmonize.engine.check import check
from harmonize.engine.executors import Executor, local, within
from harmonize.engine.finish import finish, merge
from harmonize.engine.histograms import fit
from harmonize.engine.hold import hold
from harmonize.engine.interrupt import interruptible
from harmonize.engine.ledger import Ledger
from harmonize.engine.plan import make_plan
from harmonize.engine.shared_look import strays
from harmonize.engine.summary import Summary
from harmonize.engine.work import work
from harmonize.files import room_in
from harmonize.settings import Settings

__all__ = ["Executor", "Summary", "check", "merge", "run", "strays"]


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
    given: Mapping[str, Any] | None = None,
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
        retry: Try all that was rejected again, because files or tables were repaired since.
        given: What the source was told besides its root, by options of its own.

    Raises:
        UserError: Nothing to do, the corpus is taken or was made otherwise, or it cannot be written.
    """
    run_over = executor or partial(local, workers=workers)
    if time_limit_s is not None:
        run_over = partial(within, run_over=run_over, seconds=time_limit_s)
    with ExitStack() as stack:
        stack.enter_context(interruptible())
        # Whatever is wrong with the command is said before the long look at the raw folder, and a wrong raw folder is
        # said before the first write, but for the lock that shards share a look under.
        check(source, root, out, settings, shard=shard, nyul_folder=nyul_folder)
        with time_limit.watched(time_limit_s):
            plan = make_plan(source, root, out, settings, limit=limit, shard=shard, given=given or {})
        stack.enter_context(room_in(out))
        stack.enter_context(hold(out, source, settings, shard))
        plan = fit(plan, nyul_folder, run_over)
        stream = stack.enter_context(journal.appending(out / RECORDS / journal.journal_name(source, shard)))
        ledger = Ledger(out, stream)
        summary = work(plan, ledger, run_over, retry=retry)
        return finish(plan, ledger, summary)
