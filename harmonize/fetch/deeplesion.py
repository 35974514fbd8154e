"""Fetch DeepLesion's archives from a list of addresses, unpack them, and put the table beside them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from harmonize.corpus.target import check_folder
from harmonize.errors import UserError, WrongUse
from harmonize.fetch import download
from harmonize.fetch.address import parse
from harmonize.fetch.archives import Damaged, unpack
from harmonize.fetch.arguments import finish
from harmonize.files import room_in, write_text
from harmonize.progress import Progress
from harmonize.sources.tables import read_table
from harmonize.terminal import say

HOME = "https://nihcc.box.com/v/DeepLesion"
LIST_NAME = "batch_download_zips.py"
TABLE, IMAGES = "DL_info.csv", "Images_png"
ARCHIVES = 56
"""Parts of the data set, ``Images_png_01.zip`` to ``Images_png_56.zip``, about 4 GB each."""

DONE = ".fetched"
ARCHIVE_ATTEMPTS = 2
_ADDRESS = re.compile(r"https?://[^\s'\"<>,]+\.zip")
_SLICE = re.compile(r"(?:.*/)?(?P<series>\d{6}_\d{2}_\d{2})/\d{3,5}\.png")


def addresses(list_file: Path | None, base_url: str | None) -> list[str]:
    """The archives' addresses in their order.

    Args:
        list_file: A text with addresses that end in ``.zip``: NIH's own ``batch_download_zips.py``, or one a line.
        base_url: A folder of a mirror that holds ``Images_png_01.zip`` and so on.

    Raises:
        UserError: Neither is given, or the list holds no address, or one that is none.
    """
    if base_url is not None:
        parse(base_url)
        return [f"{base_url.rstrip('/')}/{IMAGES}_{part:02d}.zip" for part in range(1, ARCHIVES + 1)]
    if list_file is None:
        raise WrongUse(
            f"--list: needed; download {LIST_NAME} and {TABLE} from {HOME}, then give `--list {LIST_NAME}`",
        )
    try:
        text = list_file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise WrongUse(
            f"--list {list_file}: cannot be read ({error.strerror}); take {LIST_NAME} from {HOME}"
        ) from error
    found = list(dict.fromkeys(_ADDRESS.findall(text)))
    if not found:
        raise WrongUse(f"{list_file}: holds no address of a .zip file; take {LIST_NAME} from {HOME}")
    for url in found:
        # Before hours of downloads.
        if not _name(url).endswith(".zip"):
            raise WrongUse(f"{list_file}: {download.place(url)} names no .zip file")
    return found


def fetch(wanted: Sequence[str], out: Path, *, table_url: str | None = None) -> list[str]:
    """Bring archives one by one, unpack each and remove it; those that are unpacked already are passed over.

    Args:
        wanted: Addresses.
        out: Raw folder for ``harmonize deeplesion``.
        table_url: Where ``DL_info.csv`` is, if it is to be fetched.

    Returns:
        What is missing still, one line each.

    Raises:
        UserError: A server cannot be reached.
    """
    missing = []
    with Progress("fetch deeplesion", total=len(wanted), unit="archive") as progress:
        for url in wanted:
            fault = _bring(url, out)
            if fault is not None:
                missing.append(fault)
            progress.advance(failed=len(missing))
    if not (out / TABLE).is_file() and table_url is not None:
        fault = _bring_table(table_url, out)
        if fault is not None:
            missing.append(fault)
    if not (out / TABLE).is_file():
        missing.append(f"{out / TABLE}: missing; download it from {HOME} and put it there")
    return missing


def _bring(url: str, out: Path) -> str | None:
    name = _name(url)
    done = out / DONE / name
    if done.is_file():
        return None
    archive = out / DONE / "archives" / name
    fault = ""
    for _ in range(ARCHIVE_ATTEMPTS):
        try:
            if not archive.is_file():
                download.download(url, archive, checked=True)
            if not unpack(archive, out, place=_place):
                return f"{download.place(url)}: holds no slices of DeepLesion"
        except download.HttpError as error:
            return str(error)
        except Damaged as damaged:
            fault = str(damaged)
            archive.unlink(missing_ok=True)
            continue
        archive.unlink()
        write_text(done, f"{download.place(url)}\n")
        return None
    return f"{download.place(url)}: {fault}"


def _bring_table(url: str, out: Path) -> str | None:
    fetched = out / DONE / TABLE
    try:
        download.download(url, fetched)
    except download.HttpError as error:
        return str(error)
    try:
        read_table(fetched, ("File_name",))
    except UserError:
        # A page, perhaps, that says why there is no table.
        fetched.unlink()
        return f"{download.place(url)}: gave no table of DeepLesion"
    fetched.replace(out / TABLE)
    return None


def _name(url: str) -> str:
    """Of the archive here, as its address says it.

    Raises:
        UserError: It is no address.
    """
    parse(url)
    return PurePosixPath(urlsplit(url).path).name


def _place(path: PurePosixPath) -> PurePosixPath | None:
    """Where a slice goes; whatever else an archive holds is left out."""
    slice_name = _SLICE.fullmatch(path.as_posix())
    return PurePosixPath(IMAGES, slice_name["series"], path.name) if slice_name else None


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this download."""
    parser.add_argument("--list", type=Path, metavar="FILE", help="NIH's batch_download_zips.py, or an address a line")
    parser.add_argument("--base-url", metavar="URL", help="a mirror that holds Images_png_01.zip ... and DL_info.csv")


def call(options: argparse.Namespace) -> int:
    """Download what a command line asks for; gives the exit code."""
    check_folder(options.out)
    wanted = addresses(options.list, options.base_url)[: options.limit]
    table = f"{options.base_url.rstrip('/')}/{TABLE}" if options.base_url else None
    with room_in(options.out):
        missing = fetch(wanted, options.out, table_url=table)
    say(f"{options.out}: {len(wanted)} archives asked for; next: harmonize deeplesion {options.out} --out CORPUS")
    return finish(options.out, missing)
