"""Damage valid files of every kind and have them read, for a while or without end.

No file may end in a traceback or a crash, take more than 2 GB or more than 10 s of processor time.

    python tests/fuzz                              # 100 files of each kind
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
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[0:0] = [str(ROOT / "tests"), str(ROOT), str(ROOT / "ssl")]

from fuzz.kinds import NAMES  # noqa: E402
from fuzz.worker import serve  # noqa: E402

HANGS_S = 120.0
"""Wall time after which a process that says nothing is ended: it may be starting on a busy machine."""

ROUND = 500


@dataclass(slots=True)
class Tally:
    """What the cases of a kind came to.

    Attributes:
        faults: One line each.
        outcomes: How many were read, and how many refused.
    """

    faults: list[str] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)


def run(name: str, *, seed: int, first: int, last: int, kept: Path, command: Sequence[str] = ()) -> Tally:
    """Go through cases of a kind in processes of their own; one that dies is followed by another.

    Args:
        name: The kind.
        seed: Gives other files.
        first: Number of the first case.
        last: Of the one after the last.
        kept: Where files go that did what none may do.
        command: What runs instead of this program's worker, for its tests.
    """
    tally, at = Tally(), first
    while at < last:
        words = [*(command or (sys.executable, __file__, "--worker")), name, f"--seed={seed}", f"--kept={kept}"]
        begun: int | None = None
        with subprocess.Popen(
            [*words, f"--first={at}", f"--last={last}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            end = ""
            for line in _lines(process):
                what, _, rest = line.partition(" ")
                if what == "begin":
                    begun = int(rest)
                elif what == "fault":
                    number, _, said = rest.partition(" ")
                    tally.faults.append(f"{name} --seed {seed} --only {number}: {said}")
                elif what in ("read", "refused"):
                    tally.outcomes[what] += 1
                    begun, at = None, int(rest) + 1
                elif what == "hangs":
                    process.kill()
                    end = "hangs"
        if process.returncode == 0 and not end:
            break
        if begun is None:
            tally.faults.append(f"{name} --seed {seed}: the process ended with {process.returncode} before a file")
            break
        tally.faults.append(f"{name} --seed {seed} --only {begun}: {end or f'ended its process ({process.returncode})'}")
        at = begun + 1
    return tally


def _lines(process: subprocess.Popen[str]) -> Iterator[str]:
    """What a process says; ``hangs`` when it has said nothing for too long."""
    said: queue.Queue[str | None] = queue.Queue()

    def listen() -> None:
        assert process.stdout
        for line in process.stdout:
            said.put(line.rstrip("\n"))
        said.put(None)

    def drop() -> None:
        assert process.stderr
        for _ in process.stderr:
            pass

    for task in (listen, drop):
        threading.Thread(target=task, daemon=True).start()
    while True:
        try:
            line = said.get(timeout=HANGS_S)
        except queue.Empty:
            yield "hangs"
            return
        if line is None:
            return
        yield line


def main(argv: Sequence[str]) -> int:
    """Run the command; 1 if any file did what none may do."""
    parser = argparse.ArgumentParser(prog="python tests/fuzz", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"some of {', '.join(NAMES)}; default all")
    parser.add_argument("--cases", type=int, default=100, help="files of each kind (100)")
    parser.add_argument("--forever", action="store_true", help="go on until Ctrl-C")
    parser.add_argument("--seed", type=int, default=0, help="another number gives other files")
    parser.add_argument("--only", type=int, help="number of the one case to read")
    parser.add_argument("--kept", type=Path, default=Path("fuzz-found"), help="where bad files go (fuzz-found)")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--last", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    unknown = [name for name in options.kinds if name not in NAMES]
    if unknown:
        parser.error(f"no kind {unknown[0]}; use some of {', '.join(NAMES)}")
    if options.worker:
        serve(options.kinds[0], options.seed, options.first, options.last, options.kept)
        return 0
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    first, last = (0, ROUND if options.forever else options.cases)
    if options.only is not None:
        first, last = options.only, options.only + 1
    is_good = True
    while True:
        for name in options.kinds or NAMES:
            tally = run(name, seed=options.seed, first=first, last=last, kept=options.kept)
            counts = ", ".join(f"{count} {what}" for what, count in sorted(tally.outcomes.items()))
            print(f"{name}: {counts}, {len(tally.faults)} bad", flush=True)
            for fault in tally.faults:
                print(f"  {fault}", flush=True)
            is_good &= not tally.faults
        if not options.forever:
            return 0 if is_good else 1
        first, last = last, last + ROUND


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
