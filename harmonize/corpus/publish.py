"""Publish a corpus as a Hugging Face dataset: the plain folder, which `load_dataset` opens typed and streamed."""

from __future__ import annotations

import glob
from collections.abc import Collection
from pathlib import Path

from huggingface_hub import HfApi

from harmonize.corpus import INFO, LABEL_TABLE, Corpus
from harmonize.corpus.lock import undisturbed
from harmonize.corpus.publishable import FOLDERS, publishable
from harmonize.corpus.target import fault_of_info
from harmonize.corpus.terms import terms_of
from harmonize.errors import UserError
from harmonize.hub import (
    UPLOAD_ERRORS,
    bounded_silence,
    check_repo,
    refuse_foreign_repository,
    refused,
    send_large,
)
from harmonize.hub.faults import DATASET
from harmonize.identity import HASH_LENGTH
from harmonize.salt import is_quickly_guessed, is_unsalted
from harmonize.terminal import careful_log, warn, without_secrets

LOCK = ".lock"
REPLACED = (*(f"{folder}/**" for folder in FOLDERS), LABEL_TABLE)
"""Of these nothing stays on the Hub that the corpus no longer holds: a scan that was withdrawn is gone there too."""


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
        WrongUse: The dataset holds something else than a corpus, and stays as it is.
    """
    check_repo(repo)
    corpus = Corpus.open(path)
    check_terms(corpus, may_share)
    hub = HfApi(endpoint=endpoint)
    address = without_secrets(hub.endpoint)
    # Before everything is hashed.
    refuse_foreign_repository(repo, mark=INFO, is_ours=_is_corpus, what="a corpus", kind=DATASET, endpoint=hub.endpoint)
    with undisturbed(path / LOCK, f"{path}: a run is still writing this corpus; wait for it, then publish"):
        if corpus.scans.empty:
            raise UserError(f"{corpus.path}: holds no scans")
        found = publishable(corpus)
        # The folders as a whole, because the client compares each file with each pattern: what else lies there was
        # refused above, or is named to stay at home.
        top = [name for name in found.files if "/" not in name]
        try:
            with careful_log("huggingface_hub"), bounded_silence():
                hub.create_repo(repo, repo_type=DATASET, private=private, exist_ok=True)
                send_large([path / name for name in found.files], repo, kind=DATASET, endpoint=hub.endpoint)
                hub.upload_folder(
                    repo_id=repo,
                    repo_type=DATASET,
                    folder_path=path,
                    allow_patterns=[*top, *(f"{folder}/**" for folder in FOLDERS)],
                    ignore_patterns=[glob.escape(name) for name in found.at_home],
                    delete_patterns=list(REPLACED),
                    commit_message=f"{len(corpus.scans)} scans, manifest {corpus.manifest_sha256()[:12]}",
                )
        except UPLOAD_ERRORS as error:
            raise refused(repo, error) from error
    return f"{address}/datasets/{repo}"


def check_terms(corpus: Corpus, may_share: Collection[str]) -> None:
    """Refuse a corpus with scans that may not be passed on, or whose hidden ids could be guessed.

    Raises:
        UserError: Names the source, why, where its terms stand, and how to say that one has the right.
    """
    for source in sorted(set(corpus.scans["source"])):
        terms = terms_of(source)
        if not terms.may_share and source not in may_share:
            where = f" ({terms.link})" if terms.link else ""
            raise UserError(
                f"{corpus.path}: holds scans of {source}, and {terms.why_not}{where}; if you have the right to "
                f"share them, say so with --i-may-share {source}"
            )
    salt = corpus.info["settings"]["salt_fingerprint"]
    hidden = corpus.scans["subject"].str.fullmatch(rf"[0-9a-f]{{{HASH_LENGTH}}}")
    if is_unsalted(salt) and hidden.any():
        raise UserError(
            f"{corpus.path}: {int(hidden.sum())} scans have hashed ids without a salt, which whoever guesses an id can "
            "test; harmonize again with a secret --salt (HARMONIZE_SALT, or --salt-file)"
        )
    if is_quickly_guessed(salt) and hidden.any():
        warn(
            f"warning: {corpus.path}: version 0.1.0 made it, whose fingerprint of the salt, in {INFO}, can be tested "
            "a million times a second; if the salt is short or a word, harmonize into a new corpus before you publish"
        )


def _is_corpus(info: object) -> bool:
    return not fault_of_info(info)
