"""A download that is under way: its bytes so far, and beside them of which file on the server they are a part."""

from __future__ import annotations

import http.client
import json
import re
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path

from harmonize.fetch.connection import body_length
from harmonize.files import target_of_temporary, write_json

PARTIAL, SIDE = ".part-", ".json"
PARTIAL_CONTENT = 206
_STRONG = re.compile(r'"[\x21\x23-\x7e\x80-\xff]*"')
_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """Which state of a file on the server.

    Attributes:
        etag: Its strong ETag; a weak one (``W/``) says nothing about bytes.
        modified: Its Last-Modified, if the file was older than a second then and so cannot change within it.
        total: Its bytes.
    """

    etag: str | None = None
    modified: str | None = None
    total: int | None = None

    @property
    def validator(self) -> str | None:
        """For If-Range: the server sends the rest of this very state, or all of another."""
        return self.etag or self.modified


def version_of(answer: http.client.HTTPResponse) -> Version:
    """The state of the file that an answer of 200 or 206 holds.

    Raises:
        Unfit: Its length is none.
    """
    etag = answer.headers.get("ETag", "").strip()
    modified = answer.headers.get("Last-Modified", "").strip()
    length = body_length(answer)
    if answer.status == PARTIAL_CONTENT:
        found = _content_range(answer)
        length = found[2] if found else None
    return Version(
        etag=etag if _STRONG.fullmatch(etag) else None,
        modified=modified if _is_settled(modified, answer.headers.get("Date", "")) else None,
        total=length,
    )


def continues(answer: http.client.HTTPResponse, known: Version, there: int) -> bool:
    """Whether an answer of 206 is the rest of the file of which the first `there` bytes are known.

    Raises:
        Unfit: Its length is none.
    """
    found = _content_range(answer)
    if found is None:
        return False
    first, last, total = found
    length, now = body_length(answer), version_of(answer)
    return (
        first == there
        and last >= first
        and (total is None or last < total)
        and (known.total is None or total is None or total == known.total)
        and (length is None or length == last - first + 1)
        # A server repeats its ETag in every part; of Last-Modified it may think that it is known.
        and (known.etag is None or now.etag == known.etag)
        and (known.etag is not None or known.modified is None or now.modified in (None, known.modified))
    )


class Partial:
    """The bytes and their version; what an interrupted process leaves is nothing, or both as they belong together.

    Attributes:
        path: The bytes so far.
    """

    def __init__(self, target: Path) -> None:
        self.path = target.with_name(f"{PARTIAL}{target.name}")
        self._side = self.path.with_name(f"{self.path.name}{SIDE}")

    def size(self) -> int:
        """Bytes so far."""
        return self.path.stat().st_size if self.path.is_file() else 0

    def version(self) -> Version:
        """What is known of them; nothing where the note is absent or damaged."""
        try:
            note = json.loads(self._side.read_bytes())
        except (FileNotFoundError, ValueError, RecursionError):
            return Version()
        if not isinstance(note, dict):
            return Version()
        etag, modified, total = note.get("etag"), note.get("modified"), note.get("total")
        return Version(
            etag=etag if isinstance(etag, str) and _STRONG.fullmatch(etag) else None,
            modified=modified if isinstance(modified, str) and http_date(modified) else None,
            total=total if isinstance(total, int) and not isinstance(total, bool) and total >= 0 else None,
        )

    def begin(self, version: Version) -> None:
        """Start again, with no bytes of the given version."""
        self.forget()
        self.path.touch()
        write_json(self._side, asdict(version))

    def finish(self, target: Path) -> None:
        """Give the bytes their name."""
        self.path.replace(target)
        self._side.unlink(missing_ok=True)

    def forget(self) -> None:
        """Remove the bytes and the note, and what a killed process left of one."""
        # First the bytes: without a note they would be a part of an unknown file.
        self.path.unlink(missing_ok=True)
        self._side.unlink(missing_ok=True)
        for path in self.path.parent.iterdir():
            if target_of_temporary(path.name) == self._side.name:
                path.unlink(missing_ok=True)


def _content_range(answer: http.client.HTTPResponse) -> tuple[int, int, int | None] | None:
    """First byte, last byte, bytes of the whole file (None if the server does not know)."""
    values = answer.headers.get_all("Content-Range", [])
    found = _RANGE.fullmatch(values[0].strip()) if len(values) == 1 else None
    return (int(found[1]), int(found[2]), None if found[3] == "*" else int(found[3])) if found else None


def _is_settled(modified: str, date: str) -> bool:
    """Whether a file cannot have changed again within the second of its date (RFC 9110, 8.8.2.2)."""
    then = http_date(modified)
    return then is not None and (http_date(date) or datetime.now(UTC)) - then >= timedelta(seconds=1)


def http_date(text: str) -> datetime | None:
    """The date of a header, in UTC; None if it is none."""
    try:
        date = parsedate_to_datetime(text)
        return date.replace(tzinfo=UTC) if date.tzinfo is None else date.astimezone(UTC)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
