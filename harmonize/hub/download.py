"""Files of the Hub: a large one goes on where an earlier download of it broke off, of this command or of another."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled
from huggingface_hub.file_download import HfFileMetadata, http_get, repo_folder_name
from huggingface_hub.utils import WeakFileLock, build_hf_headers

from harmonize.errors import UserError
from harmonize.files import fsync, sha256_of
from harmonize.hub.faults import MODEL, no_cache, status_of
from harmonize.terminal import warn

LARGE = 10 << 20
"""Bytes from which on a file is kept as far as it came; the client begins smaller ones again."""

PARTIAL = ".headspark.incomplete"
"""End of the name that such a file has beside its place in the client's cache."""

_HASH = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
"""What the Hub calls a file by: git's hash, or the SHA-256 of what is large. It becomes a name in the cache."""

_SHA256_LENGTH = 64


def fetch_file(
    repo: str,
    name: str,
    *,
    kind: str = MODEL,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> Path:
    """As `huggingface_hub.hf_hub_download`, whose own downloads begin again with each command.

    Args:
        repo: ``user/name``.
        name: Of the file.
        kind: Of repository.
        revision: Branch, tag or commit.
        cache_dir: Of the client.
        force_download: Whatever the cache has.
        local_files_only: Nothing but what the cache has.
        token: None: the client's own.

    Returns:
        Where it lies in the client's cache.

    Raises:
        UserError: The connection broke, and what has arrived is kept; it is not the file that the Hub announced; or the
            client's cache cannot be written to.
    """
    asked: dict[str, Any] = {"repo_type": kind, "revision": revision}
    options = {**asked, "cache_dir": cache_dir, "force_download": force_download, "token": token}
    with _writing(f"{repo}: {name}"):
        return _fetched(repo, name, asked, options, local_files_only=local_files_only)


@contextmanager
def _writing(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        fault = no_cache(what, error)
        if fault is None:
            raise
        raise fault from error


def _fetched(repo: str, name: str, asked: dict[str, Any], options: dict[str, Any], *, local_files_only: bool) -> Path:
    cache_dir, token, kind, revision = options["cache_dir"], options["token"], asked["repo_type"], asked["revision"]
    cached = try_to_load_from_cache(repo, name, cache_dir=cache_dir, **asked)
    known = isinstance(cached, str) and Path(cached).parent.name == revision  # of a commit, which does not change
    if not (known or options["force_download"] or local_files_only or constants.HF_HUB_OFFLINE):
        url = hf_hub_url(repo, name, **asked)
        try:
            facts = get_hf_file_metadata(url, token=token, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        except (HTTPError, OfflineModeIsEnabled, FileNotFoundError):
            facts = None  # the client asks the same, and knows when its cache will do
        if facts is not None and facts.commit_hash and (facts.size or 0) >= LARGE and _HASH.fullmatch(facts.etag or ""):
            folder = Path(cache_dir or constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type=kind)
            whole = hf_hub_url(repo, name, repo_type=kind, revision=facts.commit_hash)
            _bring(f"{repo}: {name}", whole, folder, facts, headers=build_hf_headers(token=token))
    return Path(hf_hub_download(repo, name, local_files_only=local_files_only, **options))


def _bring(what: str, url: str, folder: Path, facts: HfFileMetadata, *, headers: dict[str, str]) -> None:
    """Have a file in the cache under its hash, where the client finds it."""
    etag, size = str(facts.etag), int(facts.size or 0)
    blob = folder / "blobs" / etag
    partial = blob.with_name(f"{etag}{PARTIAL}")
    lock = folder.parent / ".locks" / folder.name / f"{etag}.lock"
    if blob.exists():
        return  # before anything is made: a cache that others filled may only be read
    for place in (blob.parent, lock.parent):
        place.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):  # the client's own: two commands never write one file
        if blob.exists():  # another command brought it meanwhile
            return
        arrived = partial.stat().st_size if partial.exists() else 0
        if arrived > size:
            partial.unlink()
            arrived = 0
        if arrived:
            warn(f"{what}: goes on at {_mega(arrived)} of {_mega(size)} MB")
        broke: HTTPError | None = None
        while broke is None or partial.stat().st_size > arrived:  # again as long as something comes
            arrived = partial.stat().st_size if partial.exists() else 0
            try:
                with partial.open("ab") as stream:
                    http_get(url, stream, resume_size=arrived, headers=headers, expected_size=size)
                break
            except HTTPError as error:
                if status_of(error):
                    raise
                broke = error
        else:
            raise UserError(
                f"{what}: the connection to the Hub broke ({type(broke).__name__}) at {_mega(arrived)} of "
                f"{_mega(size)} MB; give the command again, it goes on from there"
            ) from broke
        if len(etag) == _SHA256_LENGTH and sha256_of(partial) != etag:
            partial.unlink()
            raise UserError(f"{what}: is not the file that the Hub announced; give the command again, it begins anew")
        fsync(partial)
        partial.replace(blob)


def _mega(count: int) -> str:
    return f"{count / 1e6:.1f}"
