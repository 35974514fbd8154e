"""`harmonize phantom`: raw trees of invented heads."""

from __future__ import annotations

import argparse
from pathlib import Path

from harmonize import sources
from harmonize.cli.command import DONE, Command, add_workers
from harmonize.parser import positive
from harmonize.terminal import say


def _add_options(parser: argparse.ArgumentParser) -> None:
    names = (name for name, entry in sources.SOURCES.items() if entry.phantom is not None)
    data_sets = tuple(sources.PHANTOM_DATA_SETS)
    parser.add_argument(
        "--source",
        choices=("all", *names, *data_sets),
        default="all",
        help=f"default all, which are those but {' and '.join(data_sets)}: data sets for `harmonize nifti`",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="RAW", help="gets a folder a source")
    parser.add_argument("--scans", type=positive, default=8, metavar="N", help="a source; default 8")
    parser.add_argument(
        "--size", type=positive, default=96, metavar="VOXELS", help="of a scan's longest side; default 96"
    )
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same bytes")
    parser.add_argument(
        "--prevalence",
        type=Path,
        metavar="TABLE.csv",
        help="columns modality, prevalence (share of RSNA's series with an aneurysm) and, if wanted, hospital and a "
        "weight a site; default half of each modality",
    )
    parser.add_argument(
        "--coverage",
        choices=("protocol", "varied"),
        default="protocol",
        help="of RSNA's series: fields of view as the protocols have them, or varied ones, with necks, cut vertices, "
        "odd slices and turned heads; default %(default)s",
    )
    parser.add_argument(
        "--difficulty",
        choices=("easy", "medium", "hard"),
        default="hard",
        help="of RSNA's series: hard: small and odd sacs, mimics, hospitals, artefacts; medium, with "
        "larger sacs and fewer wide places; or easy, with round sacs and nothing that looks like one, to see in "
        "minutes whether a training learns; default %(default)s",
    )
    parser.add_argument(
        "--hospital",
        metavar="NAME",
        help="the only one that scans: north, east, south, west or island; not of easy trees; default all but "
        "island, which scans unlike the others",
    )
    parser.add_argument(
        "--label-noise",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="of the series, whose labels are wrong: missed, invented, wrong side or site; rsna_truth.csv beside the "
        "tree has the right ones; not of easy trees; default 0",
    )
    parser.add_argument(
        "--counterfactuals",
        action="store_true",
        help="each two series are one head, scanned alike, with one sac and without; rsna_counterfactuals.csv beside "
        "the tree names the pairs; not of easy trees",
    )
    add_workers(parser)


def _write(options: argparse.Namespace) -> int:
    from harmonize import phantom

    roots = phantom.write(
        options.source,
        options.out,
        scans=options.scans,
        size=options.size,
        seed=options.seed,
        workers=options.workers,
        prevalence=options.prevalence,
        coverage=options.coverage,
        difficulty=options.difficulty,
        hospital=options.hospital,
        label_noise=options.label_noise,
        counterfactuals=options.counterfactuals,
    )
    for root in roots:
        say(root)
    return DONE


PHANTOM = Command(
    name="phantom",
    text="write phantom raw data in the sources' own formats",
    add_options=_add_options,
    call=_write,
)
