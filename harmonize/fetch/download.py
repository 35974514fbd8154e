"""Plain HTTP for large files: retries with growing pauses, resumed downloads, whole files or none."""

from __future__ import annotations

import http.client
import json
import sys
import time
import urllib.error
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from tqdm import tqdm

from harmonize import terminal
from harmonize.errors import UserError
from harmonize.fetch.address import Address, parse, place
from harmonize.fetch.connection import Unfit, Unreachable, ask, body_length, chunks, is_chunked
from harmonize.fetch.partial import PARTIAL_CONTENT, Partial, Version, continues, http_date, version_of

ATTEMPTS = 6
BACKOFF_S = 1.0
"""First pause; each is twice the one before."""

MAX_PAUSE_S = 60.0
MAX_JSON_BYTES = 1 << 28
"""NBIA's list of its largest collection has about 140 MB."""

DONE = (200, 203)
TOO_MANY, RANGE_REFUSED = 429, 416
_PASSING = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)


class HttpError(Exception):
    """The server answered, and said no, or what cannot be used.

    Attributes:
        status: HTTP status.
    """

    def __init__(self, status: int, place: str, why: str = "") -> None:
        super().__init__(f"{place}: the server answered {status} {why}".rstrip())
        self.status = status


def get_json(url: str, parameters: Mapping[str, str]) -> Any:
    """What a REST service answers; None for an empty answer, which is how NBIA says that there is nothing.

    Raises:
        HttpError: 4xx, or an answer that cannot be used.
        UserError: The server cannot be reached, or gives no JSON.
    """
    address = parse(f"{url}?{urlencode(parameters)}")
    for attempt in range(ATTEMPTS):
        with _passing(url, attempt):
            return _json(url, address)
    raise AssertionError("the last attempt raises")


def download(url: str, path: Path, *, checked: bool = False) -> None:
    """Bring a file; what an interrupted download left is continued where the server can.

    It is continued only as the same state of the file: the server's ETag (a strong one) or Last-Modified is kept
    beside the part and sent as If-Range, and the answer must agree with it in its range, its length and its ETag. Where
    anything disagrees, the file is fetched from its start. A server that names no state is continued only if the file
    is `checked`.

    Where neither a length nor chunks say where the body ends, a broken connection looks like the end: such an answer
    is taken only if the file is `checked`.

    Args:
        url: Its address.
        path: Where it goes.
        checked: Whether the caller tells a whole file from a cut or mixed one by what it holds (checksums).

    Raises:
        HttpError: 4xx, or an answer that cannot be used.
        UserError: The server cannot be reached, or breaks off again and again.
    """
    address = parse(url)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Partial(path)
    for attempt in range(ATTEMPTS):
        with _passing(url, attempt):
            _continue(address, partial, checked)
            break
    partial.finish(path)


def _json(url: str, address: Address) -> Any:
    with ask(address, {}) as answer:
        promised, body = body_length(answer), bytearray()
        marked = promised is not None or is_chunked(answer)
        for chunk in chunks(answer):
            body += chunk
            if len(body) > MAX_JSON_BYTES:
                raise Unfit(answer.status, f"with more than {MAX_JSON_BYTES >> 20} MB, which is no list of series")
    if promised is not None and len(body) != promised:
        raise ConnectionError(f"broke off at {len(body)} of {promised} bytes")
    if not body.strip():
        if not marked:
            raise ConnectionError("broke off before the first byte")
        return None
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        if not marked:
            raise ConnectionError("broke off, or gave no JSON") from error
        raise UserError(f"{place(url)}: gave no JSON; try again later, or another --base-url") from error


def _continue(address: Address, partial: Partial, checked: bool) -> None:
    known, there = partial.version(), partial.size()
    if there and there == known.total:
        return
    if there > (there if known.total is None else known.total) or not (checked or known.validator):
        there = 0
    answer, there = _ask_from(address, there, known)
    with answer:
        if answer.status not in ((PARTIAL_CONTENT,) if there else ()) + DONE:
            raise Unfit(answer.status, "instead of the file")
        total = version_of(answer).total
        if total is None and there:
            total = known.total
        marked = total is not None or (is_chunked(answer) and not there)
        if not marked and not checked:
            raise Unfit(answer.status, "without a length, so a cut file could not be told from a whole one")
        if not checked and answer.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
            raise Unfit(answer.status, "with a packed file, which was not asked for (Content-Encoding)")
        if not there:
            partial.begin(version_of(answer))
        with partial.path.open("ab") as stream:
            for chunk in chunks(answer):
                stream.write(chunk)
            there = stream.tell()
    if total is not None and there != total:
        if there > total:
            partial.forget()
        raise ConnectionError(f"broke off at {there} of {total} bytes")


def _ask_from(address: Address, there: int, known: Version) -> tuple[http.client.HTTPResponse, int]:
    """Ask for the rest of a file, and for all of it where the server does not give the rest of this very file.

    Returns:
        The answer, and at which byte of the file it begins.
    """
    if not there:
        return ask(address, {}), 0
    headers = {"Range": f"bytes={there}-"} | ({"If-Range": known.validator} if known.validator else {})
    try:
        answer = ask(address, headers)
    except urllib.error.HTTPError as error:
        if error.code != RANGE_REFUSED:
            raise
        # It is longer than the file that is offered now, or the server takes a finished file for a wrong range.
        error.close()
        return ask(address, {}), 0
    if answer.status != PARTIAL_CONTENT:
        return answer, 0
    if continues(answer, known, there):
        return answer, there
    answer.close()
    return ask(address, {}), 0


@contextmanager
def _passing(url: str, attempt: int) -> Iterator[None]:
    """Wait out a fault that may pass; turn one that does not into `HttpError` or `UserError`."""
    try:
        yield
    except urllib.error.HTTPError as error:
        with error:
            if error.code < 500 and error.code != TOO_MANY:
                raise HttpError(error.code, place(url)) from error
            _pause(url, attempt, f"the server answered {error.code}", error.headers.get("Retry-After"), error)
    except Unfit as error:
        raise HttpError(error.status, place(url), error.why) from error
    except Unreachable as error:
        raise UserError(f"{place(url)}: {error}") from error
    except _PASSING as error:
        _pause(url, attempt, _said(error), None, error)


def _said(error: Exception) -> str:
    """The fault in words; those of `http.client` may quote what the server sent, and are left out."""
    if isinstance(error, http.client.RemoteDisconnected):
        return "closed the connection without an answer"
    if isinstance(error, http.client.HTTPException):
        return f"gave no proper answer ({type(error).__name__})"
    reason = getattr(error, "reason", error)
    return str(getattr(reason, "strerror", None) or reason) or type(error).__name__


def _pause(url: str, attempt: int, fault: str, asked: str | None, error: Exception) -> None:
    if attempt == ATTEMPTS - 1:
        raise UserError(f"{place(url)}: {fault}, {ATTEMPTS} times; give the command again later") from error
    seconds = min(max(BACKOFF_S * 2**attempt, _retry_after(asked)), MAX_PAUSE_S)
    # Not torn by a bar, and no bar torn by it.
    again = f"trying again in {seconds:.0f} s, {attempt + 2} of {ATTEMPTS}"
    tqdm.write(terminal.line(f"{place(url)}: {fault}; {again}"), file=sys.stderr)
    time.sleep(seconds)


def _retry_after(value: str | None) -> float:
    """Seconds that a Retry-After asks for, as a number or as a date; 0 where it is neither or past."""
    if value is None:
        return 0.0
    if value.strip().isdecimal():
        return float(value)
    date = http_date(value)
    return max((date - datetime.now(UTC)).total_seconds(), 0.0) if date else 0.0
