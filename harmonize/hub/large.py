"""Large files into the Hub's store, part by part: what has arrived is known to the next command, and not sent again.

Where the client has Xet, that does it; here is the store's older way, of whose interruptions the client knows nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.lfs import LFS_HEADERS, UploadInfo, post_lfs_batch_info
from huggingface_hub.utils import hf_raise_for_status, http_backoff

from harmonize.bounded_files import fits, read_small_json
from harmonize.files import atomic_path
from harmonize.hub.faults import status_of
from harmonize.progress import Progress
from harmonize.terminal import warn

LARGE = 10 << 20
"""Bytes from which on the parts of a file are remembered; the client sends smaller ones as a whole."""

UPLOADS = "headspark/uploads"
"""Below HF_HOME: what has arrived of files whose upload broke off."""

_EXPIRED = {400, 403, 404, 410}
"""What a store answers to addresses of parts that are no longer valid."""

_RECORD = {"complete": str, "part_bytes": int, "addresses": [str], "arrived": [(str, type(None))]}


def has_xet() -> bool:
    """Whether the client uploads through Xet, which never sends twice what has arrived."""
    return not constants.HF_HUB_DISABLE_XET and importlib.util.find_spec("hf_xet") is not None


def send_large(paths: Sequence[Path], repo: str, *, kind: str, endpoint: str | None = None) -> None:
    """Bring large files into the store, before the client commits them: it then finds that they are there.

    Args:
        paths: Files; small ones are left to the client.
        repo: ``user/name``, which is there.
        kind: Of repository.
        endpoint: Address of the Hub; None: the client's.

    Raises:
        HTTPError: The connection broke, or the Hub refused; given again, it sends what is missing.
    """
    large = [] if has_xet() else [path for path in paths if path.stat().st_size >= LARGE]
    for path in large:
        facts = UploadInfo.from_path(str(path))
        objects, _, _ = post_lfs_batch_info([facts], token=None, repo_type=kind, repo_id=repo, endpoint=endpoint)
        for one in objects:
            upload = one.get("actions", {}).get("upload")
            offered = None if upload is None else _offered(upload, facts.size)
            if offered is not None:
                place = _place(endpoint or constants.ENDPOINT, repo, kind, facts.sha256.hex())
                _send(path, facts, place, offered)


def _offered(upload: Mapping[str, Any], size: int) -> dict[str, Any] | None:
    """Where the parts of a file go; None where the store takes it as a whole, and the client sends it."""
    header = upload.get("header") or {}
    numbers = sorted((int(name), address) for name, address in header.items() if name.isdigit())
    part_bytes = int(header.get("chunk_size", 0))
    if part_bytes < 1 or len(numbers) != ceil(size / part_bytes):
        return None
    addresses = [address for _, address in numbers]
    return {
        "complete": upload["href"], "part_bytes": part_bytes, "addresses": addresses,
        "arrived": [None] * len(addresses),
    }  # fmt: skip


def _place(endpoint: str, repo: str, kind: str, oid: str) -> Path:
    """The record of a file on its way to a repository."""
    name = hashlib.sha256(f"{endpoint}/{kind}/{repo}/{oid}".encode()).hexdigest()[:32]
    return Path(constants.HF_HOME) / UPLOADS / f"{name}.json"


def _send(path: Path, facts: UploadInfo, place: Path, offered: dict[str, Any]) -> None:
    record = _known(place, facts.size)
    if record is not None:
        arrived = sum(part is not None for part in record["arrived"])
        warn(f"{path.name}: goes on, {arrived} of {len(record['arrived'])} parts have arrived")
        try:
            _send_parts(path, facts, place, record)
            return
        except HfHubHTTPError as error:
            if status_of(error) not in _EXPIRED:
                raise
            warn(f"{path.name}: begins anew, the store no longer knows of its parts")
    _send_parts(path, facts, place, offered)


def _send_parts(path: Path, facts: UploadInfo, place: Path, record: dict[str, Any]) -> None:
    arrived, part_bytes = record["arrived"], record["part_bytes"]
    missing = [number for number, known in enumerate(arrived) if known is None]
    with (
        path.open("rb") as stream,
        Progress(path.name, total=len(arrived), unit="part", done=len(arrived) - len(missing)) as progress,
    ):
        for number in missing:
            stream.seek(number * part_bytes)
            answer = http_backoff("PUT", record["addresses"][number], content=stream.read(part_bytes))
            hf_raise_for_status(answer)
            arrived[number] = answer.headers["etag"]
            _write(place, record)
            progress.advance()
    parts = [{"partNumber": number, "etag": etag} for number, etag in enumerate(arrived, start=1)]
    told = {"oid": facts.sha256.hex(), "parts": parts}
    hf_raise_for_status(http_backoff("POST", record["complete"], json=told, headers=LFS_HEADERS))
    with contextlib.suppress(OSError):
        place.unlink(missing_ok=True)


def _known(place: Path, size: int) -> dict[str, Any] | None:
    """What an earlier command left; None where there is nothing, or nothing that can be gone on with."""
    found: Any = None
    with contextlib.suppress(OSError, ValueError):
        found = read_small_json(place)
    if not fits(found, _RECORD) or found["part_bytes"] < 1:
        return None
    count = ceil(size / found["part_bytes"])
    return found if len(found["addresses"]) == len(found["arrived"]) == count else None


def _write(place: Path, record: Mapping[str, Any]) -> None:
    """Keep a record; whoever reads its addresses could send other parts, so that is nobody else.

    Where that cannot be done, on a home that is full or may only be read, the upload goes on all the same.
    """
    with contextlib.suppress(OSError):
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with atomic_path(place) as temporary:
            temporary.touch(mode=0o600)
            temporary.write_text(json.dumps(record), encoding="utf-8")
