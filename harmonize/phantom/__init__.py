"""Raw trees of invented heads in each source's own format, so that everything runs on a machine without data."""

from __future__ import annotations

import os
import shutil
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from harmonize import pool, sources
from harmonize.corpus.target import check_folder
from harmonize.errors import UserError, WrongUse
from harmonize.files import temporary_beside
from harmonize.phantom.rsna import BESIDE, Coverage, TreeOptions, read_prevalence
from harmonize.phantom.vessels import Difficulty
from harmonize.progress import Progress

ALL, RSNA = "all", "rsna"
SMALLEST_SIZE = 24
"""With fewer voxels along the largest axis nothing in a head can be told apart."""


def write(
    source: str,
    out: Path,
    *,
    scans: int,
    size: int,
    seed: int,
    workers: int = 1,
    prevalence: Path | None = None,
    coverage: Coverage = "protocol",
    difficulty: Difficulty = "hard",
    hospital: str | None = None,
    label_noise: float = 0.0,
    counterfactuals: bool = False,
) -> list[Path]:
    """Write the raw tree of one source, of all, or of a data set that a source reads, to `out`/<source>.

    The same arguments give the same bytes, whichever other sources are written beside. A tree appears under its
    name only when it is whole.

    Args:
        source: Name of one that has a phantom in the registry, ``all`` of these, or one of `PHANTOM_DATA_SETS`.
        out: Where the trees go.
        scans: Usable scans in each tree; files to be ignored or rejected come on top.
        size: Voxels along the largest axis of a scan.
        seed: Any integer.
        workers: Processes; their number changes nothing that is written.
        prevalence: A table that says how many series of RSNA's tree have an aneurysm, and where; None makes it half of
            each modality.
        coverage: Fields of view of RSNA's tree: those of its protocols, or ``varied`` ones (necks, cut vertices, small
            and off-centre fields, odd slices, turned heads).
        difficulty: Of RSNA's tree: ``hard``, with sacs of all sizes, with what merely looks like one,
            with hospitals and artefacts; ``medium``, with larger sacs and fewer wide places; or ``easy``; see
            docs/phantom.md.
        hospital: The only one that scans RSNA's tree; None for all but the odd one. Like the next two, not of easy
            trees.
        label_noise: Share of the series of RSNA's tree whose labels are wrong.
        counterfactuals: Makes each two series of RSNA's tree one head, with and without a sac.

    Returns:
        The root of each tree. RSNA's has tables beside it, `harmonize.phantom.rsna.beside`: the sizes of the sacs and,
        if it is medium or hard, hospitals, mimics, true labels and pairs.

    Raises:
        UserError: For an unknown source, a number out of range, a table that says nothing, a tree that exists already,
            or no place to write to.
    """
    known = tuple(name for name, entry in sources.SOURCES.items() if entry.phantom is not None)
    if source not in (ALL, *known, *sources.PHANTOM_DATA_SETS):
        names = ", ".join((*known, *sources.PHANTOM_DATA_SETS))
        raise WrongUse(f"unknown source {source!r}: choose {ALL} or one of {names}")
    if scans < 1:
        raise WrongUse(f"--scans is {scans}: ask for at least 1")
    if size < SMALLEST_SIZE:
        raise WrongUse(f"--size is {size}: ask for at least {SMALLEST_SIZE} voxels")
    if counterfactuals and scans % 2:
        raise WrongUse(f"--scans {scans} with --counterfactuals: ask for an even number, two a pair")
    asked = {
        f"--prevalence {prevalence}": prevalence is not None,
        f"--coverage {coverage}": coverage != TreeOptions().coverage,
        f"--difficulty {difficulty}": difficulty != TreeOptions().difficulty,
        f"--hospital {hospital}": hospital is not None,
        f"--label-noise {label_noise:g}": label_noise != 0,
        "--counterfactuals": counterfactuals,
    }
    ignored = [name for name, is_asked in asked.items() if is_asked and source not in (RSNA, ALL)]
    if ignored:
        raise WrongUse(f"{ignored[0]}: does nothing with --source {source}")
    tree = TreeOptions(
        prevalence=TreeOptions().prevalence if prevalence is None else read_prevalence(prevalence),
        coverage=coverage,
        difficulty=difficulty,
        hospital=hospital,
        label_noise=label_noise,
        counterfactuals=counterfactuals,
    )
    if counterfactuals and prevalence is not None and not tree.prevalence.states_sites:
        raise WrongUse(
            f"--prevalence {prevalence}: does nothing with --counterfactuals, of which half are ill, but for weights "
            "of sites; give it some or leave one out"
        )
    options: dict[str, TreeOptions] = {RSNA: tree}
    check_folder(Path(out))
    chosen = known if source == ALL else (source,)
    roots = [Path(out) / name for name in chosen]
    for name, root in zip(chosen, roots, strict=True):
        # A link that leads nowhere would be found out only when the tree is whole.
        # A table of an older tree beside a new one would be taken for its own.
        for path in (root, *(root.with_name(other) for other in (BESIDE if name in options else ()))):
            if os.path.lexists(path):
                raise WrongUse(f"{path} exists already: choose another --out or remove it")
    with Progress("phantom", total=scans * len(chosen)) as progress:
        for name, root in zip(chosen, roots, strict=True):
            arguments: dict[str, Any] = {"scans": scans, "size": size, "seed": seed}
            if name in options:
                arguments["options"] = options[name]
            _write_whole(name, root, arguments, workers=workers, progress=progress)
    return roots


def _write_whole(name: str, root: Path, arguments: dict[str, Any], *, workers: int, progress: Progress) -> None:
    partial_root = temporary_beside(root)
    try:
        partial_root.mkdir(parents=True)
    except OSError as error:
        raise WrongUse(f"{root.parent}: cannot be made ({error.strerror}): choose another --out") from error
    try:
        writer = _writer(name)
        write_scan = partial(writer.write_scan, root=partial_root, **arguments)
        scans = range(arguments["scans"])
        found = {}
        for index, result in pool.run(write_scan, scans, workers=workers if workers > 1 else 0):
            if isinstance(result, pool.Died):
                raise UserError(
                    f"phantom: a process was killed (exit code {result.exit_code}): lower --workers or --size"
                )
            found[index] = result
            progress.advance(source=name)
        of_all = [found[index] for index in scans]
        writer.write_tables(partial_root, of_all)
        if "options" in arguments:  # before the tree has its name: whoever finds it finds them too
            writer.write_beside(root.parent, of_all, arguments["options"])
        partial_root.rename(root)
    except BaseException:
        shutil.rmtree(partial_root)
        for table in _beside(name, arguments.get("options")):
            root.with_name(table).unlink(missing_ok=True)
        raise


def _beside(name: str, options: TreeOptions | None) -> tuple[str, ...]:
    """Files that the phantom of a source writes beside its tree, for they are no part of what the source publishes."""
    return () if options is None else tuple(_writer(name).beside(options))


def _writer(name: str) -> Any:
    """The module that writes the tree of a source, or of a data set."""
    module = sources.PHANTOM_DATA_SETS.get(name) or sources.entry(name).phantom
    assert module is not None
    return import_module(module)
