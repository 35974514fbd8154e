"""A prediction over paths: what is known stays, the rest is answered, and each answer is kept at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from finetune.predict.ensemble import Ensemble, Panel, Precision
from finetune.predict.journal import Journal, Row, journal_at
from finetune.predict.many import answer_places
from finetune.predict.share import ALL, Share, cores_of_rank
from finetune.predict.table import JOURNAL, check_out, companion, tables_of
from finetune.raw.places import find_places
from harmonize.errors import UserError, WrongUse
from harmonize.progress import Progress
from headspark.run.interrupt import Interrupted, interrupts

FEW = 8
"""Folders from which on workers are worth the seconds that they take to start."""

GPU_BATCH = 4
"""Series that a GPU is asked about at once, unless somebody says otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What a prediction came to.

    Attributes:
        rows: What became of each series, in the order of the paths and of the folders in them.
        known: How many of them an earlier run had answered.
        elsewhere: How many series its file knows of other folders.
        left: How many folders the processes of other shares have not answered yet.
        interrupted: What asked it to stop before it was through; None: nothing did.
    """

    rows: list[Row]
    known: int = 0
    elsewhere: int = 0
    left: int = 0
    interrupted: str | None = None


def devices_of(text: str | None) -> list[torch.device]:
    """Where to compute: ``cpu``, ``cuda``, ``cuda:0,cuda:1``; None: every GPU that is visible, or the CPU.

    Raises:
        UserError: There is no such device.
    """
    gpus = torch.cuda.device_count()
    if text is None:
        return [torch.device("cuda", number) for number in range(gpus)] or [torch.device("cpu")]
    devices = []
    for name in text.split(","):
        try:
            device = torch.device(name.strip())
        except RuntimeError as error:
            raise WrongUse(f"--device {name}: no device of PyTorch's; such as cpu, cuda or cuda:0,cuda:1") from error
        if device.type == "cuda" and (device.index or 0) >= gpus:
            raise WrongUse(f"--device {name}: there are {gpus} GPUs here")
        devices.append(device)
    return devices


def predict_paths(
    panel: Panel,
    paths: Sequence[Path],
    *,
    out: Path | None,
    devices: Sequence[torch.device],
    precision: Precision = "fp32",
    workers: int | None = None,
    batch: int | None = None,
    share: Share = ALL,
) -> Done:
    """Answer every series that paths hold, or this process's share of them.

    Args:
        panel: The models.
        paths: Folders, and lists of folders.
        out: The file that answers are kept beside; None: nowhere.
        devices: Where to compute.
        precision: Of the networks.
        workers: Processes that read ahead; None: the cores, or none for a few folders.
        batch: Series that a device is asked about at once; None: `GPU_BATCH`, or 1 on a CPU.
        share: The folders that this process answers; what it came to is said of all.

    Raises:
        UserError: Nothing is there, or `out` cannot be used.
    """
    if out is not None:
        check_out(out, panel.labels)
    facts = {
        "labels": list(panel.labels),
        "models": [member.facts() for member in panel.members],
        "precision": precision,
    }
    try:
        with interrupts() as interrupt:
            places = find_places(paths)
            if not places:
                raise UserError(f"{paths[0]}: holds no DICOM pictures and no image; give a series, or many")
            with _journal(out, facts, share) as journal:
                interrupt.begin()
                mine = [place for place in places if share.holds(place.key)]
                known = {place.key: journal.of(place) for place in mine}
                missing = [place for place in mine if not _is_whole(known[place.key])]
                ensembles = [Ensemble(panel, device, precision) for device in devices] if missing else []
                rows = answer_places(
                    missing,
                    ensembles,
                    workers=workers if workers is not None else cores_of_rank() if len(missing) >= FEW else 0,
                    batch=batch or (GPU_BATCH if devices[0].type == "cuda" else 1),
                    known=lambda place: set(known[place.key]),
                    asked=partial(bool, interrupt),
                )
                done = len(mine) - len(missing)
                with Progress("predict", total=len(mine), unit="folders", done=done) as progress:
                    counts = Counter({"answered": 0, "not_used": 0})
                    for row in rows:
                        journal.add(row)
                        counts["answered" if row.reason is None else "not_used"] += 1
                        progress.advance(int(row.part == 0), **counts)
                if share != ALL:
                    journal.read()
                found = Done(
                    rows=[row for place in places for row in journal.rows(place)],
                    known=sum(map(len, known.values())),
                    elsewhere=journal.elsewhere(places),
                    left=0 if share == ALL else sum(not journal.is_through(place) for place in places),
                    interrupted=interrupt.name,
                )
                if out is not None and found.interrupted is None and not found.left:
                    check_out(out, panel.labels)  # again: hours have passed
                    journal.add_tables(tables_of(out, found.rows))
                return found
    except Interrupted:
        return Done(rows=[], interrupted="a signal")


def _journal(out: Path | None, facts: Mapping[str, object], share: Share) -> AbstractContextManager[Journal]:
    return nullcontext(Journal()) if out is None else journal_at(companion(out, JOURNAL), facts, share)


def _is_whole(known: Mapping[int, Row]) -> bool:
    """Whether all series of a folder are known."""
    return bool(known) and len(known) == next(iter(known.values())).parts
