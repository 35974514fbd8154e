"""Names of repositories on the Hub, with the revision that is meant."""

from __future__ import annotations

import os
import re

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from harmonize.errors import WrongUse

MAIN = "main"
"""The branch that is taken where no revision is named."""

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_TAG = re.compile(r"(?![-./])(?!.*(?:\.\.|//|/\.))[\w./-]{1,200}(?<![./])(?<!\.lock)", re.ASCII)
_AT_REVISION = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*?)(?:@([\w./-]+))?", re.ASCII)


def check_repo(repo: str) -> None:
    """Refuse what cannot be the name of a repository, before the Hub is asked for it.

    Raises:
        WrongUse: It is not ``user/name``.
    """
    if not _REPO.fullmatch(repo):
        raise WrongUse(f"--repo {repo}: give USER/NAME, letters, digits and .-_ alone")
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise WrongUse(
            f"--repo {repo}: the Hub takes no such name: at most 96 letters, without -- and .., not ending in - or . "
            "or .git"
        ) from error


def check_tag(tag: str | None) -> None:
    """Refuse what the Hub would not take for a tag, before anything is pushed: the push would stand without it.

    Raises:
        WrongUse: It is none, or nobody could ask for it as ``user/name@tag``.
    """
    if tag is not None and (tag == MAIN or not _TAG.fullmatch(tag)):
        raise WrongUse(f"--tag {tag}: no name of a tag; take letters, digits and ._-/, such as v1, and not {MAIN}")


def repo_of(name: str) -> tuple[str, str | None] | None:
    """Repository and revision that ``user/name`` or ``user/name@revision`` means; None for a path, or what is there.

    Example:
        >>> repo_of("user/name@v1"), repo_of("user/name"), repo_of("./user/name"), repo_of("name")
        (('user/name', 'v1'), ('user/name', None), None, None)
    """
    found = _AT_REVISION.fullmatch(name)
    return None if found is None or os.path.lexists(name) else (found[1], found[2])
