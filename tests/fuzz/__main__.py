"""Damage valid files of every kind and have them read, for a while or without end.

No file may end in a traceback or a crash, take more than 2 GB or more than 10 s of processor time.

    python tests/fuzz                              # 200 files of each kind
    python tests/fuzz dicom png --cases 5000
    python tests/fuzz --forever --seed 7           # all kinds in turn, until Ctrl-C
    python tests/fuzz dicom --seed 0 --only 37     # one case again
"""

from __future__ import annotations

import argparse
import os
import queue
import subprocess
import sys
import threading
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[0:0] = [str(ROOT / "tests"), str(ROOT), str(ROOT / "ssl")]

from fuzz.kinds import KINDS, NAMES  # noqa: E402
from fuzz.worker import serve  # noqa: E402

HANGS_S = 600.0
"""Wall time after which a process that says nothing is ended: it may be starting on a busy machine."""

ROUND = 500
WORKER = (sys.executable, __file__, "--worker")


@dataclass(slots=True)
class Tally:
    """What the cases of a kind came to.

    Attributes:
        faults: One line each.
        outcomes: How many were read, how many refused, and how many ended the process that was theirs alone.
    """

    faults: list[str] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)


def say(name: str, tally: Tally) -> None:
    """Print what the cases of a kind came to."""
    counts = ", ".join(f"{count} {what}" for what, count in sorted(tally.outcomes.items()))
    print(f"{name}: {counts}, {len(tally.faults)} bad", flush=True)
    for fault in tally.faults:
        print(f"  {fault}", flush=True)


def run(names: Sequence[str], *, options: Sequence[str], worker: Sequence[str] = WORKER) -> dict[str, Tally]:
    """Go through cases of some kinds in a process of their own; one that dies is followed by another.

    Args:
        names: The kinds.
        options: Of the process: seed, cases ...
        worker: Its command.
    """
    tallies = {name: Tally() for name in names}
    left, start = list(names), None
    while left:
        begun: int | None = None
        end = ""
        words = [*worker, *left, *options, *([] if start is None else [f"--start={start}"])]
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            errors: deque[str] = deque(maxlen=1)
            for line in _lines(process, errors):
                what, _, rest = line.partition(" ")
                tally = tallies[left[0]]
                if what == "kind":
                    for done in left[: left.index(rest)]:
                        say(done, tallies[done])
                    del left[: left.index(rest)]
                    begun = None
                elif what == "begin":
                    begun = int(rest)
                elif what == "fault":
                    number, _, said = rest.partition(" ")
                    tally.faults.append(f"--only {number}: {said}")
                elif what in ("read", "refused", "died"):
                    tally.outcomes[what] += 1
                    begun = None
                elif what == "hangs":
                    process.kill()
                    end = f"no end after {HANGS_S:g} s"
        tally = tallies[left[0]]
        if process.returncode != 0 or end:
            end = end or f"ended its process with {process.returncode} ({' '.join(errors)})"
            tally.faults.append(f"--only {-1 if begun is None else begun}: {end}")
        if begun is not None:
            start = begun + 1
            continue
        say(left[0], tally)
        del left[0]
        if process.returncode == 0:
            break
        start = None
    return tallies


def _lines(process: subprocess.Popen[str], errors: deque[str]) -> Iterator[str]:
    """What a process says; ``hangs`` when it has said nothing for too long."""
    said: queue.Queue[str | None] = queue.Queue()

    def listen() -> None:
        assert process.stdout
        for line in process.stdout:
            said.put(line.rstrip("\n"))
        said.put(None)

    def listen_to_errors() -> None:
        assert process.stderr
        errors.extend(line.strip() for line in process.stderr)

    listeners = [threading.Thread(target=task, daemon=True) for task in (listen, listen_to_errors)]
    for listener in listeners:
        listener.start()
    while True:
        try:
            line = said.get(timeout=HANGS_S)
        except queue.Empty:
            yield "hangs"
            break
        if line is None:
            break
        yield line
    # What they listen to is closed next.
    for listener in listeners:
        listener.join(timeout=HANGS_S)


def main(argv: Sequence[str]) -> int:
    """Run the command; 1 if any file did what none may do."""
    parser = argparse.ArgumentParser(prog="python tests/fuzz", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"some of {', '.join(NAMES)}; default all")
    parser.add_argument("--cases", type=int, default=200, help="files of each kind (200)")
    parser.add_argument("--forever", action="store_true", help="go on until Ctrl-C")
    parser.add_argument("--seed", type=int, default=0, help="another number gives other files")
    parser.add_argument("--only", type=int, help="number of the one case to read")
    parser.add_argument("--kept", type=Path, default=Path("fuzz-found"), help="where bad files go (fuzz-found)")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--start", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    unknown = [name for name in options.kinds if name not in NAMES]
    if unknown:
        parser.error(f"no kind {unknown[0]}; use some of {', '.join(NAMES)}")
    if options.worker:
        cases = range(options.first, options.cases)
        serve(options.kinds, options.seed, cases, options.kept, start=options.start)
        return 0
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    first, last = (0, ROUND if options.forever else options.cases)
    if options.only is not None:
        first, last = options.only, options.only + 1
    is_good = True
    while True:
        for names in _groups(options.kinds or NAMES):
            said = [f"--seed={options.seed}", f"--kept={options.kept}", f"--first={first}", f"--cases={last}"]
            tallies = run(names, options=said)
            is_good &= not any(tally.faults for tally in tallies.values())
        if not options.forever:
            return 0 if is_good else 1
        first, last = last, last + ROUND


def _groups(names: Sequence[str]) -> list[list[str]]:
    """The kinds that one process reads: those of one module."""
    return [group for of_module in KINDS.values() if (group := [name for name in of_module if name in names])]


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
