"""The folder of a run: what it is (recipe.yaml), how it stands (run.json) and what it measured (metrics.jsonl)."""

from __future__ import annotations

import fcntl
import json
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from harmonize.corpus import Corpus
from harmonize.errors import UserError
from harmonize.files import write_json, write_text
from harmonize.provenance import git_revision, library_versions
from headspark.config import WRONG_USE, read_recipe, to_plain, to_yaml
from headspark.recipe import Recipe

RECIPE, STATE, METRICS, LOCK = "recipe.yaml", "run.json", "metrics.jsonl", ".lock"
RUNNING, INTERRUPTED, FINISHED = "running", "interrupted", "finished"
FREE_ON_RESUME = (
    "data.workers", "data.worker_kind", "data.cache", "data.cache_dir",
    "train.batch", "train.accumulate", "train.threads", "train.log_every", "train.validate_every",
    "train.picture_every", "train.probe_every", "train.probe_labels", "train.checkpoint_every", "train.keep",
    "train.trackers", "train.profile", "train.non_finite_patience",
)  # fmt: skip
"""Keys that change what is written down or how fast, and nothing that is computed. (Batch and accumulation may change
as long as their product does not; that is checked against the checkpoint.)"""


@dataclass(slots=True)
class Run:
    """A run's folder, held by the one process that writes to it.

    Attributes:
        folder: Where it lies.
        state: The content of run.json.
    """

    folder: Path
    state: dict[str, Any]
    _lock: TextIO

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.folder / "checkpoints"

    def log(self, **facts: object) -> None:
        """Append a line to metrics.jsonl."""
        with (self.folder / METRICS).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(facts) + "\n")

    def forget_after(self, step: int) -> None:
        """Drop the lines of metrics.jsonl that a killed run wrote after its last checkpoint."""
        lines = [json.dumps(line) for line in read_metrics(self.folder) if line["step"] <= step]
        write_text(self.folder / METRICS, "".join(f"{line}\n" for line in lines))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.close()

    def note(self, **facts: object) -> None:
        """Write facts to run.json: how the run stands, what it runs on."""
        self.state |= facts
        write_json(self.folder / STATE, self.state)


def open_run(folder: Path, recipe: Recipe, corpus: Corpus) -> Run:
    """Start a run in a new folder, or take up an unfinished one.

    Raises:
        UserError: With exit code 2: the folder holds a finished run, one of another recipe or corpus, one that is
            running now, or no run at all.
    """
    there = read_state(folder)
    if there is None and folder.is_dir() and any(path.name not in (LOCK, RECIPE) for path in folder.iterdir()):
        raise UserError(f"{folder}: not empty and no run; give --out a new folder", exit_code=WRONG_USE)
    if there is not None and there["status"] == FINISHED:
        raise UserError(f"{folder}: this run is finished; give --out a new folder", exit_code=WRONG_USE)
    manifest = corpus.manifest_sha256()
    if there is not None:
        _check_same(folder, recipe, there, manifest)
    folder.mkdir(parents=True, exist_ok=True)
    lock = _hold(folder / LOCK)
    write_text(folder / RECIPE, to_yaml(recipe))
    state = (there or {}) | {
        "status": RUNNING,
        "seed": recipe.train.seed,
        "revision": git_revision(),
        "libraries": library_versions(),
        "corpus": {"manifest_sha256": manifest, **summarise(corpus)},
    }
    write_json(folder / STATE, state)
    return Run(folder, state, lock)


def read_state(folder: Path) -> dict[str, Any] | None:
    """The content of run.json; None where there is none."""
    path = folder / STATE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a line that a killed process cut short is left out."""
    path = folder / METRICS
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines


def summarise(corpus: Corpus) -> dict[str, Any]:
    """What a model card says about a corpus: scans and subjects by source and modality, spacing, normalisation."""
    scans = corpus.scans
    groups = scans.groupby(["source", "modality"], sort=True)
    return {
        "scans": len(scans),
        "rejected": len(corpus.rejected),
        "spacing_mm": list(corpus.spacing),
        "mri_norms": corpus.mri_norms,
        "groups": [
            {"source": source, "modality": modality, "scans": len(rows), "subjects": int(rows["subject"].nunique())}
            for (source, modality), rows in groups
        ],
    }


def _check_same(folder: Path, recipe: Recipe, state: dict[str, Any], manifest: str) -> None:
    if state["corpus"]["manifest_sha256"] != manifest:
        raise UserError(
            f"{folder}: the corpus is not the one that this run began with; give --out a new folder",
            exit_code=WRONG_USE,
        )
    before, now = (_flat(to_plain(one)) for one in (read_recipe(Recipe, folder / RECIPE), recipe))
    for key, value in now.items():
        if before[key] != value and key not in FREE_ON_RESUME:
            raise UserError(
                f"{folder}: began with {key} {before[key]}, now {value} is asked for; give --out a new folder",
                exit_code=WRONG_USE,
            )


def _flat(sections: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {f"{section}.{name}": value for section, values in sections.items() for name, value in values.items()}


def _hold(path: Path) -> TextIO:
    """Lock the run; POSIX record locks end with the process and do not pass to forked data workers."""
    stream = path.open("w")
    try:
        fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        stream.close()
        raise UserError(f"{path.parent}: another process is writing to this run", exit_code=WRONG_USE) from error
    return stream
