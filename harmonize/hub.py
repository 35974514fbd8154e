"""What the client of the Hugging Face Hub raises, and the one line of it that a user needs."""

from __future__ import annotations

import re

from huggingface_hub.errors import HFValidationError, HTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

from harmonize.errors import UserError, WrongUse
from harmonize.terminal import without_secrets

HUB_ERRORS = (HTTPError, HFValidationError, LocalTokenNotFoundError, FileNotFoundError, OfflineModeIsEnabled)
"""HTTPError is the base of the client's own errors and of its transport's, whichever library that is."""

UPLOAD_ERRORS = (*HUB_ERRORS, RuntimeError)
"""The client wraps a failed upload in a RuntimeError."""


_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def check_repo(repo: str) -> None:
    """Refuse what cannot be the name of a repository, before the Hub is asked for it.

    Raises:
        WrongUse: It is not ``user/name``.
    """
    if not _REPO.fullmatch(repo):
        raise WrongUse(f"--repo {repo}: give USER/NAME, letters, digits and .-_ alone")


def first_line(error: Exception) -> str:
    """The first line of a message, without what opens doors; the client's others repeat request ids and advice."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return without_secrets(lines[0]) if lines else type(error).__name__


def refused(repo: str, error: Exception) -> UserError:
    """What is said of an upload that failed."""
    return UserError(f"{repo}: {first_line(error)}; log in with `hf auth login`, then give the command again")
