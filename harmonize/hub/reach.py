"""Whether the Hub answers, found out before the client asks it: that tries for minutes where there is no network."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlparse

from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.file_download import REGEX_COMMIT_HASH
from huggingface_hub.utils import get_session

from harmonize.errors import UserError
from harmonize.hub.faults import MODEL
from harmonize.terminal import warn, without_secrets

QUICK_S, PATIENT_S = 0.7, 8.0
"""Seconds in which the Hub must answer: where the cache has what is wanted, and where it has not."""

REMEMBERED_S = 60.0
"""For so long a Hub that was away is taken to be away still: a command may want several files of it."""

SILENCE_S = 300.0
"""Seconds without a byte after which a connection counts as broken; the client itself would wait for ever."""

_away: dict[str, tuple[float, float, str]] = {}
"""By address: until when, how long it was given to answer, and why it is away."""


@contextmanager
def reached(
    repo: str,
    needed: str,
    *,
    kind: str = MODEL,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    else_: str = "",
    listed: bool = False,
) -> Iterator[None]:
    """Ask the Hub for a repository; where it does not answer, have the client take its cache at once.

    Args:
        repo: ``user/name``.
        needed: The file without which the cache has nothing of it.
        kind: Of repository.
        revision: Branch, tag or commit.
        cache_dir: Of the client.
        else_: What else it could have been and is not, such as "no such folder, and ".
        listed: Whether the files of the repository will be listed: the client asks for that whatever the cache has.

    Raises:
        UserError: The Hub does not answer, and the cache does not have it.

    Example::

        with reached("user/name", "config.json"):
            path = fetch_file("user/name", "model.safetensors")
    """
    if constants.HF_HUB_OFFLINE:
        yield
        return
    is_cached = in_cache(repo, needed, kind=kind, revision=revision, cache_dir=cache_dir)
    is_commit = REGEX_COMMIT_HASH.fullmatch(revision or "") is not None
    if is_cached and is_commit and not listed:
        yield  # a commit does not change, and the client asks nobody
        return
    why = why_away(QUICK_S if is_cached else PATIENT_S)
    if why is None:
        yield
        return
    if not is_cached:
        raise UserError(f"{repo}: {else_}the cache lacks it, and {hub_name()} {why}; connect, then try again")
    warn(f"warning: {hub_name()} {why}; {repo} is taken from the cache{'' if is_commit else ', which may be older'}")
    with _offline():
        yield


def check_reached(endpoint: str | None = None) -> None:
    """Find out that the Hub is away before anything is made for it.

    Args:
        endpoint: Its address; None: the client's.

    Raises:
        UserError: It does not answer.
    """
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{hub_name(endpoint)}: HF_HUB_OFFLINE forbids to ask it; unset it to push")
    why = why_away(PATIENT_S, endpoint)
    if why is not None:
        raise UserError(f"{hub_name(endpoint)}: {why}; nothing was sent, give the command again later")


def in_cache(
    repo: str, name: str, *, kind: str = MODEL, revision: str | None = None, cache_dir: str | Path | None = None
) -> bool:
    """Whether the client's cache has a file of a repository."""
    found = try_to_load_from_cache(repo, name, cache_dir=cache_dir, revision=revision, repo_type=kind)
    return isinstance(found, str)


def why_away(within_s: float, endpoint: str | None = None) -> str | None:
    """Why the Hub gives no answer, as the end of a sentence; None where it gives one.

    Asked through the client's own session, so proxies and certificates are those of the client. In a thread, because
    nothing bounds how long the system looks a name up.

    Args:
        within_s: Seconds that an answer may take.
        endpoint: The Hub's address; None: the client's.
    """
    address = endpoint or constants.ENDPOINT
    known = _away.get(address)
    if known is not None and time.monotonic() < known[0] and within_s <= known[1]:
        return known[2]
    found = _asked(address, within_s)
    if found is None:
        _away.pop(address, None)
    else:
        _away[address] = (time.monotonic() + REMEMBERED_S, within_s, found)
    return found


def _asked(address: str, within_s: float) -> str | None:
    said: list[str | None] = []

    def ask() -> None:
        try:
            status = get_session().head(address, timeout=within_s, follow_redirects=False).status_code
        except Exception as error:  # whatever the session raises: it was not an answer
            said.append(f"cannot be reached ({without_secrets(str(error)) or type(error).__name__})")
        else:
            said.append(f"answers {status}" if status >= 500 else None)

    asking = threading.Thread(target=ask, daemon=True, name="ask-hub")
    asking.start()
    asking.join(within_s)
    return said[0] if said else f"gives no answer within {within_s:g} s"


@contextmanager
def bounded_silence() -> Iterator[None]:
    """Have the client give up a connection on which nothing has moved for `SILENCE_S`: a job would hang to its end.

    It holds for the session that there is; the one that the client makes after a connection failed waits as it always
    does.
    """
    session = get_session()
    before, session.timeout = session.timeout, SILENCE_S
    try:
        yield
    finally:
        session.timeout = before


def hub_name(endpoint: str | None = None) -> str:
    """The Hub's address for a message."""
    address = without_secrets(endpoint or constants.ENDPOINT)
    return address if urlparse(address).netloc else "the Hub"


@contextmanager
def _offline() -> Iterator[None]:
    """The client as it is with HF_HUB_OFFLINE."""
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
