"""The process that reads damaged files: one after another, each under limits, saying what it is at."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import random
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TextIO

from fuzz.kinds import Kind, make

SECONDS, GIGABYTES = 10.0, 2.0
"""No file may cost more: of processor time, and of memory of the whole process."""

_OVER = 3 << 30
"""Bytes beyond what the process has: whoever asks for more gets a MemoryError, so that the machine stays whole."""


class Overtime(BaseException):
    """A file took too long; no `except Exception` of the reader catches it."""


@dataclass(frozen=True, slots=True)
class Found:
    """What became of one damaged file.

    Attributes:
        fault: What it did that none may do; None if it was read or refused.
        refused: Whether it was refused.
        died: Whether it ended its process, where it was read in one of its own.
    """

    fault: str | None
    refused: bool
    died: bool = False


def damaged(kind: Kind, name: str, seed: int, case: int, valid: bytes) -> bytes:
    """The content of one case; the same for the same name, seed and case."""
    return kind.damage(valid, random.Random(f"{name} {seed} {case}"))


def watched(kind: Kind, content: bytes) -> Found:
    """Have a damaged file read under the limits."""
    kind.put(content)
    return _alone(kind) if kind.alone else _read(kind)


def _alone(kind: Kind) -> Found:
    """What comes of reading in a process of its own."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ours)
        # The clock is Python's, and does not interrupt a decoder.
        resource.setrlimit(resource.RLIMIT_CPU, (int(SECONDS) + 1, resource.RLIM_INFINITY))
        try:
            os.write(theirs, pickle.dumps(_read(kind)))
        finally:
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as pipe:
        said = pipe.read()
    _, status, usage = os.wait4(child, 0)
    if said:
        return pickle.loads(said)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU:
        return Found(f"took more than {SECONDS:g} s", False, died=True)
    if usage.ru_maxrss > GIGABYTES * (1 << 20):
        return Found(f"took {usage.ru_maxrss / (1 << 20):.1f} GB", False, died=True)
    return Found(None if os.WIFSIGNALED(status) else "ended its process without a word", False, died=True)


def _read(kind: Kind) -> Found:
    from harmonize.errors import Rejection, UserError

    refused = False
    with _peak() as peak, _clock():
        start = time.process_time()
        try:
            kind.read()
        except (UserError, Rejection) as error:
            refused = True
            if len(str(error).splitlines()) != 1:
                return Found(f"a message of {len(str(error).splitlines())} lines: {error!r:.300}", True)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            return Found(_told(error), False)
        seconds = time.process_time() - start
    if seconds > SECONDS:
        return Found(f"took {seconds:.1f} s", refused)
    if peak[0] > GIGABYTES:
        return Found(f"took {peak[0]:.1f} GB", refused)
    return Found(None, refused)


def _told(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/tests/" not in frame.filename] or list(frames)
    place = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(ours[-4:]))
    said = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {said} in {place}"


@contextlib.contextmanager
def _clock() -> Iterator[None]:
    def late(number: int, frame: FrameType | None) -> None:
        raise Overtime(f"more than {SECONDS:g} s")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@contextlib.contextmanager
def _peak() -> Iterator[list[float]]:
    """Most memory of the process while the block runs, in GB, known after it."""
    peak = [0.0]
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (_status("VmData") + _OVER, before[1]))
    try:
        yield peak
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
        peak[0] = _status("VmHWM") / (1 << 30)


def _status(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) << 10


def serve(names: Sequence[str], seed: int, cases: range, kept: Path, *, start: int | None = None) -> None:
    """Go through the cases of some kinds; write a line when a kind or a case begins and when it is done.

    Args:
        names: The kinds.
        seed: Gives other files.
        cases: Their numbers.
        kept: Files that did what none may do go here.
        start: Where to go on with the first kind.
    """
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    _never_wait()
    said, sys.stdout = sys.stdout, sys.stderr
    for name in names:
        print(f"kind {name}", file=said, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            of_kind = cases if start is None else range(start, cases.stop)
            _serve_one(name, Path(folder), seed, of_kind, kept, said)
        start = None


def _never_wait() -> None:
    """Skip the pauses of this process: nothing that it writes is kept, and no server will come back."""
    from harmonize.engine import one_scan
    from harmonize.fetch import download

    os.fsync = lambda descriptor: None
    one_scan.RETRY_AFTER_S = download.BACKOFF_S = 0.0


def _serve_one(name: str, folder: Path, seed: int, cases: range, kept: Path, said: TextIO) -> None:
    kind = make(name, folder)
    valid = kind.target.read_bytes()
    # Here, so that what it imports is there for all.
    control = watched(replace(kind, alone=False), valid)
    if control != Found(None, False):
        print(f"fault -1 the undamaged file: {control.fault or 'refused'}", file=said, flush=True)
        return
    for case in cases:
        content = damaged(kind, name, seed, case, valid)
        print(f"begin {case}", file=said, flush=True)
        found = watched(kind, content)
        if found.fault is not None:
            kept.mkdir(parents=True, exist_ok=True)
            (kept / f"{name}-{seed}-{case}").write_bytes(content)
            print(f"fault {case} {found.fault}", file=said, flush=True)
        outcome = "died" if found.died else "refused" if found.refused else "read"
        print(f"{outcome} {case}", file=said, flush=True)
