"""Fetch a collection of The Cancer Imaging Archive through NBIA's REST service, every file checked by its MD5."""

from __future__ import annotations

import csv
import hashlib
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote, urlencode

from harmonize.errors import UserError
from harmonize.fetch import http
from harmonize.fetch.archives import Damaged, unpack
from harmonize.identity import safe_name
from harmonize.progress import Progress

BASE_URL = "https://services.cancerimagingarchive.net/nbia-api/services/v1"
COLLECTION_PAGE = "https://www.cancerimagingarchive.net/collection/"
HASHES = "md5hashes.csv"
"""What NBIA puts into the archive: the columns Filename and MD5Hash."""

NOT_ALLOWED = (401, 403)
ARCHIVE_ATTEMPTS = 3
WORK = ".fetching"
_UID = re.compile(r"[0-9][0-9.]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
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
) -> Outcome:
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
    series = _list_series(collection, modalities, base_url)[:limit]
    folder = out / safe_name(collection)
    _clear(folder / WORK)
    failed = []
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
    return Outcome(there=len(series) - len(failed), failed=failed, licences=licences)


def _clear(work: Path) -> None:
    """Remove what fetches leave in their own folder: archives of series, whole or in part, and what they held."""
    if work.is_symlink() or not work.is_dir():
        return
    for path in work.iterdir():
        uid = path.name.removeprefix(http.PARTIAL).removesuffix(".zip")
        if _UID.fullmatch(uid) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif _UID.fullmatch(uid) and path.name.endswith(".zip"):
            path.unlink(missing_ok=True)
    with suppress(OSError):
        # Not empty: what else lies there is somebody's.
        work.rmdir()


def _list_series(collection: str, modalities: Sequence[str], base_url: str) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for modality in modalities or ("",):
        query = {"Collection": collection, "format": "json"} | ({"Modality": modality} if modality else {})
        try:
            answer = http.get_json(f"{base_url}/getSeries", query) or []
        except http.Refused as refused:
            raise _no_access(collection, refused) from refused
        for one in cast(list[dict[str, Any]], answer):
            uid = str(one.get("SeriesInstanceUID", ""))
            # It becomes a folder's name.
            if _UID.fullmatch(uid):
                found[uid] = one
    if not found:
        wanted = f" with the modality {' or '.join(modalities)}" if modalities else ""
        raise UserError(
            f"{collection}: NBIA offers no public series of this collection{wanted}; look up its name and whether its "
            f"access is controlled at {_page(collection)}"
        )
    return [found[uid] for uid in sorted(found)]


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
            http.download(f"{base_url}/getImageWithMD5Hash?{urlencode({'SeriesInstanceUID': uid})}", archive)
            _unpack_checked(archive, unpacked, series)
        except http.Refused as refused:
            if refused.status in NOT_ALLOWED:
                raise _no_access(str(series.get("Collection", uid)), refused) from refused
            return f"{uid}: {refused}"
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
    with table.open(newline="", encoding="utf-8-sig", errors="replace") as stream:
        hashes = {
            (row.get("Filename") or "").strip(): (row.get("MD5Hash") or "").strip().lower()
            for row in csv.DictReader(stream)
        }
    images = {name for name in names if name.lower().endswith(".dcm")}
    if not images or not images <= hashes.keys() <= names:
        raise Damaged(f"the archive and its {HASHES} do not name the same files")
    for name, expected in hashes.items():
        with (folder / name).open("rb") as stream:
            if hashlib.file_digest(stream, "md5").hexdigest() != expected:
                raise Damaged(f"{name} does not have its MD5")
    count = str(series.get("ImageCount", ""))
    if count.isdecimal() and int(count) != len(images):
        raise Damaged(f"{len(images)} of {count} files")
    table.unlink()


def _licence(series: Mapping[str, Any]) -> str:
    name, link = str(series.get("LicenseName") or "licence not stated"), str(series.get("LicenseURI") or "")
    return f"{name} {link}".strip()


def _no_access(collection: str, refused: http.Refused) -> UserError:
    return UserError(
        f"{collection}: NBIA does not give it to everybody ({refused.status}); its licence must be asked for, see "
        f"{_page(collection)}. Put what you get into a folder and give that to `harmonize tcia`"
    )


def _page(collection: str) -> str:
    return f"{COLLECTION_PAGE}{quote(collection.lower().replace(' ', '-'))}/"
