"""Whose a repository of the Hub is, before it is written to: one of what is pushed, a new one, or somebody's other."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from harmonize.bounded_files import read_small_json
from harmonize.errors import WrongUse
from harmonize.hub.faults import MODEL, UPLOAD_ERRORS, refused
from harmonize.hub.reach import check_reached

CARD = "README.md"

_ONLY_A_HEADER = re.compile(r"\s*---\n.*?\n---\s*", re.DOTALL)
_SHOWN = 3


def refuse_foreign_repository(
    repo: str,
    *,
    mark: str,
    is_ours: Callable[[object], bool],
    what: str,
    kind: str = MODEL,
    endpoint: str | None = None,
) -> None:
    """Refuse to write over what is on the Hub and is not ours.

    Args:
        repo: ``user/name``; there may be none.
        mark: A JSON file that every repository of what is pushed has.
        is_ours: Whether its content is that of what is pushed.
        what: That is pushed, for the message: "an encoder".
        kind: Of repository.
        endpoint: Address of the Hub; None: the client's.

    Raises:
        UserError: The Hub refused, or could not be reached.
        WrongUse: It holds something else; nothing was written.
    """
    check_reached(endpoint)
    hub = HfApi(endpoint=endpoint)
    try:
        names = set(hub.list_repo_files(repo, repo_type=kind)) - {".gitattributes"}
        if not names:
            return
        if mark in names and is_ours(_json_of(Path(hub.hf_hub_download(repo, mark, repo_type=kind)))):
            return  # what else is there stays: only our own names are written
        if names == {CARD} and _is_only_a_header(Path(hub.hf_hub_download(repo, CARD, repo_type=kind))):
            return  # as the Hub's form leaves a new repository whose licence was chosen
    except RepositoryNotFoundError:
        return
    except UPLOAD_ERRORS as error:
        raise refused(repo, error) from error
    taken = ", ".join(sorted(names)[:_SHOWN]) + (" ..." if len(names) > _SHOWN else "")
    raise WrongUse(
        f"{repo}: the repository holds something else than {what} of headspark ({taken}), which stays as it is; "
        "give --repo a new name"
    )


def _json_of(path: Path) -> Any:
    """The content of a JSON file; None where it is damaged or something else."""
    try:
        return read_small_json(path)
    except (OSError, ValueError):
        return None


def _is_only_a_header(card: Path) -> bool:
    return _ONLY_A_HEADER.fullmatch(card.read_text(encoding="utf-8", errors="replace")) is not None
