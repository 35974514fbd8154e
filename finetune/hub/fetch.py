"""Fine-tuned models of the Hub as folders of this machine, read as if they were made to do harm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import RemoteEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile

from finetune.finder.beside import BESIDE_FILES
from finetune.hub.folder import HISTOGRAMS, folds_of_config, is_ours_config
from finetune.model_folder import CONFIG, WEIGHTS, read_bundle
from finetune.predict.folds import models_in
from harmonize.errors import UserError
from harmonize.hub import HUB_ERRORS, fetch_file, not_had, reached, repo_of
from headspark.folder_kind import read_json
from headspark.hub.encoder_folder import NO_FOLDER

MOST_FILES = 10_000
"""Of a repository, that are looked at."""

LARGEST_SMALL, LARGEST_WEIGHTS = 1 << 20, 1 << 34
"""Bytes of a configuration or a histogram, and of weights; more is not fetched."""

__all__ = ["fetch_model", "fetched", "repo_of"]

_HOW = "`finetune push FT --repo USER/NAME` writes one"


def fetch_model(repo: str, *, revision: str | None = None) -> Path:
    """Fetch a fine-tuned model, or those of a cross-validation, into the cache of the Hub's client.

    Configuration, safetensors and histograms alone are fetched, whatever else the repository holds.

    Args:
        repo: ``user/name``.
        revision: Branch, tag or commit; None takes the newest.

    Returns:
        A folder as `finetune.predict.Predictor` takes it. Without a network it is what was fetched before.

    Raises:
        UserError: There is no such repository, or none with a model that this version can read.

    Example::

        from finetune.hub import fetch_model
        from finetune.predict import Predictor

        predictor = Predictor(fetch_model("user/name", revision="v1"))
    """
    try:
        with reached(repo, CONFIG, revision=revision, else_=NO_FOLDER, listed=True):
            folder = _fetch(repo, revision)
    except HUB_ERRORS as error:
        name = repo if revision is None else f"{repo}@{revision}"
        raise UserError(not_had(name, error, else_=NO_FOLDER, how=_HOW)) from error
    with fetched({folder: repo}):
        for model in models_in(folder):
            read_bundle(model)
    return folder


@contextmanager
def fetched(places: Mapping[Path, str]) -> Iterator[None]:
    """Have errors name repositories, and not the folders of the cache that they were fetched into.

    Args:
        places: The repository of each folder.
    """
    try:
        yield
    except UserError as error:
        said = str(error)
        for folder, repo in places.items():
            said = said.replace(str(folder), repo).replace("train again", "push it again")
        if said == str(error):
            raise
        raise UserError(said, exit_code=error.exit_code) from error


def _fetch(repo: str, revision: str | None) -> Path:
    """Have all files of a model in the client's cache; gives their folder.

    Raises:
        UserError: It holds none, or one with files that are too large.
        HTTPError: As the client raises it; likewise `FileNotFoundError`, `OfflineModeIsEnabled`.
    """
    sizes = _sizes(repo, revision)
    config = _download(repo, CONFIG, revision, sizes)
    content = read_json(config)
    if not is_ours_config(content):
        raise UserError(f"{repo}: holds no fine-tuned model of headspark (its {CONFIG} is another's); {_HOW}")
    commit = config.parent.name
    below = [f"{name}/" for name in folds_of_config(content)]
    for name in (f"{fold}{own}" for fold in below for own in (CONFIG, WEIGHTS)) if below else (WEIGHTS,):
        _download(repo, name, commit, sizes)
    patterns = [f"{fold}{own}" for fold in below or [""] for own in (HISTOGRAMS, *BESIDE_FILES)]
    for name in sizes or ():
        if any(fnmatchcase(name, one) and name.count("/") == one.count("/") for one in patterns):
            _download(repo, name, commit, sizes)
    return config.parent


def _sizes(repo: str, revision: str | None) -> dict[str, int] | None:
    """Bytes of each file of a repository; None where the Hub may not be asked, and its cache may know it."""
    if constants.HF_HUB_OFFLINE:
        return None
    try:
        tree = HfApi().list_repo_tree(repo, recursive=True, revision=revision)
        return {one.path: one.size for one in islice(tree, MOST_FILES) if isinstance(one, RepoFile)}
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise
    except HUB_ERRORS:
        return None


def _download(repo: str, name: str, revision: str | None, sizes: Mapping[str, int] | None) -> Path:
    """A file of a repository, from the cache where that has it.

    Raises:
        UserError: There is none, it is too large, or it cannot be had.
    """
    if sizes is not None and name not in sizes:
        raise UserError(f"{repo}: holds no fine-tuned model of headspark ({name} is missing); {_HOW}")
    most = LARGEST_WEIGHTS if name.endswith(WEIGHTS) else LARGEST_SMALL
    if sizes is not None and sizes[name] > most:
        raise UserError(f"{repo}: its {name} has {sizes[name]} bytes, and {most} at most are fetched; push it again")
    try:
        return fetch_file(repo, name, revision=revision)
    except RemoteEntryNotFoundError as error:
        raise UserError(f"{repo}: its {name} is missing; {_HOW}") from error
