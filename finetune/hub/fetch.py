"""Fine-tuned models of the Hub as folders of this machine, read as if they were made to do harm."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile

from finetune.finder.beside import BESIDE_FILES
from finetune.hub.folder import HISTOGRAMS, folds_of_config, is_ours_config
from finetune.model_folder import CONFIG, WEIGHTS, read_bundle
from finetune.predict.ensemble import models_in
from harmonize.errors import UserError
from harmonize.hub import HUB_ERRORS, first_line
from headspark.folder_kind import read_json

MOST_FILES = 10_000
"""Of a repository, that are looked at."""

LARGEST_SMALL, LARGEST_WEIGHTS = 1 << 20, 1 << 34
"""Bytes of a configuration or a histogram, and of weights; more is not fetched."""

_ON_THE_HUB = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*?)(?:@([\w./-]+))?", re.ASCII)
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
    sizes = _sizes(repo, revision)
    config = _download(repo, CONFIG, revision, sizes)
    content = read_json(config)
    if not is_ours_config(content):
        raise UserError(f"{repo}: holds no fine-tuned model of headspark (its {CONFIG} is another's); {_HOW}")
    below = [f"{name}/" for name in folds_of_config(content)]
    for name in (f"{fold}{own}" for fold in below for own in (CONFIG, WEIGHTS)) if below else (WEIGHTS,):
        _download(repo, name, config.parent.name, sizes)
    patterns = [f"{fold}{own}" for fold in below or [""] for own in (HISTOGRAMS, *BESIDE_FILES)]
    for name in sizes or ():
        if any(fnmatchcase(name, one) and name.count("/") == one.count("/") for one in patterns):
            _download(repo, name, config.parent.name, sizes)
    with fetched({config.parent: repo}):
        for folder in models_in(config.parent):
            read_bundle(folder)
    return config.parent


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


def repo_of(name: str) -> tuple[str, str | None] | None:
    """Repository and revision that ``user/name`` or ``user/name@revision`` means; None for a path, or what is there.

    Example:
        >>> repo_of("user/name@v1"), repo_of("user/name"), repo_of("./user/name"), repo_of("name")
        (('user/name', 'v1'), ('user/name', None), None, None)
    """
    found = _ON_THE_HUB.fullmatch(name)
    return None if found is None or os.path.lexists(name) else (found[1], found[2])


def _sizes(repo: str, revision: str | None) -> dict[str, int] | None:
    """Bytes of each file of a repository; None where the Hub cannot be asked, and its cache may know it."""
    try:
        tree = HfApi().list_repo_tree(repo, recursive=True, revision=revision)
        return {one.path: one.size for one in islice(tree, MOST_FILES) if isinstance(one, RepoFile)}
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{repo}: no such folder, and no such repository on the Hub (or one that needs `hf auth login`); {_HOW}"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"{repo}: the repository has no revision {revision}; give another") from error
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
        return Path(hf_hub_download(repo, name, revision=revision))
    except RemoteEntryNotFoundError as error:
        raise UserError(f"{repo}: its {name} is missing; {_HOW}") from error
    except HUB_ERRORS as error:
        raise UserError(f"{repo}: no such folder, and the Hub cannot be asked: {first_line(error)}") from error
