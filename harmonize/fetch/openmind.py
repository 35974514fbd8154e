"""Fetch a part of OpenMind from the Hugging Face Hub: its table, then the chosen images with their masks."""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    get_session,
)
from tqdm import tqdm

from harmonize import terminal
from harmonize.corpus.target import check_folder
from harmonize.errors import UserError, WrongUse
from harmonize.fetch import download
from harmonize.fetch.address import parse
from harmonize.fetch.arguments import add_modality, add_workers, finish
from harmonize.fetch.connection import Unreachable, answered, lasting
from harmonize.files import room_in
from harmonize.progress import Progress
from harmonize.sources.openmind import NEEDED, TABLE, TREE
from harmonize.sources.tables import read_table
from harmonize.terminal import say

REPO = "AnonRes/OpenMind"
"""CC-BY-4.0, about 1 TB; MIC-DKFZ/OpenMind holds the same."""

SCORE = "image_quality_score"
"""1 to 5, lower is better; equal for all scans of one data set, modality and derivation."""

MASK_COLUMNS = ("anon_mask_path", "anat_mask_path")
ATTEMPTS = 4
BACKOFF_S = 2.0
TOO_MANY = 429


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageChoice:
    """Which images.

    Attributes:
        modalities: As the table writes them (``T1w``, ``FLAIR`` ...); empty for all.
        max_score: Worst quality score that is good enough; None takes what has no score too.
        limit: At most so many, the best first.
    """

    modalities: Sequence[str] = ()
    max_score: float | None = None
    limit: int | None = None


def fetch(
    choice: ImageChoice, out: Path, *, repo: str = REPO, endpoint: str | None = None, workers: int = 4
) -> tuple[int, list[str]]:
    """Bring the chosen images with their masks; files that are there already are not fetched again.

    Args:
        choice: Which.
        out: Raw folder for ``harmonize openmind``.
        repo: The dataset on the Hub.
        endpoint: Address of the Hub; None takes ``HF_ENDPOINT`` or huggingface.co.
        workers: Downloads at once.

    Returns:
        How many images are there now, and what could not be had, one line each.

    Raises:
        UserError: No such dataset, no matching row, or the Hub cannot be reached.
    """
    hub = HfApi(endpoint=endpoint)
    parse(hub.endpoint)
    bring = partial(_bring, hub, repo, out)
    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        with terminal.careful_log("huggingface_hub"), _giving_up_at_once():
            if not bring(TABLE):
                raise UserError(f"{repo}: holds no {TABLE}; give the --repo of OpenMind")
            rows = choose(read_table(out / TABLE, NEEDED, (SCORE, *MASK_COLUMNS)).rows, choice)
            if not rows:
                raise UserError(f"{repo}: no image of {TABLE} matches; look at its columns modality and {SCORE}")
            return _bring_all(bring, rows, workers)
    finally:
        if shown:
            enable_progress_bars()


def choose(rows: Sequence[Mapping[str, str]], choice: ImageChoice) -> list[Mapping[str, str]]:
    """The chosen rows of the table, best score first, then by path."""
    wanted = {modality.casefold() for modality in choice.modalities}
    limit = math.inf if choice.max_score is None else choice.max_score
    found = [
        (_score(row), row["image_path"], row)
        for row in rows
        if row["image_path"] and (not wanted or row["modality"].strip().casefold() in wanted)
    ]
    return [row for score, _, row in sorted(found, key=lambda one: one[:2]) if score <= limit][: choice.limit]


def _score(row: Mapping[str, str]) -> float:
    try:
        return float(row[SCORE])
    except ValueError:
        return math.inf


def _bring_all(bring: partial[bool], rows: Sequence[Mapping[str, str]], workers: int) -> tuple[int, list[str]]:
    images = [_in_repo(row["image_path"]) for row in rows]
    # Scans of a session may share a mask.
    masks = dict.fromkeys(_in_repo(row[name]) for row in rows for name in MASK_COLUMNS if row[name])
    missing = []
    names = [*images, *masks]
    with Progress("fetch openmind", total=len(names), unit="file") as progress, ThreadPoolExecutor(workers) as threads:
        try:
            for name, found in zip(names, threads.map(bring, names), strict=True):
                if not found:
                    missing.append(f"{name}: not in the dataset")
                progress.advance(missing=len(missing))
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise
    return len(images) - sum(line.split(":")[0] in set(images) for line in missing), missing


def _in_repo(path: str) -> str:
    """A path of the table as a path of the dataset.

    Raises:
        UserError: It leaves the tree.
    """
    clean = PurePosixPath(path.strip().replace("\\", "/"))
    if clean.is_absolute() or ".." in clean.parts:
        raise UserError(f"{TABLE}: names a path that leaves the tree; this is not the published table")
    return clean.as_posix() if clean.parts[:1] == (TREE,) else f"{TREE}/{clean}"


def _bring(hub: HfApi, repo: str, out: Path, name: str) -> bool:
    """Fetch one file of the dataset; False if there is no such file.

    Raises:
        UserError: No access, or the Hub cannot be reached.
    """
    for attempt in range(ATTEMPTS):
        try:
            hub.hf_hub_download(repo, name, repo_type="dataset", local_dir=out)
            break
        except HFValidationError as error:
            raise WrongUse(f"{repo}: not a dataset's name; --repo takes OWNER/NAME") from error
        except ValueError as error:
            # An address in its answer that is none.
            raise UserError(
                f"{download.place(hub.endpoint)}: gave an answer that cannot be used; see --endpoint"
            ) from error
        except Unreachable as error:
            raise UserError(f"{download.place(hub.endpoint)}: {error}") from error
        except GatedRepoError as error:
            page = f"{download.place(hub.endpoint)}/datasets/{repo}"
            raise UserError(f"{repo}: accept its terms at {page}, then log in with `hf auth login`") from error
        except RepositoryNotFoundError as error:
            raise UserError(
                f"{repo}: no such dataset on {download.place(hub.endpoint)}, or it is private; see --repo"
            ) from error
        except LocalEntryNotFoundError as error:
            # Not an absent entry, although its class says so: the Hub could not be asked, try as the client might.
            raise _away(hub, error) from error
        except EntryNotFoundError:
            return False
        except HTTPError as error:
            # A download that broke off, or a Hub that is busy; the client does not try these again.
            if attempt == ATTEMPTS - 1 or 400 <= _status(error) < TOO_MANY:
                raise _away(hub, error) from error
            seconds, fault = BACKOFF_S * 2**attempt, f"answered {_status(error)}" if _status(error) else "broke off"
            again = f"trying again in {seconds:.0f} s, {attempt + 2} of {ATTEMPTS}"
            tqdm.write(terminal.line(f"{download.place(hub.endpoint)}: {fault}; {again}"), file=sys.stderr)
            time.sleep(seconds)
    return True


@contextmanager
def _giving_up_at_once() -> Iterator[None]:
    """Let the client not ask six times where trying again does not fix anything: a certificate, a wrong name."""
    client = get_session()
    send = client.send

    def send_once(request: Any, **options: Any) -> Any:
        address = parse(str(request.url))
        try:
            answer = send(request, **options)
        except HTTPError as error:
            reason: BaseException | None = error
            while reason is not None:
                fault = lasting(reason, address)
                if fault is not None:
                    raise Unreachable(fault) from error
                reason = reason.__cause__ or reason.__context__
            raise
        answered(address)
        return answer

    client.send = send_once  # type: ignore[method-assign]
    try:
        yield
    finally:
        del client.send


def _away(hub: HfApi, error: Exception) -> UserError:
    status = _status(error)
    said = f"answered {status}" if status else f"cannot be reached ({type(error).__name__})"
    return UserError(f"{download.place(hub.endpoint)}: {said}; give the command again later, it goes on from here")


def _status(error: Exception) -> int:
    """HTTP status of an answer that was an error; 0 where there was no answer."""
    return getattr(getattr(error, "response", None), "status_code", 0)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this download."""
    add_modality(parser, "T1w, T2w, FLAIR ... as its table writes them")
    parser.add_argument(
        "--max-score", type=float, metavar="S", help="worst image_quality_score taken; 1 is best, 5 worst"
    )
    parser.add_argument("--repo", default=REPO, help="of the dataset; default %(default)s")
    parser.add_argument("--endpoint", default=os.environ.get("HF_ENDPOINT"), metavar="URL", help="of the Hub")
    add_workers(parser)


def call(options: argparse.Namespace) -> int:
    """Download what a command line asks for; gives the exit code."""
    check_folder(options.out)
    choice = ImageChoice(modalities=options.modality, max_score=options.max_score, limit=options.limit)
    with room_in(options.out):
        there, missing = fetch(
            choice, options.out, repo=options.repo, endpoint=options.endpoint, workers=options.workers
        )
    say(f"{options.out}: {there} images; next: harmonize openmind {options.out} --out CORPUS")
    return finish(options.out, missing)
