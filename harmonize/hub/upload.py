"""Folders into repositories of the Hub, in one commit with a tag."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants

from harmonize.hub.faults import MODEL, UPLOAD_ERRORS, refused
from harmonize.hub.large import send_large
from harmonize.hub.reach import bounded_silence, check_reached
from harmonize.terminal import careful_log


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """What became of a push.

    Attributes:
        address: Of the commit.
        commit: Its hash.
        tag: That names it; None: none was asked for.
    """

    address: str
    commit: str
    tag: str | None


def push_folder(
    folder: Path,
    repo: str,
    *,
    kind: str = MODEL,
    message: str,
    delete: Sequence[str] = (),
    private: bool = True,
    tag: str | None = None,
) -> Pushed:
    """Push all files of a folder in one commit; the repository is made if need be.

    Given again after an interruption, it sends what has not arrived. What the repository had before is unchanged until
    everything is there.

    Args:
        folder: Whose files.
        repo: ``user/name``.
        kind: Of repository.
        message: Of the commit.
        delete: Patterns of files of the repository that go unless the folder has them.
        private: Make a new repository private; one that is there stays as visible as it is.
        tag: Names the commit afterwards, if it named another one before, too.

    Raises:
        UserError: The Hub refused, or could not be reached.
    """
    check_reached()
    api = HfApi(endpoint=constants.ENDPOINT)
    try:
        with careful_log("huggingface_hub"), bounded_silence():
            api.create_repo(repo, repo_type=kind, private=private, exist_ok=True)
            send_large(sorted(path for path in folder.rglob("*") if path.is_file()), repo, kind=kind)
            done = api.upload_folder(
                repo_id=repo, repo_type=kind, folder_path=folder, delete_patterns=list(delete), commit_message=message
            )
            if tag is not None:
                _tag(api, repo, kind, tag, done.oid)
    except UPLOAD_ERRORS as error:
        raise refused(repo, error) from error
    return Pushed(address=str(done.commit_url), commit=done.oid, tag=tag)


def _tag(api: HfApi, repo: str, kind: str, tag: str, commit: str) -> None:
    """Have a tag name a commit. The Hub moves no tag: one that is there is made anew."""
    known = {one.name: one.target_commit for one in api.list_repo_refs(repo, repo_type=kind).tags}
    if known.get(tag) == commit:
        return
    if tag in known:
        api.delete_tag(repo, tag=tag, repo_type=kind)
    api.create_tag(repo, tag=tag, revision=commit, repo_type=kind)
