"""`finetune geometry`: teach a network what stripped series do not say of their size and orientation."""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

from harmonize.parser import not_negative
from harmonize.terminal import say, warn

SCANS = 2000
"""Half a MB of each stays in memory."""


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to the parser of `finetune`."""
    parser = commands.add_parser(
        "geometry",
        parents=[common],
        help="teach a network the pixel size, slice distance and orientation that stripped series do not say",
        description="Teach a small network, from any harmonized corpus and without labels, how large the pictures of a "
        "stack are, how far apart, and which way round: for multi-frame files whose functional groups were taken out. "
        "`finetune kaggle --geometry` packs it.",
    )
    parser.add_argument("--corpus", type=Path, required=True, help="corpus that harmonize wrote; labels do not matter")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="a new folder; a network that was there is replaced"
    )
    parser.add_argument("--steps", type=int, help="of 16 stacks; default 1200")
    parser.add_argument(
        "--scans", type=int, default=SCANS, help="learn from so many, drawn where there are more; default %(default)s"
    )
    parser.add_argument("--seed", type=not_negative, default=0, help="of all that is drawn; default %(default)s")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Teach it, and say what it is worth on series that it did not learn from.

    Raises:
        UserError: The corpus has too few subjects, or `--out` holds something else.
    """
    from finetune.geometry import GEOMETRY_FILES, save_geometry
    from finetune.geometry.folder import is_geometry_folder
    from finetune.geometry.lessons import read_lesson
    from finetune.geometry.teach import STEPS, teach
    from harmonize.corpus import Corpus
    from harmonize.errors import EXIT_INTERRUPTED, UserError
    from harmonize.progress import Progress
    from headspark.config.checks import require
    from headspark.folders import refuse_foreign, replaced
    from headspark.run.interrupt import Interrupted, interrupts

    steps = STEPS if options.steps is None else options.steps
    require(steps >= 1, f"--steps {steps}: must be 1 or more")
    require(options.scans >= 1, f"--scans {options.scans}: must be 1 or more")
    foreign: dict[str, Any] = {"names": GEOMETRY_FILES, "is_ours": is_geometry_folder, "what": "geometry network"}
    refuse_foreign(options.out, **foreign)
    corpus = Corpus.open(options.corpus)
    rows = chosen(corpus.scans.to_dict("records"), options.scans, options.seed)
    reader = None
    try:
        with interrupts() as interrupt:
            interrupt.begin()
            lessons, faults = [], []
            with Progress("read", total=len(rows), unit="scans") as progress:
                for row in rows:
                    if interrupt:
                        break
                    try:
                        lessons.append(read_lesson(corpus, row))
                    except UserError as fault:  # one damaged file, and there are others to learn from
                        faults.append(fault)
                    progress.advance()
            if faults:
                warn(f"note: {len(faults)} of {len(rows)} scans left out, the first: {faults[0]}")
            if not interrupt:
                reader = teach(lessons, steps=steps, seed=options.seed, asked=lambda: bool(interrupt))
    except Interrupted:
        reader = None
    if reader is None:
        warn(f"{options.out}: stopped before the network was done; give the same command again")
        return EXIT_INTERRUPTED
    with replaced(options.out, **foreign) as temporary:
        save_geometry(temporary, reader)
    held: Any = reader.facts["held_out"]
    warn(
        f"note: of {held['stacks']} stacks of {held['series']} held-out series, half are within "
        f"{held['edge_off_percent']} % in the pictures' size and {held['height_off_percent']} % in the slices' extent; "
        f"{held['wrong_way']} lie another way, {held['wrong_direction']} the other way round"
    )
    say(options.out)
    return 0


def chosen(rows: list[Any], most: int, seed: int) -> list[Any]:
    """All rows, or as many as wanted of them, each as likely as the others."""
    return rows if len(rows) <= most else random.Random(seed).sample(rows, most)
