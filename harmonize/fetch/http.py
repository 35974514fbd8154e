"""Plain HTTP for large files: retries with growing pauses, resumed downloads, whole files or none."""

from __future__ import annotations

import base64
import http.client
import json
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes, urlencode, urlsplit

from tqdm import tqdm

from harmonize import __version__, terminal
from harmonize.errors import UserError

ATTEMPTS = 6
BACKOFF_S = 1.0
"""First pause; each is twice the one before."""

MAX_PAUSE_S = 60.0
TIMEOUT_S = 120.0
CHUNK_BYTES = 1 << 20
PARTIAL = ".part-"
TOO_MANY, RANGE_REFUSED, PARTIAL_CONTENT = 429, 416, 206
_PASSING = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)


class Refused(Exception):
    """The server answered, and said no.

    Attributes:
        status: HTTP status.
    """

    def __init__(self, status: int, place: str) -> None:
        super().__init__(f"{place}: the server answered {status}")
        self.status = status


def get_json(url: str, parameters: Mapping[str, str]) -> Any:
    """What a REST service answers; None for an empty answer, which is how NBIA says that there is nothing.

    Raises:
        Refused: 4xx.
        UserError: The server cannot be reached, or gives no JSON.
    """
    body = b""
    for attempt in range(ATTEMPTS):
        with _passing(url, attempt), _open(f"{url}?{urlencode(parameters)}") as answer:
            body = answer.read()
            break
    if not body.strip():
        return None
    try:
        return json.loads(body)
    except ValueError as error:
        raise UserError(f"{place(url)}: gave no JSON; try again later, or another --base-url") from error


def download(url: str, path: Path) -> None:
    """Bring a file; what an interrupted download left is continued where the server can.

    Raises:
        Refused: 4xx.
        UserError: The server cannot be reached, or breaks off again and again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{PARTIAL}{path.name}")
    for attempt in range(ATTEMPTS):
        with _passing(url, attempt):
            _continue(url, partial)
            break
    partial.replace(path)


def _continue(url: str, partial: Path) -> None:
    there = partial.stat().st_size if partial.exists() else 0
    try:
        answer = _open(url, {"Range": f"bytes={there}-"} if there else {})
    except urllib.error.HTTPError as error:
        if error.code != RANGE_REFUSED:
            raise
        error.close()
        # It is longer than the file that is offered now, or the server takes a finished file for a wrong range.
        partial.unlink()
        answer = _open(url, {})
    with answer, partial.open("ab" if answer.status == PARTIAL_CONTENT else "wb") as stream:
        promised = answer.headers.get("Content-Length")
        wanted = int(promised) + stream.tell() if promised is not None else None
        while chunk := answer.read(CHUNK_BYTES):
            stream.write(chunk)
        if wanted is not None and stream.tell() != wanted:
            raise ConnectionError(f"broke off at {stream.tell()} of {wanted} bytes")


def _open(url: str, headers: Mapping[str, str] | None = None) -> http.client.HTTPResponse:
    address, credentials = _without_credentials(url)
    if urlsplit(address).scheme not in ("http", "https"):
        raise UserError(f"{place(url)}: not an http address", exit_code=2)
    agent = {"User-Agent": f"headspark/{__version__}"}
    request = urllib.request.Request(address, headers=agent | dict(headers or {}))
    if credentials is not None:
        # Not told to the server that a redirect leads to.
        request.add_unredirected_header("Authorization", credentials)
    return urllib.request.urlopen(request, timeout=TIMEOUT_S)


def _without_credentials(url: str) -> tuple[str, str | None]:
    """An address without ``user:password@``, which would be taken for a part of the host, and what says the same."""
    parts = urlsplit(url)
    user_info, found, host = parts.netloc.rpartition("@")
    if not found:
        return url, None
    packed = base64.b64encode(unquote_to_bytes(user_info)).decode("ascii")
    return parts._replace(netloc=host).geturl(), f"Basic {packed}"


@contextmanager
def _passing(url: str, attempt: int) -> Iterator[None]:
    """Wait out a fault that may pass; turn one that does not into `Refused` or `UserError`."""
    try:
        yield
    except urllib.error.HTTPError as error:
        with error:
            if error.code < 500 and error.code != TOO_MANY:
                raise Refused(error.code, place(url)) from error
            _pause(url, attempt, f"the server answered {error.code}", error.headers.get("Retry-After"), error)
    except _PASSING as error:
        # What is wrong with an address is told by a quotation of it.
        said = "" if isinstance(error, http.client.InvalidURL) else str(getattr(error, "reason", error))
        _pause(url, attempt, said or type(error).__name__, None, error)


def _pause(url: str, attempt: int, fault: str, asked: str | None, error: Exception) -> None:
    if attempt == ATTEMPTS - 1:
        raise UserError(f"{place(url)}: {fault}, {ATTEMPTS} times; give the command again later") from error
    seconds = BACKOFF_S * 2**attempt
    if asked is not None and asked.isdecimal():
        seconds = max(seconds, float(asked))
    seconds = min(seconds, MAX_PAUSE_S)
    # Not torn by a bar, and no bar torn by it.
    again = f"trying again in {seconds:.0f} s, {attempt + 2} of {ATTEMPTS}"
    tqdm.write(terminal.line(f"{place(url)}: {fault}; {again}"), file=sys.stderr)
    time.sleep(seconds)


def place(url: str) -> str:
    """An address as it may be shown and kept: without what may be secret, ``user:password@`` and a signed query.

    Example:
        >>> place("https://me:secret@a.org/b.zip?X-Amz-Signature=1#c")
        'https://a.org/b.zip'
    """
    scheme, found, rest = url.partition("://")
    host, slash, path = re.split(r"[?#]", rest if found else scheme, maxsplit=1)[0].partition("/")
    return f"{scheme + found if found else ''}{host.rpartition('@')[2]}{slash}{path}"
