"""Publish a corpus as a Hugging Face dataset: the plain folder, which `load_dataset` opens typed and streamed."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, HTTPError, LocalTokenNotFoundError

from harmonize.corpus import CARD, FILE_COLUMNS, IMAGES, INFO, LABEL_TABLE, MASKS, NYUL, REJECTED, SCANS, Corpus
from harmonize.errors import UserError
from harmonize.files import TEMPORARY
from harmonize.identity import HASH_LENGTH
from harmonize.licences import terms_of
from harmonize.lock import exclusive
from harmonize.settings import Settings

LOCK = ".lock"
PUBLISHED = (CARD, INFO, SCANS, REJECTED, LABEL_TABLE, f"{IMAGES}/**", f"{MASKS}/**", f"{NYUL}/**")
"""The journal, the locks, the report and what a killed run left stay at home."""

REPLACED = (f"{IMAGES}/**", f"{MASKS}/**", f"{NYUL}/**")
"""Of these nothing stays on the Hub that the corpus no longer holds: a scan that was withdrawn is gone there too."""

_FAULTS = (HTTPError, HFValidationError, LocalTokenNotFoundError, RuntimeError, FileNotFoundError)
"""HTTPError is the base of the client's own errors and of its transport's; an upload that failed is a RuntimeError."""


_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def publish(
    path: Path, repo: str, *, may_share: Collection[str] = (), private: bool = True, endpoint: str | None = None
) -> str:
    """Push a corpus to the Hub; again, it uploads only what changed.

    Args:
        path: The corpus.
        repo: ``user/name``; made if need be.
        may_share: Sources whose scans the user has the right to pass on, though not everybody has.
        private: Make a new repository private.
        endpoint: Address of the Hub; None takes ``HF_ENDPOINT`` or huggingface.co.

    Returns:
        The dataset's address.

    Raises:
        UserError: A source's terms forbid it, the corpus is not whole, or the Hub refuses.
    """
    if not _REPO.fullmatch(repo):
        raise UserError(f"--repo {repo}: give USER/NAME, letters, digits and .-_ alone", exit_code=2)
    corpus = Corpus.open(path)
    check_terms(corpus, may_share)
    with exclusive(path / LOCK, f"{path}: a run is still writing this corpus; wait for it, then publish"):
        _check_whole(corpus)
        hub = HfApi(endpoint=endpoint)
        try:
            hub.create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
            hub.upload_folder(
                repo_id=repo,
                repo_type="dataset",
                folder_path=path,
                allow_patterns=list(PUBLISHED),
                ignore_patterns=[f"*{TEMPORARY}*"],
                delete_patterns=list(REPLACED),
                commit_message=f"{len(corpus.scans)} scans, manifest {corpus.manifest_sha256()[:12]}",
            )
        except _FAULTS as error:
            if isinstance(error, HTTPError) and getattr(error, "response", None) is None:
                raise UserError(
                    f"{hub.endpoint}: cannot be reached ({type(error).__name__}); try again later"
                ) from error
            first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise UserError(f"{repo}: {first}; log in with `hf auth login`, then give the command again") from error
    return f"{hub.endpoint}/datasets/{repo}"


def check_terms(corpus: Corpus, may_share: Collection[str]) -> None:
    """Refuse a corpus with scans that may not be passed on, or whose hidden ids could be guessed.

    Raises:
        UserError: Names the source, why, where its terms stand, and how to say that one has the right.
    """
    for source in sorted(set(corpus.scans["source"])):
        terms = terms_of(source)
        if not terms.may_share and source not in may_share:
            raise UserError(
                f"{corpus.path}: holds scans of {source}, and {terms.why_not} ({terms.link}); if you have the right to "
                f"share them, say so with --i-may-share {source}"
            )
    unsalted = corpus.info["settings"]["salt_fingerprint"] == Settings().shared()["salt_fingerprint"]
    hidden = corpus.scans["subject"].str.fullmatch(rf"[0-9a-f]{{{HASH_LENGTH}}}")
    if unsalted and hidden.any():
        raise UserError(
            f"{corpus.path}: {int(hidden.sum())} scans have hashed ids without a salt, which whoever guesses an id can "
            "test; harmonize again with --salt SECRET"
        )


def _check_whole(corpus: Corpus) -> None:
    """A row without its file passes silently through `load_dataset`, so it is refused here."""
    if corpus.scans.empty:
        raise UserError(f"{corpus.path}: holds no scans")
    for column in FILE_COLUMNS:
        for name in corpus.scans[column].dropna():
            if not (corpus.path / name).is_file():
                raise UserError(f"{corpus.path}: {name} is missing; run `harmonize verify {corpus.path}`")
