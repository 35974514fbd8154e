"""Names of repositories on the Hub, with the revision that is meant."""

from __future__ import annotations

import os
import re

from harmonize.errors import WrongUse

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_AT_REVISION = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*?)(?:@([\w./-]+))?", re.ASCII)


def check_repo(repo: str) -> None:
    """Refuse what cannot be the name of a repository, before the Hub is asked for it.

    Raises:
        WrongUse: It is not ``user/name``.
    """
    if not _REPO.fullmatch(repo):
        raise WrongUse(f"--repo {repo}: give USER/NAME, letters, digits and .-_ alone")


def repo_of(name: str) -> tuple[str, str | None] | None:
    """Repository and revision that ``user/name`` or ``user/name@revision`` means; None for a path, or what is there.

    Example:
        >>> repo_of("user/name@v1"), repo_of("user/name"), repo_of("./user/name"), repo_of("name")
        (('user/name', 'v1'), ('user/name', None), None, None)
    """
    found = _AT_REVISION.fullmatch(name)
    return None if found is None or os.path.lexists(name) else (found[1], found[2])
