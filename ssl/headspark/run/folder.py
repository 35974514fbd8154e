"""The folder of a run: what it is (recipe.yaml), how it stands (run.json) and what it measured (metrics.jsonl)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harmonize.bounded_files import fits
from harmonize.corpus import Corpus
from harmonize.errors import UserError
from harmonize.files import write_json, write_text
from harmonize.provenance import git_revision, library_versions
from headspark.config import WRONG_USE, read_recipe, to_plain, to_yaml
from headspark.recipe import Recipe
from headspark.run.claim import (
    CHECKPOINTS,
    FINISHED,
    LOCK,
    METRICS,
    NEW_FOLDER,
    RECIPE,
    STATE,
    Claim,
    claim,
    read_metrics,
    read_state,
)
from headspark.run.diverged import Diverged

__all__ = ["FINISHED", "LOCK", "METRICS", "RECIPE", "STATE", "read_metrics", "read_state"]  # of headspark.run.claim
STATE_SHAPE = {
    "corpus": {
        "manifest_sha256": str,
        "rejected": int,
        "spacing_mm": [float],
        "mri_norms": lambda norms: isinstance(norms, dict) and all(isinstance(norm, str) for norm in norms.values()),
        "groups": [{"source": str, "modality": str, "scans": int, "subjects": int}],
    },
    "libraries": dict,
    "revision": (str, type(None)),
}
"""What a model card needs of run.json, as `harmonize.bounded_files.fits` takes it."""

RUNNING, INTERRUPTED, DIVERGED = "running", "interrupted", "diverged"
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
        claim: The hold on it.
        state: The content of run.json.
    """

    claim: Claim
    state: dict[str, Any]

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self.claim.folder

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.folder / CHECKPOINTS

    def log(self, **facts: object) -> None:
        """Append a line to metrics.jsonl."""
        with (self.folder / METRICS).open("a", encoding="utf-8") as stream:
            stream.write(metrics_line(facts))

    def forget_after(self, step: int) -> None:
        """Drop the lines of metrics.jsonl that a killed run wrote after its last checkpoint."""
        lines = [metrics_line(line) for line in read_metrics(self.folder) if line["step"] <= step]
        write_text(self.folder / METRICS, "".join(lines))

    def note(self, **facts: object) -> None:
        """Write facts to run.json: how the run stands, what it runs on."""
        self.state |= facts
        write_json(self.folder / STATE, self.state)


@contextmanager
def open_run(folder: Path, recipe: Recipe, corpus: Corpus) -> Iterator[Run]:
    """Start a run in a new folder, or take up an unfinished one; until `Claim.keep` all can be undone.

    Raises:
        UserError: With exit code 2: the folder holds a finished run, one of another recipe or corpus, one that is
            running now, or no run at all.
    """
    with claim(folder, kind="pretraining", other="fine-tuning", key="corpus") as claimed:
        manifest = corpus.manifest_sha256()
        if claimed.state is not None:
            _check_same(folder, recipe, claimed.state, manifest)
        write_text(folder / RECIPE, to_yaml(recipe))
        run = Run(claimed, dict(claimed.state or {}))
        run.state.pop("diverged", None)
        run.note(
            status=RUNNING,
            seed=recipe.train.seed,
            revision=git_revision(),
            libraries=library_versions(),
            corpus={"manifest_sha256": manifest, **summarise(corpus)},
        )
        try:
            yield run
        except Diverged as error:
            if claimed.kept:
                run.note(status=DIVERGED, diverged=error.facts())
            raise


def metrics_line(facts: Mapping[str, Any]) -> str:
    """A line of metrics.jsonl; a number that JSON does not know (NaN, infinity) is null, and named under `not_finite`.

    Example:
        >>> metrics_line({"step": 3, "loss": float("inf"), "lr": 0.1})
        '{"step": 3, "loss": null, "lr": 0.1, "not_finite": {"loss": "inf"}}\\n'
    """
    odd = {name: str(value) for name, value in facts.items() if isinstance(value, float) and not math.isfinite(value)}
    plain = {name: None if name in odd else value for name, value in facts.items()}
    if odd:
        plain["not_finite"] = odd
    return json.dumps(plain, allow_nan=False) + "\n"


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


def check_state(folder: Path, state: Mapping[str, Any] | None) -> None:
    """Refuse a run.json that says too little for a model card.

    Raises:
        UserError: With exit code 2.
    """
    if state is None or not fits(state, STATE_SHAPE) or len(state["corpus"]["spacing_mm"]) != 3:
        raise UserError(f"{folder}: its {STATE} is damaged; restore it", exit_code=WRONG_USE)


def _check_same(folder: Path, recipe: Recipe, state: dict[str, Any], manifest: str) -> None:
    if not fits(state, {"corpus": {"manifest_sha256": str}}):
        raise UserError(f"{folder}: its {STATE} is damaged; restore it, or {NEW_FOLDER}", exit_code=WRONG_USE)
    if state["corpus"]["manifest_sha256"] != manifest:
        raise UserError(
            f"{folder}: the corpus is not the one that this run began with; {NEW_FOLDER}",
            exit_code=WRONG_USE,
        )
    before, now = (_flat(to_plain(one)) for one in (read_recipe(Recipe, folder / RECIPE), recipe))
    for key, value in now.items():
        if before[key] != value and key not in FREE_ON_RESUME:
            raise UserError(
                f"{folder}: began with {key} {before[key]}, now {value} is asked for; {NEW_FOLDER}",
                exit_code=WRONG_USE,
            )


def _flat(sections: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {f"{section}.{name}": value for section, values in sections.items() for name, value in values.items()}
