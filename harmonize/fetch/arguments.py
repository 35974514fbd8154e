"""The command line of `harmonize fetch`: one subcommand a source."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from harmonize.corpus.target import check_folder
from harmonize.corpus.terms import terms_of
from harmonize.errors import UserError
from harmonize.files import room_in
from harmonize.terminal import say

WORKERS = 4
OPENMIND = "a part of OpenMind, from the Hugging Face Hub"
TCIA = "a collection of The Cancer Imaging Archive, from its NBIA service"
DEEPLESION = "DeepLesion's archives, from NIH's list of them"
RSNA = "nothing: Kaggle hands RSNA 2025 out itself, and this says how"
COMPETITION = "rsna-intracranial-aneurysm-detection"


def add(commands: Any) -> Any:
    """Add `fetch` to the subparsers of `harmonize`; returns its parser."""
    text = "download raw data; goes on where it was stopped"
    parser = commands.add_parser("fetch", help=text, description=text.capitalize() + ".", allow_abbrev=False)
    sources = parser.add_subparsers(metavar="SOURCE", required=True)
    _add_openmind(_source(sources, "openmind", OPENMIND))
    _add_tcia(_source(sources, "tcia", TCIA))
    _add_deeplesion(_source(sources, "deeplesion", DEEPLESION))
    _source(sources, "rsna", RSNA).set_defaults(call=_rsna)
    return parser


def _source(sources: Any, name: str, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = sources.add_parser(
        name, help=text, description=f"Fetch {text}.", allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, required=True, metavar="RAW", help=f"raw folder for harmonize {name}")
    parser.add_argument("--limit", type=_positive, metavar="N", help="at most so many images, series or archives")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(known=parser._option_string_actions)
    return parser


def _add_openmind(parser: argparse.ArgumentParser) -> None:
    _add_modality(parser, "T1w, T2w, FLAIR ... as its table writes them")
    parser.add_argument(
        "--max-score", type=float, metavar="S", help="worst image_quality_score taken; 1 is best, 5 worst"
    )
    parser.add_argument("--repo", default="AnonRes/OpenMind", help="of the dataset; default %(default)s")
    parser.add_argument("--endpoint", default=os.environ.get("HF_ENDPOINT"), metavar="URL", help="of the Hub")
    _add_workers(parser)
    parser.set_defaults(call=_openmind)


def _add_tcia(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--collection", required=True, metavar="C", help="as TCIA writes it, such as HNSCC")
    _add_modality(parser, "CT, MR or PT")
    parser.add_argument(
        "--base-url", default=os.environ.get("HARMONIZE_NBIA_URL"), metavar="URL", help="of the NBIA REST service, v1"
    )
    _add_workers(parser)
    parser.set_defaults(call=_tcia)


def _add_deeplesion(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--list", type=Path, metavar="FILE", help="NIH's batch_download_zips.py, or an address a line")
    parser.add_argument("--base-url", metavar="URL", help="a mirror that holds Images_png_01.zip ... and DL_info.csv")
    parser.set_defaults(call=_deeplesion)


def _add_modality(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--modality", action="append", default=[], metavar="M", help=f"{text}; may be repeated")


def _add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=_positive, default=WORKERS, metavar="N", help="at once; default %(default)s")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number from 1 up")
    return int(text)


def _openmind(options: argparse.Namespace) -> int:
    from harmonize.fetch import openmind

    check_folder(options.out)
    choice = openmind.Choice(modalities=options.modality, max_score=options.max_score, limit=options.limit)
    with room_in(options.out):
        there, missing = openmind.fetch(
            choice, options.out, repo=options.repo, endpoint=options.endpoint, workers=options.workers
        )
    say(f"{options.out}: {there} images; next: harmonize openmind {options.out} --out CORPUS")
    return _finish(options.out, missing)


def _tcia(options: argparse.Namespace) -> int:
    from harmonize.fetch import tcia

    check_folder(options.out)
    with room_in(options.out):
        outcome = tcia.fetch(
            options.collection,
            options.out,
            modalities=options.modality,
            limit=options.limit,
            base_url=(options.base_url or tcia.BASE_URL).rstrip("/"),
            workers=options.workers,
        )
    for licence, count in sorted(outcome.licences.items()):
        say(f"licence of {count} series: {licence}")
    say(f"{options.out}: {outcome.there} series; next: harmonize tcia {options.out} --out CORPUS")
    return _finish(options.out, outcome.failed)


def _deeplesion(options: argparse.Namespace) -> int:
    from harmonize.fetch import deeplesion

    check_folder(options.out)
    wanted = deeplesion.addresses(options.list, options.base_url)[: options.limit]
    table = f"{options.base_url.rstrip('/')}/{deeplesion.TABLE}" if options.base_url else None
    with room_in(options.out):
        missing = deeplesion.fetch(wanted, options.out, table_url=table)
    say(f"{options.out}: {len(wanted)} archives asked for; next: harmonize deeplesion {options.out} --out CORPUS")
    return _finish(options.out, missing)


def _rsna(options: argparse.Namespace) -> int:
    raise UserError(
        f"rsna: Kaggle hands it out, to those who accept its rules at {terms_of('rsna').link}; then "
        f"`kaggle competitions download -c {COMPETITION} -p {options.out}`, and unzip it there"
    )


def _finish(out: Path, missing: list[str]) -> int:
    for line in missing:
        say(f"missing: {line}")
    if missing:
        raise UserError(f"{out}: {len(missing)} could not be had; the same command tries them again")
    return 0
