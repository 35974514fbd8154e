"""`harmonize fetch`: one command a source that can be downloaded, each with the options of its own module."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path

from harmonize import sources
from harmonize.cli.command import Command, add_debug
from harmonize.parser import positive


def _add_options(parser: argparse.ArgumentParser) -> None:
    below = parser.add_subparsers(metavar="SOURCE", required=True)
    for name, entry in sources.SOURCES.items():
        if entry.download is not None:
            _add(below.add_parser(name, help=entry.download.title, description=f"Fetch {entry.download.title}."), name)


def _add(parser: argparse.ArgumentParser, name: str) -> None:
    download = sources.entry(name).download
    assert download is not None
    module = import_module(download.module)
    parser.add_argument("--out", type=Path, required=True, metavar="RAW", help=f"raw folder for harmonize {name}")
    parser.add_argument("--limit", type=positive, metavar="N", help="at most so many images, series or archives")
    module.add_options(parser)
    add_debug(parser)
    parser.set_defaults(download=module.call)


def _call(options: argparse.Namespace) -> int:
    return int(options.download(options))


FETCH = Command(
    name="fetch",
    text="download raw data; goes on where it was stopped",
    add_options=_add_options,
    call=_call,
)
