"""Fetch a collection of The Cancer Imaging Archive through NBIA's REST service, every file checked by its MD5."""

from __future__ import annotations

import argparse
import csv
import hashlib
import os
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from harmonize.corpus.target import check_folder
from harmonize.errors import UserError
from harmonize.fetch import download
from harmonize.fetch.archives import Damaged, unpack
from harmonize.fetch.arguments import add_modality, add_workers, finish
from harmonize.fetch.partial import PARTIAL, SIDE
from harmonize.files import room_in, target_of_temporary
from harmonize.identity import safe_name
from harmonize.progress import Progress
from harmonize.terminal import say

BASE_URL = "https://services.cancerimagingarchive.net/nbia-api/services/v1"
COLLECTION_PAGE = "https://www.cancerimagingarchive.net/collection/"
HASHES = "md5hashes.csv"
"""What NBIA puts into the archive: the columns Filename and MD5Hash."""

NOT_ALLOWED = (401, 403)
ARCHIVE_ATTEMPTS = 3
WORK = ".fetching"
_UID = re.compile(r"[0-9][0-9.]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesOutcome:
    """What a fetch brought.

    Attributes:
        there: Series in the raw folder now.
        failed: One line for each series that could not be had.
        licences: Series by licence, as NBIA names it with its address.
    """

    there: int
    failed: list[str]
    licences: Counter[str]


def fetch(
    collection: str,
    out: Path,
    *,
    modalities: Sequence[str] = (),
    limit: int | None = None,
    base_url: str = BASE_URL,
    workers: int = 4,
) -> SeriesOutcome:
    """Bring the series of a collection to ``out/<collection>/<SeriesInstanceUID>/``; those that are there stay.

    Args:
        collection: NBIA's name for it.
        out: Raw folder for ``harmonize tcia``.
        modalities: DICOM modalities; empty for all.
        limit: Only the first so many series, by UID.
        base_url: Of the REST service.
        workers: Downloads at once.

    Raises:
        UserError: No such public collection, or the service cannot be reached.
    """
    listed, failed = _list_series(collection, modalities, base_url)
    series = listed[:limit]
    folder = out / safe_name(collection)
    _clear(folder / WORK)
    bad_rows = len(failed)
    with Progress("fetch tcia", total=len(series), unit="series") as progress, ThreadPoolExecutor(workers) as threads:
        try:
            for fault in threads.map(partial(_bring, folder=folder, base_url=base_url), series):
                if fault is not None:
                    failed.append(fault)
                progress.advance(failed=len(failed))
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise
    _clear(folder / WORK)
    licences = Counter(_licence(one) for one in series)
    return SeriesOutcome(there=len(series) - len(failed) + bad_rows, failed=failed, licences=licences)


def _clear(work: Path) -> None:
    """Remove what fetches leave in their own folder: archives of series, whole or in part, and what they held."""
    if work.is_symlink() or not work.is_dir():
        return
    for path in work.iterdir():
        name = target_of_temporary(path.name) or path.name
        uid = name.removeprefix(PARTIAL).removesuffix(SIDE).removesuffix(".zip")
        if not _UID.fullmatch(uid):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif name != uid:
            path.unlink(missing_ok=True)
    with suppress(OSError):
        # Not empty: what else lies there is somebody's.
        work.rmdir()


def _list_series(collection: str, modalities: Sequence[str], base_url: str) -> tuple[list[dict[str, Any]], list[str]]:
    """The series by UID, and a line for what else the list holds."""
    found: dict[str, dict[str, Any]] = {}
    strange = 0
    for modality in modalities or ("",):
        query = {"Collection": collection, "format": "json"} | ({"Modality": modality} if modality else {})
        for one in _rows(collection, base_url, query):
            uid = one.get("SeriesInstanceUID") if isinstance(one, dict) else None
            # It becomes a folder's name.
            if isinstance(uid, str) and _UID.fullmatch(uid):
                found[uid] = one
            else:
                strange += 1
    if strange and not found:
        raise _no_service(base_url, "a list without a SeriesInstanceUID")
    if not found:
        wanted = f" with the modality {' or '.join(modalities)}" if modalities else ""
        raise UserError(
            f"{collection}: NBIA offers no public series of this collection{wanted}; look up its name and whether its "
            f"access is controlled at {_page(collection)}"
        )
    rows = "1 row names" if strange == 1 else f"{strange} rows name"
    lines = [f"{collection}: {rows} no valid SeriesInstanceUID in NBIA's list"] if strange else []
    return [found[uid] for uid in sorted(found)], lines


def _rows(collection: str, base_url: str, query: Mapping[str, str]) -> list[Any]:
    try:
        answer = download.get_json(f"{base_url}/getSeries", query)
    except download.HttpError as error:
        if error.status in NOT_ALLOWED:
            raise _no_access(collection, error) from error
        raise UserError(f"{error}; is --base-url right, and is it the NBIA REST service, v1?") from error
    if answer is None:
        return []
    if not isinstance(answer, list):
        raise _no_service(base_url, "no list of series")
    return answer


def _bring(series: Mapping[str, Any], *, folder: Path, base_url: str) -> str | None:
    """Fetch one series; a line that says what went wrong, or None."""
    uid = str(series["SeriesInstanceUID"])
    target = folder / uid
    if target.is_dir():
        return None
    fault = ""
    for _ in range(ARCHIVE_ATTEMPTS):
        archive, unpacked = folder / WORK / f"{uid}.zip", folder / WORK / uid
        try:
            url = f"{base_url}/getImageWithMD5Hash?{urlencode({'SeriesInstanceUID': uid})}"
            download.download(url, archive, checked=True)
            _unpack_checked(archive, unpacked, series)
        except download.HttpError as error:
            if error.status in NOT_ALLOWED:
                raise _no_access(_text(series, "Collection") or uid, error) from error
            return f"{uid}: {error}"
        except Damaged as damaged:
            fault = str(damaged)
            shutil.rmtree(unpacked, ignore_errors=True)
            archive.unlink(missing_ok=True)
            continue
        archive.unlink()
        unpacked.replace(target)
        return None
    return f"{uid}: {fault}"


def _unpack_checked(archive: Path, folder: Path, series: Mapping[str, Any]) -> None:
    names = {file.relative_to(folder).as_posix() for file in unpack(archive, folder, place=lambda path: path)}
    table = folder / HASHES
    if HASHES not in names:
        raise Damaged(f"the archive holds no {HASHES}")
    try:
        with table.open(newline="", encoding="utf-8-sig", errors="replace") as stream:
            hashes = {
                (row.get("Filename") or "").strip(): (row.get("MD5Hash") or "").strip().lower()
                for row in csv.DictReader(stream)
            }
    except csv.Error as error:
        raise Damaged(f"its {HASHES} is no table") from error
    images = {name for name in names if name.lower().endswith(".dcm")}
    if not images or not images <= hashes.keys() <= names:
        raise Damaged(f"the archive and its {HASHES} do not name the same files")
    for name, expected in hashes.items():
        with (folder / name).open("rb") as stream:
            if hashlib.file_digest(stream, "md5").hexdigest() != expected:
                raise Damaged(f"{name} does not have its MD5")
    count = str(series.get("ImageCount", ""))
    if re.fullmatch(r"[0-9]{1,9}", count) and int(count) != len(images):
        raise Damaged(f"{len(images)} of {count} files")
    table.unlink()


def _licence(series: Mapping[str, Any]) -> str:
    return " ".join([_text(series, "LicenseName") or "licence not stated", _text(series, "LicenseURI")]).strip()


def _text(series: Mapping[str, Any], name: str) -> str:
    """A field of NBIA's on one line; "" where it holds anything but text."""
    value = series.get(name)
    return " ".join(value.split()) if isinstance(value, str) else ""


def _no_service(base_url: str, given: str) -> UserError:
    return UserError(f"{download.place(base_url)}: gave {given}; is --base-url the NBIA REST service, v1?")


def _no_access(collection: str, error: download.HttpError) -> UserError:
    return UserError(
        f"{collection}: NBIA does not give it to everybody ({error.status}); its licence must be asked for, see "
        f"{_page(collection)}. Put what you get into a folder and give that to `harmonize tcia`"
    )


def _page(collection: str) -> str:
    return f"{COLLECTION_PAGE}{quote(collection.lower().replace(' ', '-'))}/"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this download."""
    parser.add_argument("--collection", required=True, metavar="C", help="as TCIA writes it, such as HNSCC")
    add_modality(parser, "CT, MR or PT")
    parser.add_argument(
        "--base-url", default=os.environ.get("HARMONIZE_NBIA_URL"), metavar="URL", help="of the NBIA REST service, v1"
    )
    add_workers(parser)


def call(options: argparse.Namespace) -> int:
    """Download what a command line asks for; gives the exit code."""
    check_folder(options.out)
    with room_in(options.out):
        outcome = fetch(
            options.collection,
            options.out,
            modalities=options.modality,
            limit=options.limit,
            base_url=(options.base_url or BASE_URL).rstrip("/"),
            workers=options.workers,
        )
    for licence, count in sorted(outcome.licences.items()):
        say(f"licence of {count} series: {licence}")
    say(f"{options.out}: {outcome.there} series; next: harmonize tcia {options.out} --out CORPUS")
    return finish(options.out, outcome.failed)
