"""Who may write to a corpus: one run alone, or shards together, each its own part."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from harmonize.corpus import RECORDS, journal, lock, target
from harmonize.corpus.claims import claim
from harmonize.engine.ledger import restore_journal
from harmonize.errors import WrongUse
from harmonize.settings import Settings

SHARD_IS_AHEAD = (
    "another shard of this corpus looks through the raw folder or fits the standard histograms; waiting for it"
)


def check_free(out: Path, source: str, shard: tuple[int, int] | None) -> None:
    """Check that a corpus could be held now; nothing is written.

    Raises:
        UserError: Another run holds it, or this very shard is running.
    """
    lock.check_free(out / target.LOCK, _busy(out), alone=shard is None)
    if shard is not None:
        lock.check_free(*_shard_lock(out, source, shard), alone=True)


def make_folder(out: Path) -> None:
    """Make the folder of a corpus if need be.

    Raises:
        WrongUse: It cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WrongUse(f"{out}: cannot be made ({error.strerror}); choose another --out") from error


@contextmanager
def hold(out: Path, source: str, settings: Settings, shard: tuple[int, int] | None) -> Iterator[None]:
    """Make the corpus if need be, and hold it: alone, or as a shard beside others.

    What a run that ends with an error has half-written is removed; its workers have ended by then.

    Raises:
        UserError: See `check_free` and `harmonize.corpus.claim`; or the corpus cannot be made.
    """
    make_folder(out)
    with ExitStack() as stack:
        if shard is None:
            stack.enter_context(lock.exclusive(out / target.LOCK, _busy(out)))
        else:
            stack.enter_context(lock.shared(out / target.LOCK, _busy(out)))
            stack.enter_context(lock.exclusive(*_shard_lock(out, source, shard)))
        with lock.turn(out / RECORDS / target.LOCK, waiting=SHARD_IS_AHEAD):
            claim(out, source, settings)
            restore_journal(out)
        if shard is None:
            target.remove_temporaries(out)
        try:
            yield
        except BaseException:
            if shard is None:
                target.remove_temporaries(out)
            raise


@contextmanager
def alone(out: Path, busy: str) -> Iterator[None]:
    """Hold a corpus that is there against every run.

    Raises:
        UserError: A run holds it; `busy` is what the user is told.
    """
    with lock.exclusive(out / target.LOCK, busy):
        target.remove_temporaries(out)
        yield


def _busy(out: Path) -> str:
    return f"{out}: another run is writing this corpus; wait for it, or give both --shard i/n"


def _shard_lock(out: Path, source: str, shard: tuple[int, int]) -> tuple[Path, str]:
    path = out / RECORDS / journal.journal_name(source, shard)
    return path, f"{out}: shard {shard[0]}/{shard[1]} is running already"
