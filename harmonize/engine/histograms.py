"""The standard histograms of a corpus: fitted once on a sample of each modality, or taken from the user."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from harmonize import pool, sources
from harmonize.corpus import NYUL, RECORDS, journal, lock, standards
from harmonize.corpus.target import LOCK
from harmonize.engine.executors import Executor
from harmonize.engine.hold import SHARD_IS_AHEAD
from harmonize.engine.one_scan import landmarks_of
from harmonize.engine.plan import Plan
from harmonize.errors import UserError, WrongUse
from harmonize.progress import Progress
from harmonize.scan import ScanRef
from harmonize.settings import Settings
from harmonize.terminal import warn
from harmonize.voxels import nyul


def check_given(given: Path, folder: Path) -> None:
    """Check that a user's standard histograms can be those of a corpus; nothing is written.

    Args:
        given: The user's folder.
        folder: The corpus's own, which need not be there.

    Raises:
        UserError: The user's folder holds none, or the corpus was made with others.
    """
    paths = sorted(given.glob("*.npy"))
    if not paths:
        raise WrongUse(f"--nyul {given}: holds no <modality>.npy")
    for path in paths:
        histogram, there = nyul.load(path), folder / path.name
        if there.is_file() and not histogram.equals(nyul.load(there)):
            raise WrongUse(f"--nyul {given}: {path.name} differs from the one this corpus was made with")


def fit(plan: Plan, given: Path | None, run_over: Executor) -> Plan:
    """The plan with the standard histograms of its corpus, which are fitted if need be; nothing without Nyul.

    Args:
        plan: The plan.
        given: The user's own histograms.
        run_over: Who reads the scans.

    Raises:
        UserError: See `complete`.
    """
    if plan.settings.mri_norm != "nyul":
        return plan
    folder = plan.out / NYUL
    with lock.turn(plan.out / RECORDS / LOCK, waiting=SHARD_IS_AHEAD):
        complete(folder, given, plan.found.references, plan.root, plan.settings, run_over)
    return replace(plan, settings=replace(plan.settings, nyul_folder=folder))


def complete(
    folder: Path, given: Path | None, references: list[ScanRef], root: Path, settings: Settings, run_over: Executor
) -> None:
    """Copy or fit what the folder of a corpus's standard histograms lacks.

    Args:
        folder: Of the corpus.
        given: The user's own, taken before any is fitted.
        references: All scans of the raw root.
        root: The raw folder.
        settings: How the scans are read.
        run_over: Who reads them.

    Raises:
        UserError: See `check_given`; a histogram is gone that scans were made with; or the raw folder vanished.
    """
    if given is not None:
        check_given(given, folder)
        for path in sorted(given.glob("*.npy")):
            if not (folder / path.name).is_file():
                nyul.save(folder / path.name, nyul.load(path))
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
        _check_none_lost(folder.parent)
        _fit(wanted, root, folder, settings, run_over)


def _check_none_lost(out: Path) -> None:
    """Check that no histogram would be fitted again that scans of a corpus were made with: it would be another one.

    Raises:
        UserError: One is gone.
    """
    made = (record.row for record in journal.read(out / RECORDS).values() if record.row is not None)
    for fault in standards.lost(out, standards.used_by(made)):
        raise UserError(
            f"{out}: {fault}; one fitted now would give other intensities: bring it back from a copy, give the folder "
            "that has it as --nyul, or harmonize into a new --out"
        )


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
        sources.check_still_there(root)
    for modality, landmarks_by_key in sorted(found.items()):
        path = nyul.histogram_path(folder, modality)
        if not path.is_file():
            # In the order of the keys: a sum of floats depends on its order.
            nyul.save(path, nyul.fit(np.asarray(landmarks) for _, landmarks in sorted(landmarks_by_key)))
            # A user who tries a few scans first must know that the corpus keeps what these few gave.
            count = len(landmarks_by_key)
            scans = "1 scan" if count == 1 else f"{count} scans"
            warn(f"nyul: {modality} fitted on {scans}, for all of this corpus")
