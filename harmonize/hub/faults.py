"""What the client of the Hugging Face Hub raises, and the one line of it that a user needs."""

from __future__ import annotations

import errno

from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from harmonize.errors import UserError
from harmonize.files import NO_ROOM
from harmonize.terminal import without_secrets

HUB_ERRORS = (HTTPError, HFValidationError, LocalTokenNotFoundError, FileNotFoundError, OfflineModeIsEnabled)
"""HTTPError is the base of the client's own errors and of its transport's, whichever library that is."""

UPLOAD_ERRORS = (*HUB_ERRORS, RuntimeError)
"""The client wraps a failed upload in a RuntimeError."""

MODEL, DATASET = "model", "dataset"

_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


def first_line(error: Exception) -> str:
    """The first line of a message, without what opens doors; the client's others repeat request ids and advice."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return without_secrets(lines[0]) if lines else type(error).__name__


def address_of(repo: str, kind: str = MODEL) -> str:
    """Where the page of a repository is."""
    return without_secrets(f"{constants.ENDPOINT}/{'datasets/' if kind == DATASET else ''}{repo}")


def not_had(
    repo: str, error: Exception, *, kind: str = MODEL, else_: str = "", how: str = "", token: str | bool | None = None
) -> str:
    """Why a repository, or a file of it, cannot be had, and what to do about it: one line.

    Args:
        repo: ``user/name``, maybe with ``@revision``.
        error: One of `HUB_ERRORS`.
        kind: Of repository.
        else_: What else it could have been and is not, such as "no such folder, and ".
        how: Makes such a repository, for whoever asked for one that is not there.
        token: That was given to the client; None: its own, of HF_TOKEN or of ``hf auth login``.
    """
    ending = f"; {how}" if how else ""
    has_token = bool(token or get_token())
    page = address_of(repo.partition("@")[0], kind)
    if isinstance(error, GatedRepoError):
        if not has_token:
            return f"{repo}: gated: accept its terms at {page}, then {_LOG_IN}"
        return f"{repo}: gated: accept its terms at {page} with the account of your token, or wait until you are let in"
    if isinstance(error, RevisionNotFoundError):
        return f"{repo}: the repository has no such revision; its tags and branches stand at {page}"
    if isinstance(error, RepositoryNotFoundError):
        if not has_token:
            return f"{repo}: {else_}no such repository on the Hub, or a private one: {_LOG_IN}{ending}"
        return f"{repo}: {else_}no such repository on the Hub, or a private one that your token may not read{ending}"
    if isinstance(error, OfflineModeIsEnabled | LocalEntryNotFoundError):
        if constants.HF_HUB_OFFLINE:
            return f"{repo}: {else_}the cache lacks it, and HF_HUB_OFFLINE forbids to ask the Hub; unset it{ending}"
        return f"{repo}: {else_}the cache lacks it, and the Hub cannot be asked; connect, then try again{ending}"
    status = status_of(error)
    if status == 401:
        return f"{repo}: {_token_refused(has_token)}"
    if status == 403:
        return f"{repo}: your token may not read it ({first_line(error)})"
    if status:
        return f"{repo}: the Hub answered {status}; give the command again later"
    if isinstance(error, HTTPError):
        return f"{repo}: the connection to the Hub broke ({type(error).__name__}); give the command again, it goes on"
    return f"{repo}: {first_line(error)}"


def no_cache(what: str, error: OSError) -> UserError | None:
    """What is said where the client's cache cannot be written to; None where an error is about something else.

    Args:
        what: That was asked for.
        error: Of the client, or of our own downloads.
    """
    if isinstance(error, HTTPError) or error.errno not in (*NO_ROOM, errno.EACCES, errno.EPERM):
        return None
    cache = error.filename or constants.HF_HUB_CACHE
    how = "make room" if error.errno in NO_ROOM - {errno.EROFS} else "name a folder that you may write to"
    return UserError(
        f"{what}: the Hub's cache cannot be written to ({cache}: {error.strerror}); {how} (HF_HOME says where it is), "
        "or set HF_HUB_OFFLINE=1 to take what it has"
    )


def refused(repo: str, error: Exception) -> UserError:
    """What is said of an upload that failed."""
    cause = error.__cause__ if isinstance(error, RuntimeError) and isinstance(error.__cause__, HTTPError) else error
    has_token, status = bool(get_token()), status_of(cause)
    if not has_token or isinstance(cause, LocalTokenNotFoundError):
        return UserError(f"{repo}: the Hub wants to know who pushes: {_LOG_IN}, then give the command again")
    if status == 401:
        return UserError(f"{repo}: {_token_refused(has_token)}, then give the command again")
    if status == 403 or isinstance(cause, RepositoryNotFoundError):
        where = without_secrets(f"{constants.ENDPOINT}/settings/tokens")
        return UserError(
            f"{repo}: your token may not write there; make one that may at {where}, log in with `hf auth login`, then "
            "give the command again"
        )
    if isinstance(cause, OfflineModeIsEnabled):
        return UserError(f"{repo}: HF_HUB_OFFLINE forbids to ask the Hub; unset it to push")
    said = f"the Hub answered {status}" if status else first_line(error)
    return UserError(f"{repo}: {said}; give the command again, what has arrived is not sent again")


def status_of(error: BaseException | None) -> int:
    """HTTP status of an answer that was an error; 0 where there was no answer."""
    return int(getattr(error.response, "status_code", 0)) if isinstance(error, HfHubHTTPError) else 0


def _token_refused(has_token: bool) -> str:
    if not has_token:
        return f"the Hub wants a token: {_LOG_IN}"
    return "the Hub does not know your token (mistyped, or expired): log in again with `hf auth login`, or set HF_TOKEN"
